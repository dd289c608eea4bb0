"""Axis ``worst_case``: how often does nothing that was tried within the threat fool the model?

One image counts as broken if any axis broke it within the threat: the mean over images of the minimum over attacks, not
the minimum over attacks of the means. A defence is as good as its worst case; the weaker of two attacks proves nothing.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from hardy.evaluation.context import Context, Measured, NotMeasured, record
from hardy.evaluation.suite import controls
from hardy.results import Axis

__all__ = ["ADVERSARIAL", "LABEL", "measure"]

ADVERSARIAL = ("white_box", "eps_curve", "minimal_norm", "frequency", "transfer", "query")
OTHER_LEVELS = ("query", "frequency")  # axes within the threat at every level, which is no eps
LABEL = "worst case"


def measure(context: Context) -> Measured | NotMeasured:
    """Join, per image, what the axes before found within the threat; nothing is attacked anew."""
    found = {name: _standing(context, context.seen[name]) for name in ADVERSARIAL if name in context.seen}
    if not found:
        return NotMeasured("worst_case", "no axis attacked the model", "Add white_box to the axes.")
    if "white_box" in found:
        for name, broken in controls(context).items():
            found[f"control {name}"] = context.correct & ~broken
    worst = torch.stack(list(found.values())).all(dim=0)
    outcomes = {name: right for name, right in found.items() if not name.startswith("control")}
    points = [
        record(
            name, right, level=context.threat.eps, series="one axis", passes={}, details=_alone(name, found, context)
        )
        for name, right in outcomes.items()
    ]
    whole = record(
        LABEL,
        worst,
        level=context.threat.eps,
        series=LABEL,
        passes={},
        details={"axes": ", ".join(outcomes), "norm": context.threat.norm},
    )
    axis = Axis(
        name="worst_case",
        question=f"How often does nothing that was tried within {context.threat} fool it?",
        headline=LABEL,
        points=(whole, *points),
        level_name=f"eps ({context.threat.norm}, pixels in [0, 1])",
    )
    return Measured(axis=axis, outcomes={LABEL: worst, **outcomes})


def _standing(context: Context, measured: Measured) -> Bool[Tensor, "n"]:
    """Say which images every condition of an axis within the threat left right; more queries than needed do no harm."""
    right = context.correct.clone()
    for point in measured.axis.points:
        within = measured.axis.name in OTHER_LEVELS or point.level is None or point.level <= context.threat.eps
        if within:
            right &= measured.outcomes[point.label]
    return right


def _alone(
    name: str, found: dict[str, Bool[Tensor, "n"]], context: Context
) -> dict[str, str | int | float | bool | None]:
    """Count the images that this axis broke, and those that no other did."""
    others = [right for other, right in found.items() if other != name]
    rest = torch.stack(others).all(dim=0) if others else context.correct
    broken = context.correct & ~found[name]
    return {"broke": int(broken.sum()), "broke_alone": int((broken & rest).sum())}
