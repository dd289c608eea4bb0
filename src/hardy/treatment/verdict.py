"""Is the patient better? Every number of before, control and treated side by side, and the difference that counts.

The control had the same further training without the treatment, so that treated minus control is what the treatment
did; treated minus before is what the patient's owner gets. Differences are paired: by training, each with the control
of the same seed, and by image. Patient and test images are the same in all trainings: nothing is said of others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hardy.errors import ParameterError
from hardy.evaluation.versus import DESCRIPTIONS
from hardy.records import ScoreKind
from hardy.results import Result
from hardy.stats import mean_interval, paired_bootstrap, paired_p

__all__ = ["ENOUGH", "Gain", "gains"]

ENOUGH = 3  # trainings that an interval over trainings needs
LEVEL = 0.05  # of the test over images
BRIER = "Brier score"
Values = npt.NDArray[Any]
Over = Literal["trainings", "images", ""]
Word = Literal["better", "worse", "unclear", "description"]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """One number of before, control and treated; means over trainings, in the unit of the number.

    Attributes:
        axis: Of the evaluation.
        label: What of it: its headline, or a class.
        kind: "accuracy" and "quality": more is better; "error": less is; "description": neither.
        before: Of the patient.
        control: After the same further training without the treatment.
        treated: After the treatment.
        difference: ``treated - control``.
        low: Lower bound of its 95 % interval; for classes the intervals hold for all at once (Bonferroni).
        high: Upper bound.
        change: ``treated - before``.
        change_low: Lower bound of its interval, likewise.
        change_high: Upper bound.
        over: What the interval is over: "trainings" (Student's t on the paired differences of at least 3), "images"
            (paired bootstrap: it speaks of these nets only), "" where there is none.
        verdict: Against the control: "better" or "worse" where the interval excludes 0 and, over trainings, they are
            not all alike and an accuracy still does when widened by one image at both ends (1 / n, the resolution of n
            images), or, over images, a test agrees; "unclear", or "description".
        against_before: Likewise against the patient.
    """

    axis: str
    label: str
    kind: ScoreKind
    before: float
    control: float
    treated: float
    difference: float
    change: float
    low: float | None = None
    high: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    over: Over = ""
    verdict: Word = "unclear"
    against_before: Word = "unclear"


@dataclass(frozen=True)
class _Row:
    """One number of one evaluation, with the numbers per image that it is the mean of, if there are any."""

    axis: str
    label: str
    kind: ScoreKind
    value: float
    values: Values | None
    n: int  # images behind it
    together: int = 1  # how many rows an interval must hold for at once


def gains(before: Result, controls: Sequence[Result], treated: Sequence[Result]) -> tuple[Gain, ...]:
    """Compare the treated nets with their controls, number by number.

    Args:
        before: The patient's evaluation.
        controls: One for each training, in the order of seeds.
        treated: Likewise, on the same images.

    Returns:
        Clean accuracy first, then other axes in their order, then the accuracy of every class.

    Raises:
        ParameterError: not as many controls as treated nets, none, or other images.
    """
    if not controls or len(controls) != len(treated):
        raise ParameterError(
            f"gains: each treated net must have its control; got {len(treated)} and {len(controls)} of them."
        )
    asked = {(r.arrays["images"].tobytes(), r.arrays["labels"].tobytes()) for r in (before, *controls, *treated)}
    if len(asked) > 1:
        raise ParameterError("gains: all must be evaluated on the same images and labels; got different ones.")
    rows = [_rows(result) for result in (before, *controls, *treated)]
    known = [key for key in rows[0] if all(key in each for each in rows)]
    return tuple(
        _gain(rows[0][key], [r[key] for r in rows[1 : 1 + len(controls)]], [r[key] for r in rows[1 + len(controls) :]])
        for key in known
    )


def _rows(result: Result) -> dict[tuple[str, str], _Row]:
    """List the numbers of an evaluation that two nets can be compared by."""
    found: list[_Row] = []
    for axis in result.axes:
        labels = [axis.headline]
        if axis.name == "calibration":
            labels.append(BRIER)
        found += [row for label in labels if (row := _row(result, axis.name, label)) is not None]
    return {(row.axis, row.label): row for row in [*found, *_classes(result)]}


def _row(result: Result, name: str, label: str) -> _Row | None:
    axis = result.axis(name)
    points: dict[str, tuple[float, ScoreKind]] = {p.label: (p.accuracy, "accuracy") for p in axis.points}
    number = (points | {s.label: (s.value, s.kind) for s in axis.scores}).get(label)
    if number is None:
        return None
    key = f"{name}/{label}"
    values = result.outcomes_by_point.get(key, result.arrays.get(key))
    kind: ScoreKind = "description" if name in DESCRIPTIONS else number[1]
    return _Row(name, label, kind, number[0], values, result.n)


def _classes(result: Result) -> list[_Row]:
    """Give the clean accuracy of each class that has images; values of other images are NaN."""
    if "clean" not in [axis.name for axis in result.axes]:
        return []
    right = np.asarray(result.outcomes("clean"), dtype=np.float64)
    labels = result.arrays["labels"]
    present = [c for c in range(result.num_classes) if (labels == c).any()]
    return [
        _Row(
            "clean",
            f"class {result.class_names[c]}",
            "accuracy",
            float(right[labels == c].mean()),
            right[labels == c],
            int((labels == c).sum()),
            len(present),
        )
        for c in present
    ]


def _gain(before: _Row, controls: list[_Row], treated: list[_Row]) -> Gain:
    against = _against(controls, treated)
    change = _against([before] * len(treated), treated)
    return Gain(
        axis=before.axis,
        label=before.label,
        kind=before.kind,
        before=before.value,
        control=float(np.mean([c.value for c in controls])),
        treated=float(np.mean([t.value for t in treated])),
        difference=against.value,
        low=against.low,
        high=against.high,
        over=against.over,
        verdict=against.word,
        change=change.value,
        change_low=change.low,
        change_high=change.high,
        against_before=change.word,
    )


@dataclass(frozen=True)
class _Difference:
    value: float
    low: float | None
    high: float | None
    over: Over
    word: Word


def _against(others: list[_Row], treated: list[_Row]) -> _Difference:
    """Compare treated nets with others, pair by pair."""
    first = others[0]
    paired = np.array([t.value - c.value for t, c in zip(treated, others, strict=True)], dtype=np.float64)
    low, high, over, sure = _interval(paired, others, treated)
    value = float(paired.mean())
    edge = 1 / first.n + 1e-9 if over == "trainings" and first.kind == "accuracy" else 0.0
    word: Word = "unclear"
    if first.kind == "description":
        word = "description"
    elif sure:
        low_, high_ = (value, value) if low is None or high is None else (low, high)
        if low_ > edge or high_ < -edge:
            word = "better" if (low_ > 0) is (first.kind != "error") else "worse"
    return _Difference(value, low, high, over, word)


def _interval(
    paired: npt.NDArray[np.float64], others: list[_Row], treated: list[_Row]
) -> tuple[float | None, float | None, Over, bool]:
    """Bound the difference, over trainings if there are enough, and say whether a test agrees."""
    level = 1 - LEVEL / others[0].together
    if len(paired) >= ENOUGH:
        low, high = mean_interval(paired, level=level)
        resolved = others[0].kind == "accuracy" or low < high  # accuracies have their own edge
        return low, high, "trainings", resolved
    if any(row.values is None for row in (*others, *treated)):
        return None, None, "", False
    ours, theirs = (np.mean([np.asarray(row.values, np.float64) for row in rows], axis=0) for rows in (treated, others))
    _, low, high = paired_bootstrap(ours, theirs, level=level)
    outcomes = len(paired) == 1 and others[0].values is not None and others[0].values.dtype == np.bool_
    p = paired_p(treated[0].values, others[0].values) if outcomes else paired_p(ours, theirs)  # type: ignore[arg-type]  # not None
    if low == high:  # all images changed alike, or none: nothing to resample, and the test alone decides
        return None, None, "images", p < LEVEL / others[0].together
    return low, high, "images", p < LEVEL / others[0].together
