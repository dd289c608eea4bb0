"""The parts of a result: checks, accuracies, scores, axes, and comparisons with a base."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hardy.stats import mean_interval, wilson

__all__ = ["Axis", "Check", "Outcomes", "Point", "Score", "ScoreKind", "Status", "Versus", "mean_score", "point"]

Outcomes = npt.NDArray[np.bool_]
Status = Literal["pass", "warn", "fail", "not_run"]
ScoreKind = Literal["accuracy", "error", "quality", "description"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """A reason to distrust a number, looked into.

    Attributes:
        code: Stable name, such as ``zero_gradient``.
        status: "pass"; "warn": read the number with care; "fail": do not use the number; "not_run": inputs lacked.
        evidence: What was seen, with its figures.
        remedy: What to do about it; empty when it passed.
        anchor: Heading in docs/checks.md that explains it.
    """

    code: str
    status: Status
    evidence: str
    remedy: str = ""
    anchor: str = ""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One accuracy: under one condition, on all evaluated images.

    Attributes:
        label: What was done, unique in its axis; also the key of the outcomes.
        accuracy: Share of images still classified as labelled, in [0, 1].
        low: Lower bound of the 95 % Wilson interval over images.
        high: Upper bound.
        n: Number of images.
        level: Strength, where the axis is a curve: eps, sigma, grid; in the unit of the axis.
        series: Points of one curve share it ("pgd", "noise control"); empty when the axis has one curve.
        passes: Forward and backward passes spent, summed over images.
        details: Further facts (attack, steps, source net), JSON scalars.
    """

    label: str
    accuracy: float
    low: float
    high: float
    n: int
    level: float | None = None
    series: str = ""
    passes: dict[str, int] = field(default_factory=dict)
    details: dict[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number that is no share of right images under one condition: a mean over conditions, an error, an area.

    Attributes:
        label: What it is, unique in its axis, among its points too.
        value: The number.
        kind: What sort of number: "accuracy" (a mean of accuracies, in [0, 1], which :meth:`Result.accuracy` gives),
            "error" (lower is better), "quality" (higher is better) or "description" (neither).
        n: Number of images behind it.
        low: Lower bound of its 95 % interval over images, if there is one.
        high: Upper bound.
        level: Strength, where scores make a curve; in the unit of the axis.
        series: Scores of one curve or group share it.
        unit: Unit of the value, such as "nats"; empty for shares and areas in [0, 1].
        passes: Forward and backward passes spent on it alone, summed over images.
        details: Further facts, JSON scalars.

    Where the value is the mean over images of one number each, those are in ``Result.arrays`` under ``"axis/label"``,
    float32 (n,), so that two models can be compared image by image.
    """

    label: str
    value: float
    kind: ScoreKind
    n: int
    low: float | None = None
    high: float | None = None
    level: float | None = None
    series: str = ""
    unit: str = ""
    passes: dict[str, int] = field(default_factory=dict)
    details: dict[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One question about robustness, and its answers.

    Attributes:
        name: ``clean``, ``white_box``, ``eps_curve``, ...
        question: The question in plain words.
        headline: Label of the point or score that stands for the axis.
        points: The answers that are accuracies under one condition.
        level_name: What ``level`` of the points is, with its unit; empty where there is none.
        scores: The answers that are other numbers.
    """

    name: str
    question: str
    headline: str
    points: tuple[Point, ...] = ()
    level_name: str = ""
    scores: tuple[Score, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Versus:
    """The model against its base on the headline of one axis, by the same protocol on the same images.

    All rows together are the robustness profile of the model against its base.

    Attributes:
        axis: What was compared.
        base: Name of the base.
        accuracy: Of the model: an accuracy, in [0, 1], or another headline score.
        base_accuracy: Of the base.
        difference: ``accuracy - base_accuracy``.
        low: Lower bound of its 95 % interval (paired bootstrap over images), if there is one number per image.
        high: Upper bound.
        p: Over images: the exact sign test for outcomes, the paired t test for means; None without numbers per image.
        verdict: "better" or "worse" where the interval excludes 0 and p is below 0.05; "description" where more is
            neither; else "unclear".
        label: Label of the headline; empty for the three that the suite decides.
        kind: What sort of number it is, as in :class:`Score`.
    """

    axis: str
    base: str
    accuracy: float
    base_accuracy: float
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    verdict: Literal["better", "worse", "unclear", "description"]
    label: str = ""
    kind: ScoreKind = "accuracy"


def point(label: str, outcomes: Outcomes, **facts: Any) -> Point:
    """Make the record of one condition from its outcomes: accuracy, interval, count; ``facts`` are further fields."""
    n, right = len(outcomes), int(outcomes.sum())
    low, high = wilson(right, n)
    return Point(label=label, accuracy=right / n, low=low, high=high, n=n, **facts)


def mean_score(label: str, values: npt.NDArray[Any], *, kind: ScoreKind, **facts: Any) -> Score:
    """Make the record of a mean over images: value, interval (Student's t; Wilson's where all agree), count.

    Args:
        label: What it is.
        values: One finite number per image, shape (n,); of a mean of accuracies in [0, 1].
        kind: As in :class:`Score`.
        facts: Further fields.
    """
    n, value = len(values), float(values.mean(dtype=np.float64))
    low, high = mean_interval(values)
    if kind == "accuracy":
        low, high = wilson(round(value * n), n) if not low < high < math.inf else (max(0.0, low), min(1.0, high))
    facts |= {"low": low, "high": high} if math.isfinite(low) else {}
    return Score(label=label, value=value, kind=kind, n=n, **facts)
