"""Paired differences between runs, and the reasons why some must not be computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from hardy.reporting.numbers import level
from hardy.reporting.runs import Run
from hardy.results import Axis, Point, Result
from hardy.stats import paired_bootstrap

__all__ = [
    "GRAY_BOX",
    "Paired",
    "Score",
    "Topic",
    "axis_names",
    "axis_title",
    "find_axis",
    "pair",
    "partner",
    "scores",
    "topics",
]

GRAY_BOX = ("gray-box", "sibling")  # series of attacks made on the same method trained from another seed
THREAT_FREE = ("clean", "noise", "texture")  # axes that the threat does not enter
SETTINGS = ("attack", "steps", "restarts", "step_size", "random_start", "norm", "eps", "targeted", "draws")


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Accuracy of a run minus accuracy of the baseline on the same images, each in [-1, 1].

    Attributes:
        mean: The difference.
        low: Lower bound of its 95 % bootstrap interval.
        high: Upper bound.
        differing: Number of images on which exactly one of the two nets is right.
        verdict: "gain" or "loss" where the interval excludes 0 and an exact sign test agrees, else "unclear".
    """

    mean: float
    low: float
    high: float
    differing: int
    verdict: Literal["gain", "loss", "unclear"]


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A column of the verdict table: the headline of an axis, or the gray-box series beside transfer."""

    axis: str
    title: str
    gray_box: bool = False

    def select(self, result: Result) -> Point | None:
        """Give the point that stands for this topic; of several siblings the one that hurts most."""
        axis = find_axis(result, self.axis)
        if axis is None:
            return None
        headline = next((point for point in axis.points if point.label == axis.headline), None)
        if not self.gray_box:
            return headline
        level = headline.level if headline else None
        twins = [p for p in axis.points if p.series in GRAY_BOX and (level is None or p.level == level)]
        return min(twins, key=lambda p: p.accuracy, default=None)


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one run reached on one topic, and its difference to the baseline or why there is none."""

    run: Run
    topic: Topic
    point: Point | None
    difference: Paired | str | None = None


def axis_title(name: str) -> str:
    """Write the name of an axis in words."""
    return "white-box" if name == "white_box" else name.replace("_", " ")


def find_axis(result: Result, name: str) -> Axis | None:
    """Give the axis of that name, or None where it was not measured."""
    return next((axis for axis in result.axes if axis.name == name), None)


def axis_names(runs: Sequence[Run]) -> list[str]:
    """List the axes of all runs in the order in which they first appear."""
    return list(dict.fromkeys(axis.name for run in runs for axis in run.result.axes))


def topics(runs: Sequence[Run]) -> list[Topic]:
    """List the columns of the verdict table."""
    found = []
    for name in axis_names(runs):
        axes = [axis for run in runs if (axis := find_axis(run.result, name))]
        headline = {point.series for axis in axes for point in axis.points if point.label == axis.headline}
        if not headline or headline - set(GRAY_BOX):
            found.append(Topic(axis=name, title=axis_title(name)))
        if any(point.series in GRAY_BOX for axis in axes for point in axis.points):
            found.append(Topic(axis=name, title="gray-box", gray_box=True))
    return found


def scores(runs: Sequence[Run], columns: Sequence[Topic]) -> list[list[Score]]:
    """Compute the verdict table: one row per run, the baseline first."""
    return [[_score(runs[0], run, topic) for topic in columns] for run in runs]


def _score(base: Run, run: Run, topic: Topic) -> Score:
    point = topic.select(run.result)
    if run is base or point is None:
        return Score(run=run, topic=topic, point=point)
    return Score(
        run=run, topic=topic, point=point, difference=pair(base, run, topic.axis, topic.select(base.result), point)
    )


def partner(axis: Axis | None, point: Point) -> Point | None:
    """Find the baseline's point that ``point`` is to be compared with.

    The same label; for a sibling, whose label names another net in every run, the only sibling of the baseline.
    """
    if axis is None:
        return None
    same = [other for other in axis.points if other.label == point.label and other.series == point.series]
    if not same and point.series in GRAY_BOX:
        same = [other for other in axis.points if other.series in GRAY_BOX and other.level == point.level]
    return same[0] if len(same) == 1 else None


def pair(base: Run, run: Run, axis: str, before: Point | None, after: Point) -> Paired | str:
    """Compare two points image by image, or say in words why that would mislead."""
    if before is None:
        return "the baseline lacks it"
    reason = _other_images(base.result, run.result) or _other_question(base.result, run.result, axis, before, after)
    if reason:
        return reason
    a, b = _outcomes(run.result, axis, after), _outcomes(base.result, axis, before)
    if a is None or b is None:
        return "outcomes per image were not kept"
    mean, low, high = paired_bootstrap(a, b)
    won, lost = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    # a percentile interval of four differing images that agree excludes 0; an exact test does not
    clear = 2 * float(special.bdtr(min(won, lost), won + lost, 0.5)) < 0.05
    verdict: Literal["gain", "loss", "unclear"] = "unclear"
    if clear and low > 0:
        verdict = "gain"
    elif clear and high < 0:
        verdict = "loss"
    return Paired(mean=mean, low=low, high=high, differing=won + lost, verdict=verdict)


def _outcomes(result: Result, axis: str, point: Point) -> npt.NDArray[np.bool_] | None:
    """Give the outcomes behind a point, unless they are missing or belong to something else."""
    kept = result.outcomes_by_point.get(f"{axis}/{point.label}")
    if kept is None or kept.shape != (result.n,) or kept.dtype != np.bool_ or result.n == 0:
        return None
    return kept if abs(float(kept.mean()) - point.accuracy) < 1e-6 else None


def _other_images(base: Result, run: Result) -> str:
    if base.n != run.n:
        return f"other images: {run.n}, the baseline has {base.n}"
    if base.data != run.data:
        return "other data"
    labels = base.arrays.get("labels"), run.arrays.get("labels")
    if labels[0] is None or labels[1] is None:
        return "labels were not kept, so the images cannot be matched"
    return "" if np.array_equal(labels[0], labels[1]) else "the labels differ"


def _other_question(base: Result, run: Result, axis: str, before: Point, after: Point) -> str:
    if axis not in THREAT_FREE and base.threat != run.threat:
        return "other threat"
    if before.level != after.level:
        strengths = [level(p.level, "eps") or "none" for p in (after, before)]
        return f"other strength: {strengths[0]}, the baseline has {strengths[1]}"
    if before.label != after.label and not {before.series, after.series} <= set(GRAY_BOX):
        return "another condition"
    differ = [key for key in SETTINGS if before.details.get(key) != after.details.get(key)]
    return f"other {', '.join(differ)}" if differ else ""
