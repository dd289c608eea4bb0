"""A grid of methods, nets and seeds as numbers: means over seeds, paired differences, ranks, Pareto fronts."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hardy.errors import ParameterError, did_you_mean

__all__ = ["FORMAT", "Accuracy", "AgainstBase", "CellNumbers", "Comparison", "Cost", "Front", "Gap", "GridCell", "Mean"]

FORMAT = 1
Verdict = Literal["gain", "loss", "unclear", "few", "void", "description"]


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """One cell of a grid.

    Attributes:
        name: Name of the cell.
        arm: Its arm.
        net: Its net.
        seed: Seed of its training.
        folder: Its run folder with a ``result.json``; None where the cell is not finished.
        why: Why it is not finished.
    """

    name: str
    arm: str
    net: str
    seed: int
    folder: Path | None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """An accuracy of one net, in [0, 1], with its 95 % Wilson interval over images.

    Attributes:
        accuracy: The share.
        low: Lower bound.
        high: Upper bound.
        n: Number of images.
        void: Failed checks by which it is no evidence.
        warned: Checks that ask to read it with care.
        other: Why it answers another question than most of its column do, in words; it is then in no mean, difference,
            rank or front. Empty where it does not.
    """

    accuracy: float
    low: float
    high: float
    n: int
    void: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()
    other: str = ""


@dataclass(frozen=True, kw_only=True)
class AgainstBase:
    """One net minus the net of the baseline arm of the same seed, on the same images.

    Attributes:
        axis: On which axis: the worst case where it was measured, else white-box, else clean.
        difference: Of the accuracies, in [-1, 1]; None where they cannot be compared.
        low: Lower bound of its 95 % bootstrap interval over images.
        high: Upper bound.
        p: Of the exact sign test, not corrected.
        verdict: "gain" or "loss" where the interval excludes 0 and the test agrees after Holm's correction for all
            cells, else "unclear"; "void" where nothing was compared.
        why: Why not.
        caution: Which checks of either net warned, in words.
    """

    axis: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    verdict: Verdict = "void"
    why: str = ""
    caution: str = ""


@dataclass(frozen=True, kw_only=True)
class CellNumbers:
    """What was measured in one finished cell.

    Attributes:
        name: Name of the cell.
        arm: Its arm.
        net: Its net.
        seed: Seed of its training.
        accuracy: By axis.
        failed_checks: Codes of all failed checks of its evaluation.
        epochs: Of its training.
        forward_passes: Per training image, over the whole training; None where the run does not tell.
        backward_passes: Likewise.
        train_seconds: Wall time of all epochs.
        evaluate_seconds: Wall time of the evaluation, or of its last part where it was stopped.
        against_base: Does it beat its own base? None in the baseline arm.
    """

    name: str
    arm: str
    net: str
    seed: int
    accuracy: Mapping[str, Accuracy]
    failed_checks: tuple[str, ...]
    epochs: int
    forward_passes: float | None
    backward_passes: float | None
    train_seconds: float | None
    evaluate_seconds: float
    against_base: AgainstBase | None = None


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Mean accuracy of an arm on an axis, in [0, 1].

    Attributes:
        arm: Which arm.
        net: On which net.
        axis: On which axis.
        seeds: Number of seeds behind it.
        mean: Over these.
        low: Lower bound of its 95 % Student's t interval over seeds, not below 0; None with one seed.
        high: Upper bound, not above 1.
        rank: 1 plus the number of arms whose whole interval is above this one's by more than one image: arms whose
            intervals overlap may share a rank; None with one seed, where a check failed, a seed is missing or no other
            arm can be ranked, and where more is neither better nor worse.
        void: Failed checks of any of its cells.
        missing: Seeds that it lacks and another arm whose checks did not fail has: such an arm is neither ranked nor on
            a front, as an easy seed alone would lift it.
        warned: Checks of any of its cells that ask to read it with care.
    """

    arm: str
    net: str
    axis: str
    seeds: int
    mean: float
    low: float | None = None
    high: float | None = None
    rank: int | None = None
    void: tuple[str, ...] = ()
    missing: tuple[int, ...] = ()
    warned: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Accuracy of an arm minus that of the baseline, paired by seed, in [-1, 1].

    Attributes:
        arm: Which arm.
        net: On which net.
        axis: On which axis.
        pairs: Number of seeds that both have, asked the same.
        mean: Mean difference over these.
        low: Lower bound of its 95 % Student's t interval over seeds, not below -1; None with one pair.
        high: Upper bound, not above 1.
        verdict: "gain" or "loss" where the interval, widened by one image at both ends (1 / n, the resolution of n
            images), excludes 0, "unclear" where it does not, "few" with fewer than 3 pairs, "void" where a check failed
            on either side, "description" where more is neither better nor worse.
    """

    arm: str
    net: str
    axis: str
    pairs: int
    mean: float
    low: float | None
    high: float | None
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a training of an arm costs, as the mean over seeds; None where some run does not tell.

    Attributes:
        arm: Which arm.
        net: On which net.
        forward_passes: Per training image.
        backward_passes: Likewise.
        seconds: Wall time, with whatever else the machine did.
    """

    arm: str
    net: str
    forward_passes: float | None
    backward_passes: float | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Front:
    """The arms that no other arm beats in both respects (Pareto), by their means, of those that lack no seed.

    Attributes:
        net: On which net.
        against: "clean": clean against robust accuracy; "passes": passes of the training against robust accuracy.
        arms: Those on the front.
    """

    net: str
    against: Literal["clean", "passes"]
    arms: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A grid of methods, nets and seeds under one budget: what stands in ``comparison.json`` and on the page.

    Attributes:
        baseline: The arm that the others are compared with.
        budget: What was equal: "epochs" or "passes".
        arms: ``repr`` of the methods of every arm.
        nets: Names.
        seeds: Of the trainings.
        axes: Axes that stand for an accuracy, in the order of the table.
        robust: The axis of the Pareto plots and of :class:`AgainstBase`; empty where nothing was measured.
        cells: The finished cells.
        missing: The others, and why.
        means: One for each arm, net and axis.
        differences: Likewise, without the baseline.
        costs: One for each arm and net.
        fronts: Two for each net, where they can be told.
    """

    baseline: str
    budget: str
    arms: Mapping[str, tuple[str, ...]]
    nets: tuple[str, ...]
    seeds: tuple[int, ...]
    axes: tuple[str, ...] = ()
    robust: str = ""
    cells: tuple[CellNumbers, ...] = ()
    missing: tuple[GridCell, ...] = ()
    means: tuple[Mean, ...] = ()
    differences: tuple[Gap, ...] = ()
    costs: tuple[Cost, ...] = ()
    fronts: tuple[Front, ...] = ()

    def mean(self, arm: str, net: str, axis: str) -> Mean | None:
        """Give the mean of an arm; None where no cell has it.

        Raises:
            ParameterError: no such arm, net or axis; likewise the two below.
        """
        self._check(arm, net, axis)
        return next((m for m in self.means if (m.arm, m.net, m.axis) == (arm, net, axis)), None)

    def difference(self, arm: str, net: str, axis: str) -> Gap | None:
        """Give the difference of an arm to the baseline; None for the baseline, and where no pair of seeds has both."""
        self._check(arm, net, axis)
        return next((g for g in self.differences if (g.arm, g.net, g.axis) == (arm, net, axis)), None)

    def cost(self, arm: str, net: str) -> Cost | None:
        """Give what a training of an arm costs; None where no cell is finished."""
        self._check(arm, net)
        return next((c for c in self.costs if (c.arm, c.net) == (arm, net)), None)

    def _check(self, arm: str, net: str, axis: str | None = None) -> None:
        for kind, name, known in (("arm", arm, self.arms), ("net", net, self.nets), ("axis", axis, self.axes)):
            if name is not None and name not in known:
                raise ParameterError(f"Comparison: no {kind} {name!r}; {did_you_mean(name, known)}")

    def to_json(self) -> dict[str, Any]:
        """Give the content of ``comparison.json``: the fields, and ``format``, the number of this schema.

        Accuracies and differences are fractions; what does not exist is null; of ``missing`` there is no folder.
        """
        data = dataclasses.asdict(self)
        data["missing"] = [{k: v for k, v in cell.items() if k != "folder"} for cell in data["missing"]]
        plain: dict[str, Any] = {"format": FORMAT, **_plain(data)}
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
