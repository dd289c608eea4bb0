"""Axis ``eps_curve``: which budget does the attacker need? Accuracy from eps = 0 down to about 0.

An image broken at a smaller budget stays broken, since the smaller ball lies inside the larger one; only the others are
attacked again. The level of the threat takes what ``white_box`` found (its passes are counted in both places). So the
curve cannot rise; the check ``monotone_eps`` compares it with ``white_box``, which attacks every image anew.
"""

import math

import torch
from torch import Tensor

from hardy.attacks import PGD, AttackResult
from hardy.evaluation.context import Context, Measured, record
from hardy.results import Axis
from hardy.threats import Threat

__all__ = ["bottom", "largest_eps", "measure"]

FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1)  # of the threat's eps; after that it doubles


def measure(context: Context) -> Measured:
    """Run PGD at growing budgets until accuracy is at the :func:`bottom`, or the budget covers everything."""
    norm, goal = context.threat.norm, context.threat.eps
    alive = context.correct.clone()
    eps_broken = torch.where(alive, torch.inf, 0.0)
    x_adv = context.x.clone()
    outcomes = {f"{norm} 0": alive.clone()}
    points = [record(f"{norm} 0", alive, level=0.0, series="pgd", passes={"forward": len(alive)})]
    for eps in _levels(context):
        if eps > goal and float(alive.float().mean()) <= bottom(context):
            break
        index = alive.nonzero()[:, 0]
        attack, rows, found = _search(context, eps, index)
        broken = index[found.success[rows]]
        alive[broken], eps_broken[broken], x_adv[broken] = False, eps, found.x_adv[rows][found.success[rows]]
        label = str(Threat(norm, eps))
        outcomes[label] = alive.clone()
        spent = {"steps": attack.steps, "restarts": attack.restarts, "attacked": len(index)}
        made = record(
            label,
            alive,
            level=eps,
            series="pgd",
            passes=found.passes if len(index) else {},
            details={"attack": "pgd", **spent},
        )
        points.append(made)
    axis = Axis(
        name="eps_curve",
        question="Which budget does an attacker who knows it need?",
        headline=str(context.threat),
        points=tuple(points),
        level_name=f"eps ({norm}, pixels in [0, 1])",
    )
    return Measured(
        axis=axis,
        outcomes=outcomes,
        x_adv=x_adv,
        eps_broken=eps_broken,
        gradients=context.white_box.gradients,
        zero_gradients=context.white_box.zero_gradients,
    )


def _search(context: Context, eps: float, index: Tensor) -> tuple[PGD, Tensor, AttackResult]:
    """Attack the images in ``index``; say how, in which rows of the result they are, and what came out."""
    budget = context.budget
    if eps == context.threat.eps or len(index) == 0:
        return PGD(steps=budget.steps, restarts=budget.restarts), index, context.white_box
    attack = PGD(steps=budget.curve_steps, step_size=budget.step_size)
    return attack, torch.arange(len(index), device=index.device), context.attack(attack, eps=eps, index=index)


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
