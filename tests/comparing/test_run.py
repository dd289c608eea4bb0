"""A grid is trained once: finished cells stay, stopped ones go on, others do not pay for one that fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markupsafe import Markup
from torch import Tensor
from typer.testing import CliRunner

import hardy
from hardy.cli.main import app
from hardy.comparing import pool, run, work
from hardy.comparing.cells import Cell
from hardy.errors import ConfigError, TrainingError
from hardy.locks import locked
from hardy.objective import Objective
from hardy.safefile import read_tensors
from hardy.training import load_recipe

ROOT = Path(__file__).parents[2]
TEXT = """
[model]
name = "cifar_resnet8"
args = { width = 2 }
[data]
name = "digits"
limit = 64
augment = ["crop"]
val_fraction = 0.0
[train]
epochs = 1
batch_size = 32
[evaluate]
axes = ["clean"]
limit = 20
eps = 0.1
[compare]
seeds = [0, 1]
baseline = "plain"
[compare.arms.plain]
[compare.arms.mask]
methods = [{ name = "lfm", p = 0.5 }]
"""
NAMES = [f"{arm}/cifar_resnet8/seed{seed}" for seed in (0, 1) for arm in ("plain", "mask")]


@pytest.fixture(scope="module", autouse=True)
def no_charts() -> Iterator[None]:
    """Leave the drawing out, which takes most of the time of a page."""
    with pytest.MonkeyPatch.context() as patch:
        for place in ("curves.line_chart", "score_curves.line_chart", "profile.dot_chart", "grid_charts.scatter_chart"):
            patch.setattr(f"hardy.reporting.{place}", lambda *_, **__: Markup())
        for place in ("build.swatch", "profile.swatch", "grid_page.swatch"):
            patch.setattr(f"hardy.reporting.{place}", lambda *_, **__: Markup())
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("grid") / "grid.toml"
    file.write_text(TEXT)
    return file


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a whole comparison, once for all tests that only look."""
    out = tmp_path_factory.mktemp("out")
    hardy.compare(recipe, out=out)
    return out


@pytest.fixture
def events() -> tuple[list[tuple[str, str]], Callable[[pool.Event], None]]:
    seen: list[tuple[str, str]] = []
    return seen, lambda event: seen.append((event.cell.name, event.what))


def weights(folder: Path) -> dict[str, Tensor]:
    return read_tensors(folder / "model.safetensors")


def times(out: Path) -> dict[str, int]:
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for n in NAMES for p in (out / n).rglob("*") if p.is_file()}


def test_every_cell_is_a_run_folder_with_its_evaluation(finished: Path) -> None:
    for name in NAMES:
        cell = finished / name
        files = {path.name for path in cell.iterdir()}
        assert files >= {"recipe.toml", "metrics.jsonl", "model.safetensors", "result.json", "cell.json"}
        assert not (cell / "result.partial").exists()
        made, own = hardy.Result.read(cell / "result.json"), load_recipe(cell / "recipe.toml")
        assert made.n == 20 and own.seed == int(name[-1]) and own.evaluate.limit == 20
        assert made.command == f"hardy evaluate {cell} --checks derived"
    data = json.loads((finished / "comparison.json").read_text())
    assert [cell["name"] for cell in data["cells"]] == NAMES and data["missing"] == []
    assert (finished / "report.html").read_text().count("no method") > 0


def test_a_cell_is_what_training_alone_makes_of_its_recipe(finished: Path, tmp_path: Path) -> None:
    hardy.train(finished / NAMES[1] / "recipe.toml", out=tmp_path / "alone")
    alone, cell = weights(tmp_path / "alone"), weights(finished / NAMES[1])
    assert all(torch.equal(alone[key], cell[key]) for key in cell)


