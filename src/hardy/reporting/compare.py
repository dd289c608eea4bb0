"""Paired differences between runs: the verdict table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from hardy.reporting.refusals import GRAY_BOX, outcomes, refusal, sources_known
from hardy.reporting.runs import Run
from hardy.reporting.trust import WORST
from hardy.results import Axis, Point, Result, ScoreKind
from hardy.results import Score as AxisScore
from hardy.stats import paired_bootstrap, paired_p

__all__ = [
    "DESCRIPTIONS",
    "LEVEL",
    "PROFILE_ONLY",
    "Paired",
    "Score",
    "Topic",
    "as_point",
    "axis_names",
    "axis_title",
    "find_axis",
    "headline",
    "holm",
    "pair",
    "partner",
    "scores",
    "topics",
]

DESCRIPTIONS = ("texture",)  # axes that describe what a net relies on: more is neither better nor worse
# axes without a column in the verdict table: they stand in the profile
PROFILE_ONLY = ("per_class", "calibration", "ood", "occlusion", "frequency", "weights", "certified")
LEVEL = 0.05  # of the test


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Accuracy of a run minus accuracy of the baseline on the same images, each in [-1, 1].

    Attributes:
        mean: The difference.
        low: Lower bound of its 95 % bootstrap interval.
        high: Upper bound.
        differing: Number of images on which exactly one of the two nets is right.
        p: Two-sided p-value, not corrected: the exact sign test for outcomes, the paired t test for means.
        verdict: "gain" or "loss" where the interval excludes 0 and the test agrees, else "unclear"; "description"
            where more is neither better nor worse.
        verified: False where the results do not tell whether the attacks were made on the same other net.
        sign: 1 where more is better, -1 where less is.
    """

    mean: float
    low: float
    high: float
    differing: int
    p: float
    verdict: Literal["gain", "loss", "unclear", "description"]
    verified: bool = True
    sign: int = 1


Difference = Paired | str | None


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
        head = headline(axis)
        if not self.gray_box:
            return head
        level = head.level if head else None
        twins = [p for p in axis.points if p.series in GRAY_BOX and (level is None or p.level == level)]
        return min(twins, key=lambda p: p.accuracy, default=None)


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one run reached on one topic, and its difference to the baseline or why there is none."""

    run: Run
    topic: Topic
    point: Point | None
    difference: Difference = None


def axis_title(name: str) -> str:
    """Write the name of an axis in words."""
    return {"white_box": "white-box", "query": "queries"}.get(name, name.replace("_", " "))


def find_axis(result: Result, name: str) -> Axis | None:
    """Give the axis of that name, or None where it was not measured."""
    return next((axis for axis in result.axes if axis.name == name), None)


def headline(axis: Axis) -> Point | None:
    """Give the accuracy that stands for an axis, be it under one condition or a mean; None for other numbers."""
    for point in axis.points:
        if point.label == axis.headline:
            return point
    return next((as_point(s) for s in axis.scores if s.label == axis.headline and s.kind == "accuracy"), None)


def as_point(score: AxisScore) -> Point:
    """Treat a mean of accuracies as an accuracy."""
    low, high = (score.value if bound is None else bound for bound in (score.low, score.high))
    facts = {"level": score.level, "series": score.series, "passes": score.passes, "details": score.details}
    return Point(label=score.label, accuracy=score.value, low=low, high=high, n=score.n, **facts)  # type: ignore[arg-type]  # the same fields


def axis_names(runs: Sequence[Run]) -> list[str]:
    """List the axes of all runs in the order in which they first appear."""
    return list(dict.fromkeys(axis.name for run in runs for axis in run.result.axes))


def topics(runs: Sequence[Run]) -> list[Topic]:
    """List the columns of the verdict table."""
    found = []
    for name in axis_names(runs):
        axes = [axis for run in runs if (axis := find_axis(run.result, name))]
        if name in PROFILE_ONLY or all(headline(axis) is None for axis in axes):
            continue
        if name in ("eps_curve", "minimal_norm") and all(_says_it_again(run, name) for run in runs):
            continue
        heads = {point.series for axis in axes if (point := headline(axis)) is not None}
        if heads - set(GRAY_BOX):
            found.append(Topic(axis=name, title=axis_title(name)))
        if any(point.series in GRAY_BOX for axis in axes for point in axis.points):
            found.append(Topic(axis=name, title="gray-box", gray_box=True))
    return found


def _says_it_again(run: Run, name: str) -> bool:
    """Say whether the headline of this axis is in the worst case or is the number of white-box, or is not there."""
    axis = find_axis(run.result, name)
    if axis is None or find_axis(run.result, WORST) is not None:
        return True
    attacked = find_axis(run.result, "white_box")
    heads = [next((p for p in a.points if p.label == a.headline), None) for a in (axis, attacked) if a]
    return len(heads) == 2 and heads[0] is not None and heads[1] is not None and heads[0].accuracy == heads[1].accuracy


def scores(runs: Sequence[Run], columns: Sequence[Topic]) -> list[list[Score]]:
    """Compute the verdict table: one row per run, the baseline first; verdicts are corrected for its size."""
    table = [[_score(runs[0], run, topic) for topic in columns] for run in runs]
    corrected = iter(holm([score.difference for row in table for score in row]))
    return [[replace(score, difference=next(corrected)) for score in row] for row in table]


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


def pair(
    base: Run, run: Run, axis: str, before: Point | None, after: Point, *, kind: ScoreKind = "accuracy"
) -> Paired | str:
    """Compare two points, or means over images, image by image, or say in words why that would mislead.

    The verdict holds for this one comparison; :func:`holm` corrects it for a table.
    """
    if before is None:
        return "the baseline lacks it"
    reason = refusal(base.result, run.result, axis, before, after)
    if reason:
        return reason
    a, b = outcomes(run.result, axis, after), outcomes(base.result, axis, before)
    if a is None or b is None:
        return "outcomes per image were not kept"
    mean, low, high = paired_bootstrap(a, b)
    p = paired_p(a, b)
    made = Paired(
        mean=mean,
        low=low,
        high=high,
        differing=int(np.sum(a != b)),
        p=p,
        verdict="description" if axis in DESCRIPTIONS or kind == "description" else "unclear",
        sign=-1 if kind == "error" else 1,
        verified=sources_known(base.result, run.result, before, after),
    )
    return _judged(made, p)


def holm(differences: Sequence[Difference]) -> list[Difference]:
    """Correct the verdicts of a table for the number of differences in it (Holm, Scand. J. Statist. 6, 1979).

    Args:
        differences: All that the table shows; what is no difference, or only describes, is given back as it is.
    """
    corrected = list(differences)
    family = [(d.p, i, d) for i, d in enumerate(differences) if isinstance(d, Paired) and d.verdict != "description"]
    adjusted = 0.0
    for rank, (p, i, difference) in enumerate(sorted(family, key=lambda entry: entry[:2])):
        adjusted = max(adjusted, (len(family) - rank) * p)
        corrected[i] = _judged(difference, adjusted)
    return corrected


def _judged(difference: Paired, p: float) -> Paired:
    """Decide by the interval and this p-value of the sign test; a description is not judged."""
    if difference.verdict == "description":
        return difference
    verdict: Literal["gain", "loss", "unclear"] = "unclear"
    if p < LEVEL and (difference.low > 0 or difference.high < 0):
        verdict = "gain" if difference.sign * difference.mean > 0 else "loss"
    return replace(difference, verdict=verdict)
