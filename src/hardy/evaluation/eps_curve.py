"""Axis ``eps_curve``: which budget does the attacker need? Accuracy from eps = 0 down to about 0.

An image broken at a smaller budget stays broken, since the smaller ball lies inside the larger one; only the others are
attacked again, so the whole curve is one pass over the images with few left at its end. The level of the threat takes
what the suite of ``white_box`` found (its passes are counted in both places), the others are the work of APGD alone:
between them the curve is an upper bound. It cannot rise; the check ``monotone_eps`` compares it with ``white_box``,
which attacks every image anew.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy.attacks import APGD
from hardy.evaluation.context import Context, Measured, record
from hardy.evaluation.suite import search, suite_run
from hardy.results import Axis
from hardy.threats import Threat

__all__ = ["bottom", "largest_eps", "measure"]

SERIES = "attack"
FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1)  # of the threat's eps; after that it doubles


def measure(context: Context) -> Measured:
    """Run APGD at growing budgets until accuracy is at the :func:`bottom`, or the budget covers everything."""
    norm, goal = context.threat.norm, context.threat.eps
    alive = context.correct.clone()
    eps_broken = torch.where(alive, torch.inf, 0.0)
    x_adv = context.x.clone()
    outcomes = {f"{norm} 0": alive.clone()}
    points = [record(f"{norm} 0", alive, level=0.0, series=SERIES, passes={"forward": len(alive)})]
    for eps in _levels(context):
        if eps > goal and float(alive.float().mean()) <= bottom(context):
            break
        index = alive.nonzero()[:, 0]
        success, found, details, passes = _search(context, eps, index)
        broken = index[success]
        alive[broken], eps_broken[broken], x_adv[broken] = False, eps, found[success]
        label = str(Threat(norm, eps))
        outcomes[label] = alive.clone()
        details = {**details, "attacked": len(index)}
        points.append(record(label, alive, level=eps, series=SERIES, passes=passes, details=details))
    axis = Axis(
        name="eps_curve",
        question="Which budget does an attacker who knows it need?",
        headline=str(context.threat),
        points=tuple(points),
        level_name=f"eps ({norm}, pixels in [0, 1])",
    )
    run = suite_run(context)
    return Measured(
        axis=axis,
        outcomes=outcomes,
        x_adv=x_adv,
        eps_broken=eps_broken,
        gradients=run.gradients,
        zero_gradients=run.zero_gradients,
    )


def _search(
    context: Context, eps: float, index: Int[Tensor, "m"]
) -> tuple[Bool[Tensor, "m"], Float[Tensor, "m c h w"], dict[str, str | int | float | bool | None], dict[str, int]]:
    """Attack the images in ``index``: which broke, by what, what was done, and the passes it took."""
    if eps == context.threat.eps:
        run = suite_run(context)
        passes: dict[str, int] = {}
        for stage in run.stages:
            passes = {kind: passes.get(kind, 0) + stage.passes.get(kind, 0) for kind in ("forward", "backward")}
        return ~run.standing[index], run.x_adv[index], {"attack": f"suite {context.suite_name}"}, passes
    spec = APGD(steps=context.budget.curve_steps, eot=context.draws)
    if len(index) == 0:
        return index.bool(), context.x[index], {"attack": repr(spec)}, {}
    broken, x_adv, passes = search(context, spec, index, eps=eps)
    return broken, x_adv, {"attack": repr(spec)}, passes


def bottom(context: Context) -> float:
    """Give the accuracy that a working attack reaches at a large budget: about 0, well below chance."""
    return min(context.chance / 2, 0.05)


def largest_eps(context: Context) -> float:
    """Give the budget at which the curve ends: every image can become every other (linf 1) or plain gray (l2, l1)."""
    values = context.x[0].numel()
    return {"linf": 1.0, "l2": 0.5 * math.sqrt(values), "l1": 0.5 * values}[context.threat.norm]


def _levels(context: Context) -> list[float]:
    goal, last = context.threat.eps, largest_eps(context)
    levels = [goal * fraction for fraction in FRACTIONS]
    while levels[-1] < last:
        levels.append(min(2 * levels[-1], last))
    return levels
