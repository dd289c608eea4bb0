"""The verdict against the base: does this defence beat the net that it was made from, under the same protocol?

Published defences have ended below their own base once the attack knew of them. So the base is attacked with the same
suite, the same budget and the same random numbers, each net's worst case counts, each is shown the images made on the
other, and the difference is paired over images. Every other axis is measured on the base as well: the profile.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from hardy.attacks import PGD, SUITES
from hardy.evaluation.adaptive import twin_of
from hardy.evaluation.context import DRAWS, Context, Measured, NotMeasured, Source
from hardy.evaluation.guards import SAME
from hardy.evaluation.suite import confirmed, controls, resolve, suite_run
from hardy.results import ScoreKind, Versus
from hardy.stats import paired_bootstrap, paired_p

__all__ = ["DESCRIPTIONS", "versus"]

LEVEL = 0.05  # of the test
DESCRIPTIONS = ("texture",)  # axes that describe what a net relies on: more is neither better nor worse
Axes = Mapping[str, Callable[[Context], Measured | NotMeasured]]
Values = npt.NDArray[Any]


def versus(context: Context, base: Source, axes: Axes) -> tuple[tuple[Versus, ...], dict[str, Tensor]]:
    """Measure the base as the model was measured and compare, axis by axis.

    The worst case of either net is what its suite, its controls and PGD images made on the other net left standing: the
    same for both, so it may be above that of the axis ``worst_case``, which holds all axes.

    Args:
        context: The question, with all its axes measured.
        base: The un-hardened net.
        axes: How to measure the axes beside those that the suite decides.

    Returns:
        The comparisons, and the base's numbers per image by axis, where there are such.
    """
    other = _asked_of(context, base.model)
    ours: dict[str, Tensor] = {}
    theirs: dict[str, Tensor] = {}
    if "clean" in context.seen or "white_box" in context.seen:
        ours["clean"], theirs["clean"] = context.correct, other.correct
    if "white_box" in context.seen:
        ours["white_box"], theirs["white_box"] = suite_run(context).standing, suite_run(other).standing
        ours["worst_case"] = _weakest(context) & _transfer(context, other)
        theirs["worst_case"] = _weakest(other) & _transfer(other, context)
    made = [_compare(axis, base.name, _array(ours[axis]), _array(theirs[axis])) for axis in ours]
    for name in [name for name in context.seen if name in axes and name not in ("clean", "white_box", "worst_case")]:
        found = axes[name](other)
        if isinstance(found, Measured):
            other.seen[name] = found
            made += _headlines(context.seen[name], found, base.name)
            if (values := _values(found)) is not None:
                theirs[name] = values
    return tuple(made), theirs


def _asked_of(context: Context, model: nn.Module) -> Context:
    """Put the same question to the base; whether its answers are random is its own matter."""
    first, second = (context.logits(context.x, model).nan_to_num(0.0, 0.0, 0.0) for _ in range(2))
    draws = DRAWS if float((first - second).abs().max()) > SAME * float(first.abs().max()) else 1
    wish = context.suite_name if context.suite_name in SUITES else list(context.suite.values())
    _, suite = resolve(wish, context.threat, num_classes=context.num_classes, draws=draws)
    sources = tuple(source for source in context.sources if source.kind == "independent")
    twin = twin_of(model)
    return dataclasses.replace(context, model=model, twin=twin, sources=sources, suite=suite, draws=draws).answered()


def _weakest(context: Context) -> Bool[Tensor, "n"]:
    return torch.stack([suite_run(context).standing, *(~broken for broken in controls(context).values())]).all(dim=0)


def _transfer(target: Context, source: Context) -> Bool[Tensor, "n"]:
    """Show the target the images that PGD makes on the source."""
    spec = PGD(steps=target.budget.transfer_steps)
    found = target.attack(spec, source=source.model, stop="never")
    return ~confirmed(target, found, torch.arange(len(target.x), device=target.x.device)) & target.correct


def _headlines(ours: Measured, theirs: Measured, base: str) -> list[Versus]:
    """Compare the headlines of an axis where they are the same question; image by image where that was kept."""
    axis, label = ours.axis, ours.axis.headline
    first, second = _number(ours), _number(theirs)
    if first is None or second is None or label != theirs.axis.headline:
        return []
    kind: ScoreKind = "description" if axis.name in DESCRIPTIONS else first[1]
    a, b = _values(ours), _values(theirs)
    if a is not None and b is not None and len(a) == len(b):
        return [_compare(axis.name, base, _array(a), _array(b), label=label, kind=kind)]
    return [
        Versus(
            axis=axis.name,
            base=base,
            accuracy=first[0],
            base_accuracy=second[0],
            difference=first[0] - second[0],
            verdict="description" if kind == "description" else "unclear",
            label=label,
            kind=kind,
        )
    ]


def _number(measured: Measured) -> tuple[float, ScoreKind] | None:
    axis = measured.axis
    points: dict[str, tuple[float, ScoreKind]] = {p.label: (p.accuracy, "accuracy") for p in axis.points}
    return (points | {s.label: (s.value, s.kind) for s in axis.scores}).get(axis.headline)


def _values(measured: Measured) -> Tensor | None:
    """Give the numbers per image behind the headline."""
    label = measured.axis.headline
    return measured.outcomes.get(label, measured.arrays.get(label))


def _compare(
    axis: str, base: str, ours: Values, theirs: Values, *, label: str = "", kind: ScoreKind = "accuracy"
) -> Versus:
    mean, low, high = paired_bootstrap(ours, theirs)
    p = paired_p(ours, theirs)
    sign = -1 if kind == "error" else 1
    verdict: Literal["better", "worse", "unclear", "description"] = "unclear"
    if kind == "description":
        verdict = "description"
    elif p < LEVEL and (low > 0 or high < 0):
        verdict = "better" if sign * mean > 0 else "worse"
    return Versus(
        axis=axis,
        base=base,
        accuracy=float(ours.mean(dtype=np.float64)),
        base_accuracy=float(theirs.mean(dtype=np.float64)),
        difference=mean,
        low=low,
        high=high,
        p=p,
        verdict=verdict,
        label=label,
        kind=kind,
    )


def _array(values: Tensor) -> Values:
    return values.cpu().numpy()
