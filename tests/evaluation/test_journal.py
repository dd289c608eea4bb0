"""A stopped evaluation goes on where it was, and nothing is taken for what it is not."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hardy.attacks import APGD, PGD, Square, attack
from hardy.evaluation import Budget, evaluate
from hardy.evaluation.journal import ROWS, Journal, result_of
from hardy.results import Result
from hardy.threats import Threat

THREAT = Threat("linf", 0.05)
SUITE = [APGD(steps=4), PGD(steps=3), Square(queries=8)]
AXES = ["white_box", "eps_curve", "worst_case"]


def measure(net: nn.Module, x: Tensor, y: Tensor, journal: Path | None, **facts: object) -> Result:
    given = {"threat": THREAT, "axes": AXES, "suite": SUITE, "budget": Budget(curve_steps=2, noise_draws=2)}
    return evaluate(net, x, y, batch_size=6, journal=journal, **{**given, **facts})  # type: ignore[arg-type]  # mixed


@pytest.fixture(scope="module")
def x(digits: tuple[Tensor, Tensor]) -> Tensor:
    return digits[0][1300:1350].clone()


@pytest.fixture(scope="module")
def y(digits: tuple[Tensor, Tensor]) -> Tensor:
    return digits[1][1300:1350].clone()


class StopError(Exception):
    """What a key press would be."""


class Counted(nn.Module):
    """Counts the images it is asked about, and stops the run after some of them."""

    def __init__(self, net: nn.Module, most: float = float("inf")) -> None:
        super().__init__()
        self.net, self.most, self.asked = net, most, 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        if self.asked > self.most:
            raise StopError
        z: Tensor = self.net(x)
        return z


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_stopped_evaluation_ends_as_if_it_had_not_been(
    net: nn.Module, x: Tensor, y: Tensor, tmp_path: Path, share: float
) -> None:
    whole = Counted(net)
    want = measure(whole.eval(), x, y, None)
    with pytest.raises(StopError):
        measure(Counted(net, share * whole.asked).eval(), x, y, tmp_path / "j")
    again = Counted(net)
    got = measure(again.eval(), x, y, tmp_path / "j")
    for name, outcomes in want.outcomes_by_point.items():
        assert np.array_equal(outcomes, got.outcomes_by_point[name]), name
    assert [a.points for a in got.axes] == [a.points for a in want.axes]
    assert again.asked < whole.asked * (1.2 - 0.5 * share)  # what was finished is not done again


def test_nothing_is_recalled_for_another_question(net: nn.Module, x: Tensor, y: Tensor, tmp_path: Path) -> None:
    def asked(model: nn.Module = net, x: Tensor = x, y: Tensor = y, **facts: object) -> int:
        counted = Counted(model)
        measure(counted.eval(), x, y, tmp_path, axes=["white_box"], **facts)
        return counted.asked

    first = asked()
    assert asked() < first / 3
    other = copy.deepcopy(net)
    with torch.no_grad():
        next(other.parameters()).mul_(0.9)
    for number in (
        asked(other),
        asked(x=(x + 0.01).clamp(max=1)),
        asked(threat=Threat("linf", 0.06)),
        asked(seed=1),
        asked(suite=[APGD(steps=5), PGD(steps=4), Square(queries=9)]),
        asked(rows=torch.arange(len(x)) + 1),
    ):
        assert number > first / 2


def test_a_damaged_file_is_done_again(net: nn.Module, x: Tensor, y: Tensor, tmp_path: Path) -> None:
    want = measure(net, x, y, tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    got = measure(net, x, y, tmp_path)
    assert [a.points for a in got.axes] == [a.points for a in want.axes]


def test_foreign_attacks_are_never_recalled(net: nn.Module, x: Tensor, y: Tensor, tmp_path: Path) -> None:
    calls: list[int] = []

    def mine(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        calls.append(len(x))
        return x

    for _ in range(2):
        measure(net, x, y, tmp_path, axes=["white_box"], suite=[mine])
    assert sum(calls[: len(calls) // 2]) == sum(calls[len(calls) // 2 :]) > 0


def test_parts_join_to_the_whole_and_are_kept_bit_for_bit(
    net: nn.Module, x: Tensor, y: Tensor, tmp_path: Path, trained: Callable[[int], nn.Module]
) -> None:
    found = [
        attack(net, x[part], y[part], "pgd", threat=THREAT, rows=part) for part in torch.arange(len(x)).split([20, 30])
    ]
    rows = {name: torch.cat([getattr(part, name) for part in found]) for name in ROWS}
    whole = result_of(rows, attack="pgd", threat=THREAT)
    assert whole.passes == {k: sum(f.passes[k] for f in found) for k in ("forward", "backward")}
    journal, facts = Journal(tmp_path / "new"), ("a", b"b", 3)
    assert journal.recall(facts, attack="pgd", threat=THREAT, device=x.device) is None
    journal.keep(facts, whole)
    kept = journal.recall(facts, attack="pgd", threat=THREAT, device=x.device)
    assert kept is not None and kept.passes == whole.passes
    for name in ("x_adv", "success", "margin", "forward_passes", "zero_gradients"):
        assert torch.equal(getattr(kept, name), getattr(whole, name)), name
    assert journal.recall(("a", b"b", 4), attack="pgd", threat=THREAT, device=x.device) is None
    journal.clear()
    assert not (tmp_path / "new").exists()


def test_nets_of_equal_weights_are_told_apart(net: nn.Module, x: Tensor, y: Tensor, tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self, net: nn.Module, factor: float, blind: bool = False) -> None:
            super().__init__()
            self.net, self.factor, self.blind = net, factor, blind

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.factor * self.net(x.detach() if self.blind else x)
            return z

    nets = [Scaled(net, 1.0).eval(), Scaled(net, 1e6).eval(), Scaled(net, 1.0, blind=True).eval()]
    kept = [measure(n, x, y, tmp_path, axes=["white_box"], suite=[PGD(steps=5)]) for n in nets]
    fresh = [measure(n, x, y, None, axes=["white_box"], suite=[PGD(steps=5)]) for n in nets]
    assert [r.accuracy("white_box") for r in kept] == [r.accuracy("white_box") for r in fresh]
    assert len({r.accuracy("white_box") for r in fresh}) > 1