def test_arms_of_a_seed_see_the_same_images_in_the_same_order(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Tensor]] = []
    first: list[dict[str, Tensor]] = []
    own_init, own_forward = Objective.__init__, Objective.forward

    def init(self: Objective, model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        own_init(self, model, *args, **kwargs)
        if kwargs:  # of a training, not of the trial
            seen.append([])
            first.append({key: value.clone() for key, value in model.state_dict().items()})

    def forward(self: Objective, x: Tensor, y: Tensor, key: Tensor | None = None) -> Any:
        seen[-1] += [x.clone(), y.clone()]
        return own_forward(self, x, y, key)

    monkeypatch.setattr(Objective, "__init__", init)
    monkeypatch.setattr(Objective, "forward", forward)
    hardy.compare(recipe, out=tmp_path, overrides=["compare.seeds=[0]"])
    plain, mask = seen
    assert len(plain) == len(mask) == 4 and all(map(torch.equal, plain, mask))
    assert all(torch.equal(value, first[1][key]) for key, value in first[0].items())


def test_what_is_finished_is_not_touched(
    recipe: Path, finished: Path, events: tuple[list[tuple[str, str]], Callable[[pool.Event], None]]
) -> None:
    before, seen = times(finished), events[0]
    made = hardy.compare(recipe, out=finished, on_event=events[1])
    assert times(finished) == before and seen == [] and len(made.cells) == 4
    more = hardy.compare(recipe, out=finished, overrides=["compare.seeds=[1, 0]"])
    assert times(finished) == before and [cell.seed for cell in more.cells] == [1, 1, 0, 0]


def test_another_recipe_or_question_is_refused_and_nothing_is_lost(recipe: Path, finished: Path) -> None:
    before = times(finished)
    with pytest.raises(ConfigError, match=r"cell plain/cifar_resnet8/seed0 was trained by another recipe"):
        hardy.compare(recipe, out=finished, overrides=["train.lr=0.2"])
    with pytest.raises(ConfigError, match=r"mask/cifar_resnet8/seed0 was trained by another recipe"):
        hardy.compare(recipe, out=finished, overrides=['compare.arms.mask.methods=[{name="lfm", p=0.4}]'])
    with pytest.raises(ConfigError, match="was asked another question"):
        hardy.compare(recipe, out=finished, overrides=["evaluate.limit=19"])
    assert times(finished) == before


def test_overwrite_makes_anew_what_changed_and_only_that(recipe: Path, finished: Path, tmp_path: Path) -> None:
    one = ["compare.seeds=[0]"]
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    plain, mask = weights(tmp_path / NAMES[0]), weights(tmp_path / NAMES[1])
    stamp = (tmp_path / NAMES[0] / "model.safetensors").stat().st_mtime_ns
    other = [*one, 'compare.arms.mask.methods=[{name="gaussian_noise"}]', "evaluate.limit=10"]
    made = hardy.compare(recipe, out=tmp_path, overrides=other, overwrite=True)
    assert (tmp_path / NAMES[0] / "model.safetensors").stat().st_mtime_ns == stamp  # only evaluated anew
    assert [cell.accuracy["clean"].n for cell in made.cells] == [10, 10]
    assert all(torch.equal(plain[key], value) for key, value in weights(tmp_path / NAMES[0]).items())
    assert not all(torch.equal(mask[key], value) for key, value in weights(tmp_path / NAMES[1]).items())


def test_a_cell_that_fails_does_not_stop_the_others(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = work.train

    def fails(what: Any, **options: Any) -> Any:
        if what.methods and what.seed == 0:
            raise TrainingError("train: the loss must be finite.")
        if what.methods:
            raise MemoryError("no room")
        return own(what, **options)

    monkeypatch.setattr(work, "train", fails)
    done = CliRunner().invoke(app, ["compare", str(recipe), "--out", str(tmp_path), "--json"])
    assert done.exit_code == 2
    data = json.loads(done.stdout)
    assert {cell["name"]: cell["why"] for cell in data["missing"]} == {
        NAMES[1]: "train: the loss must be finite.",
        NAMES[3]: "MemoryError: no room",
    }
    assert [cell["name"] for cell in data["cells"]] == [NAMES[0], NAMES[2]]
    assert "failed: mask/cifar_resnet8/seed0: train: the loss must be finite." in done.stderr
    assert "the loss must be finite" in (tmp_path / "report.html").read_text()
    monkeypatch.undo()
    done = CliRunner().invoke(app, ["compare", str(recipe), "--out", str(tmp_path), "--quiet"])
    assert done.exit_code == 0 and done.stderr == "" == done.stdout


def test_an_evaluation_that_was_stopped_is_made_up_for(recipe: Path, finished: Path, tmp_path: Path) -> None:
    one = ["compare.seeds=[0]"]
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    stamp = (tmp_path / NAMES[0] / "model.safetensors").stat().st_mtime_ns
    (tmp_path / NAMES[0] / "result.json").unlink()
    made = hardy.compare(recipe, out=tmp_path, overrides=one)
    assert (tmp_path / NAMES[0] / "model.safetensors").stat().st_mtime_ns == stamp and len(made.cells) == 2


def test_a_result_never_passes_for_the_answer_to_another_question(
    recipe: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    other = ["compare.seeds=[0]", "evaluate.limit=10"]

    def stopped(*_: Any, **__: Any) -> Any:
        raise TrainingError("stopped")

    monkeypatch.setattr(work, "evaluate", stopped)
    hardy.compare(recipe, out=tmp_path, overrides=other, overwrite=True)
    assert set(run.plan(recipe, out=tmp_path, overrides=other).states.values()) == {"trained"}


def test_the_recipe_of_a_cell_asks_what_its_result_answers(recipe: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    one = ["compare.seeds=[0]", "evaluate.limit=10"]
    hardy.compare(recipe, out=tmp_path, overrides=one, overwrite=True)
    for name in NAMES[:2]:
        assert load_recipe(tmp_path / name / "recipe.toml").evaluate.limit == 10
        assert hardy.Result.read(tmp_path / name / "result.json").n == 10


def test_a_result_tells_the_passes_of_its_training(finished: Path) -> None:
    for name in NAMES:
        made = hardy.Result.read(finished / name / "result.json")
        assert made.training_passes == {"forward_passes": 1.0, "backward_passes": 1.0}


def test_an_evaluation_by_hand_is_not_the_one_of_the_comparison(recipe: Path, finished: Path, tmp_path: Path) -> None:
    one = ["compare.seeds=[0]"]
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    cell = tmp_path / NAMES[1]
    done = CliRunner().invoke(app, ["evaluate", str(cell), "--seed", "1", "--overwrite", "--quiet"])
    assert done.exit_code == 0 and hardy.Result.read(cell / "result.json").seed == 1
    with pytest.raises(ConfigError, match=r"mask/cifar_resnet8/seed0 has a result.json that this comparison did not"):
        hardy.compare(recipe, out=tmp_path, overrides=one)
    before = (tmp_path / NAMES[0] / "result.json").stat().st_mtime_ns
    hardy.compare(recipe, out=tmp_path, overrides=one, overwrite=True)
    assert hardy.Result.read(cell / "result.json").seed == 0
    assert (tmp_path / NAMES[0] / "result.json").stat().st_mtime_ns == before


def test_a_result_counts_only_once_its_cell_knows_it(recipe: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    note = tmp_path / NAMES[0] / "cell.json"
    known = json.loads(note.read_text())
    del known["result"]  # as when killed before the last line
    note.write_text(json.dumps(known))
    states = run.plan(recipe, out=tmp_path, overrides=["compare.seeds=[0]"]).states
    assert states == {NAMES[0]: "trained", NAMES[1]: "finished"}


def test_a_net_that_is_trained_on_loses_its_result(
    recipe: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, cell = ["compare.seeds=[0]"], tmp_path / NAMES[0]
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (cell / "model.safetensors").unlink()
    own = work.evaluate

    def stopped(*_: Any, **__: Any) -> Any:
        raise TrainingError("stopped")

    monkeypatch.setattr(work, "evaluate", stopped)
    hardy.compare(recipe, out=tmp_path, overrides=one)
    assert (cell / "model.safetensors").exists() and not list(cell.glob("result.*"))
    assert run.plan(recipe, out=tmp_path, overrides=one).states[NAMES[0]] == "trained"
    monkeypatch.setattr(work, "evaluate", own)
    hardy.compare(recipe, out=tmp_path, overrides=one)
    shutil.copy(tmp_path / NAMES[1] / "model.safetensors", cell)  # of another training
    with pytest.raises(ConfigError, match=r"plain/cifar_resnet8/seed0 has another net than the one"):
        run.plan(recipe, out=tmp_path, overrides=one)


def test_changed_files_are_noticed(recipe: Path, tmp_path: Path) -> None:
    data, source, factory = tmp_path / "data.npz", tmp_path / "source.safetensors", tmp_path / "net.py"
    x = (np.random.default_rng(0).random((48, 8, 8)) * 255).astype(np.uint8)
    arrays = {"x_train": x, "y_train": np.arange(48) % 10, "x_test": x[:20], "y_test": np.arange(20) % 10}
    np.savez(data, **arrays)
    factory.write_text(
        "import hardy\ndef net(num_classes, in_channels):\n    return hardy.load_model('cifar_resnet8', "
        "num_classes=num_classes, in_channels=in_channels, args={'width': 2})\n"
    )
    hardy.save(hardy.load_model("cifar_resnet8", num_classes=10, in_channels=1), source)
    change = [f"data.name=npz:{data}", f'compare.nets=["{factory}:net"]', "model.args={}", "compare.seeds=[0]"]
    change += [f'compare.sources=["{source}"]', 'evaluate.axes=["clean", "transfer"]', "compare.arms={plain={}}"]
    out = tmp_path / "out"

    def again(**options: Any) -> set[str]:
        return set(run.plan(recipe, out=out, overrides=change, **options).states.values())

    hardy.compare(recipe, out=out, overrides=change)
    assert again() == {"finished"}
    hardy.save(hardy.load_model("cifar_resnet8", num_classes=10, in_channels=1, seed=1), source)
    with pytest.raises(ConfigError, match=r"seed0 was asked about other files: source .*source.safetensors changed"):
        again()
    assert again(overwrite=True) == {"trained"}
    hardy.save(hardy.load_model("cifar_resnet8", num_classes=10, in_channels=1), source)
    np.savez(data, **{**arrays, "x_test": x[1:21]})
    with pytest.raises(ConfigError, match=r"seed0 was asked about other files: test images changed"):
        again()
    np.savez(data, **{**arrays, "x_train": x[::-1]})
    with pytest.raises(ConfigError, match=r"seed0 was trained from other files: training images changed"):
        again()
    assert again(overwrite=True) == {"new"}
    np.savez(data, **arrays)
    assert again() == {"finished"}
    factory.write_text(factory.read_text() + "# another\n")
    with pytest.raises(ConfigError, match=r"was trained from other files: .*net.py changed"):
        again()


def test_the_dry_run_says_what_would_be_done_and_writes_nothing(recipe: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    args = ["compare", str(recipe), "--dry-run", "--json", "--quiet"]
    new = json.loads(CliRunner().invoke(app, [*args, "--out", str(out)]).stdout)
    assert not out.exists() and [cell["state"] for cell in new["cells"]] == ["new"] * 4
    assert {(cell["forward_passes"], cell["backward_passes"]) for cell in new["cells"]} == {(1, 1)}
    there = json.loads(CliRunner().invoke(app, [*args, "--out", str(finished)]).stdout)
    assert [cell["state"] for cell in there["cells"]] == ["finished"] * 4


def test_two_at_once_are_refused(recipe: Path, finished: Path) -> None:
    with locked(finished, ConfigError):
        done = CliRunner().invoke(app, ["compare", str(recipe), "--out", str(finished)])
    assert done.exit_code == 2 and "is at work in this folder" in done.stderr and "--resume" not in done.stderr
    assert "same command again" in done.stderr.replace("\n", " ")


def test_a_signal_that_ends_a_cell_by_another_error_ends_the_command(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def stopped(cell: Cell, **_: Any) -> None:
        begun.append(cell.name)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:
            raise RuntimeError("a worker process ended") from None

    monkeypatch.setattr(pool, "run_cell", stopped)
    done = CliRunner().invoke(app, ["compare", str(recipe), "--out", str(tmp_path)])
    assert done.exit_code == 143 and begun == NAMES[:1]


def test_workers_must_be_some(recipe: Path) -> None:
    done = CliRunner().invoke(app, ["compare", str(recipe), "--workers", "0"])
    assert done.exit_code == 2 and "--workers: must be at least 1" in done.stderr
    assert "compare" in CliRunner().invoke(app, ["--help"]).stdout


@pytest.mark.slow
def test_two_processes_make_the_same_nets(recipe: Path, tmp_path: Path) -> None:
    done = command(recipe, tmp_path / "two", "--workers", "2")
    assert done.wait(240) == 0
    command(recipe, tmp_path / "one").wait(240)
    for name in NAMES:
        one, two = weights(tmp_path / "one" / name), weights(tmp_path / "two" / name)
        assert all(torch.equal(one[key], two[key]) for key in one)


def command(recipe: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    args = [sys.executable, "-m", "hardy", "compare", str(recipe), "--out", str(out), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(args, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603


def wait_for(found: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while not found():
        assert process.poll() is None and time.monotonic() < end, "it ended too early, or never came there"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_at_any_moment_it_goes_on_to_the_same_weights(recipe: Path, tmp_path: Path, workers: str) -> None:
    longer = ["--set", "train.epochs=12", "--set", "compare.seeds=[0]", "--workers", workers]
    assert command(recipe, tmp_path / "whole", *longer).wait(240) == 0
    out, last = tmp_path / "killed", NAMES[1]
    process = command(recipe, out, *longer)
    wait_for((out / last / "checkpoints" / "last.safetensors").exists, process)
    process.kill()
    process.wait()
    if workers == "2":  # its processes notice, and end
        time.sleep(3)
    assert not (out / last / "result.json").exists() and not (out / "report.html").exists()
    assert command(recipe, out, *longer).wait(240) == 0
    assert "resumed after epoch" in (out / last / "log.txt").read_text()
    for name in NAMES[:2]:
        one, two = weights(tmp_path / "whole" / name), weights(out / name)
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_a_failed_cell(recipe: Path, tmp_path: Path) -> None:
    options = ["--set", "train.epochs=60", "--set", "compare.seeds=[0]", "--workers", "2"]
    process = command(recipe, tmp_path, *options)
    env = tmp_path / NAMES[1] / "env.json"
    wait_for(lambda: (tmp_path / NAMES[1] / "checkpoints" / "last.safetensors").exists() and env.exists(), process)
    lock = (tmp_path / NAMES[1] / ".lock").read_text()
    os.kill(int(lock.split()[1]), signal.SIGKILL)
    assert process.wait(240) == 2
    data = json.loads((tmp_path / "comparison.json").read_text())
    assert [cell["name"] for cell in data["missing"]] == [NAMES[1]] and "SIGKILL" in data["missing"][0]["why"]
    assert [cell["name"] for cell in data["cells"]] == [NAMES[0]]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_recipe_of_the_docs_runs(tmp_path: Path) -> None:
    made = run.compare(ROOT / "recipes" / "compare_digits.toml", out=tmp_path)
    assert len(made.cells) == 6 and made.missing == () and made.robust == "worst_case"
    assert all(cell.accuracy["clean"].accuracy > 0.8 for cell in made.cells)
    assert {(c.forward_passes, c.backward_passes) for c in made.costs} == {(8.0, 8.0)}
