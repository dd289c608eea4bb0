"""Several processes answer as one does, to the last bit; and none waits for another that has failed."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hardy.errors import DataError
from hardy.evaluation import AXES
from hardy.ranks import Ranks, together
from hardy.results import Result

HERE = Path(__file__).parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parents[1] / 'src'}"}
PATIENCE = 600  # seconds for what takes a few on an idle machine
CPU = torch.device("cpu")
Asked = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(digits: tuple[Tensor, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold three trained nets and images."""
    sys.path.insert(0, str(HERE))
    try:
        from rank_cases import make_net  # type: ignore[import-not-found]  # beside this file
    finally:
        sys.path.remove(str(HERE))
    x, y = digits
    question: dict[str, Any] = {"x": x[1300:1420].clone(), "y": y[1300:1420].clone()}
    for seed, name in enumerate(("net", "other", "third")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = make_net()
            optimizer = torch.optim.Adam(net.parameters(), 5e-3)
            for batch in torch.randperm(1200).repeat(3).split(100):
                optimizer.zero_grad()
                F.cross_entropy(net(x[batch]), y[batch]).backward()
                optimizer.step()
            question[name] = net.state_dict()
    made = tmp_path_factory.mktemp("ranks")
    torch.save(question, made / "question.pt")
    return made


def run(folder: Path, groups: dict[int, list[str]]) -> dict[int, list[int]]:
    """Run cases in groups of so many processes, all at once; give the exit codes."""
    script = str(HERE / "rank_cases.py")
    started = {
        size: [
            subprocess.Popen([sys.executable, script, str(folder), str(rank), str(size), *cases], env=ENV)  # noqa: S603  (ours)
            for rank in range(size)
        ]
        for size, cases in groups.items()
    }
    try:
        return {size: [each.wait(PATIENCE) for each in processes] for size, processes in started.items()}
    finally:
        for each in (each for processes in started.values() for each in processes):
            each.kill()
            each.wait()


def facts(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.facts").read_text())
    return found


def result(folder: Path, name: str) -> Result:
    found = Result.read(folder / f"{name}.json")
    return dataclasses.replace(found, seconds=0.0, environment={})


def assert_equal(folder: Path, name: str, others: list[str]) -> None:
    """Demand the same axes with their passes, checks, verdicts, outcomes and arrays."""
    want = result(folder, name)
    for other in others:
        got = result(folder, other)
        for field in dataclasses.fields(Result):
            if field.name not in {"arrays", "outcomes_by_point"}:
                assert getattr(got, field.name) == getattr(want, field.name), (other, field.name)
        for held in ("arrays", "outcomes_by_point"):
            ours, theirs = getattr(want, held), getattr(got, held)
            assert ours.keys() == theirs.keys()
            for key, values in ours.items():
                assert values.tobytes() == theirs[key].tobytes(), (other, key)


@pytest.fixture(scope="module")
def small(folder: Path) -> Path:
    codes = run(folder, {1: ["main", "random"], 2: ["main", "random", "errors", "alone"]})
    assert codes == {1: [0], 2: [0, 0]}
    return folder


def test_two_processes_answer_as_one_to_the_last_bit(small: Path) -> None:
    assert_equal(small, "main-1-0", ["main-2-0", "main-2-1"])
    assert_equal(small, "foreign-1-0", ["foreign-2-0", "foreign-2-1"])  # whose draws depend on the company of an image
    made = result(small, "main-1-0")
    assert 0.05 < made.accuracy("white_box", "apgd") < made.accuracy("clean") - 0.05  # something fell, something stood


def test_a_net_that_answers_at_random_gets_one_verdict(small: Path) -> None:
    assert_equal(small, "random-1-0", ["random-2-0", "random-2-1"])
    assert any(c.code == "deterministic" and c.status == "warn" for c in result(small, "random-1-0").checks)


def test_the_work_is_shared_and_progress_comes_from_the_first(small: Path) -> None:
    one, first, second = (facts(small, f"main-{name}") for name in ("1-0", "2-0", "2-1"))
    for each in (first, second):
        assert 0.3 * one["asked"] < each["asked"] < 0.75 * one["asked"]
    assert first["asked"] + second["asked"] < 1.2 * one["asked"]  # guards are looked at by both
    assert first["seen"] > 0 and first["ends"] and one["ends"] and second["seen"] == 0


def test_an_error_in_one_process_is_told_by_all(small: Path) -> None:
    assert facts(small, "errors-2-1")["said"] == ["DataError: page 7 is torn", "ValueError: no luck"]
    torn, unlucky = facts(small, "errors-2-0")["said"]
    assert torn == "DataError: page 7 is torn"
    assert unlucky == "RankError: rank 1: must finish its share; it failed with ValueError: no luck"


def test_one_of_the_processes_may_evaluate_alone(small: Path) -> None:
    assert result(small, "alone-2-1").accuracy("clean") == result(small, "main-1-0").accuracy("clean")


@pytest.mark.slow
def test_who_ends_or_does_not_come_is_noticed(folder: Path) -> None:
    assert run(folder, {2: ["ends"]}) == {2: [0, 3]}
    ended = facts(folder, "ends-2-0")
    assert ended["seconds"] < 60 and ended["said"].startswith("RankError: rank 0: all 2 processes must be there;")
    assert run(folder, {2: ["absent"]})[2][0] == 0
    missing = facts(folder, "absent-2-0")
    assert 1.9 < missing["seconds"] < 60 and "must come here within 0:00:02" in missing["said"]


@pytest.mark.slow
def test_another_number_of_processes_goes_on(small: Path) -> None:
    left = sorted((small / "journal-2").glob("*.npz"))
    assert {file.name for file in left} == {file.name for file in (small / "journal-1").glob("*.npz")}
    assert run(small, {3: ["again"]}) == {3: [0, 0, 0]}
    assert_equal(small, "main-1-0", [f"again-3-{rank}" for rank in range(3)])
    assert sum(facts(small, f"again-3-{rank}")["asked"] for rank in range(3)) < facts(small, "main-1-0")["asked"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_axis_and_check_is_the_same_with_one_two_and_three_processes(folder: Path) -> None:
    assert run(folder, {size: ["full"] for size in (1, 2, 3)}) == {1: [0], 2: [0, 0], 3: [0, 0, 0]}
    assert_equal(folder, "full-1-0", ["full-2-0", "full-2-1", *(f"full-3-{rank}" for rank in range(3))])
    made = result(folder, "full-1-0")
    assert [axis.name for axis in made.axes] == list(AXES) and made.versus
    assert not np.array_equal(made.arrays["adversarial/x_adv"], made.arrays["examples/x"])


def test_one_process_does_all_and_hears_its_own_errors() -> None:
    with together() as ranks:
        assert ranks == Ranks() and ranks.tell([1]) == [1]
        made = ranks.share(range(3), lambda job: {"a": torch.tensor([job])}, device=CPU)
        assert [int(each["a"]) for each in made] == [0, 1, 2]
        with pytest.raises(DataError, match="torn"), ranks.agree():
            raise DataError("torn")
