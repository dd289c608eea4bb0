"""Axis ``minimal_norm``: how small a change of each image suffices?

The minimum-norm attacks defined for the norm search without a budget (that is, within the largest one,
:func:`hardy.evaluation.eps_curve.largest_eps`), and the nearest adversarial image that any of them found counts. Every
distance is measured on an image that the engine has verified, so it is an upper bound of the true one, and the
accuracies are upper bounds too. ``eps_curve`` asks the same of APGD, one budget after the other.

Of a net that answers at random one lucky answer would end the search: not measured there.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hardy.attacks import FAB, FMN
from hardy.attacks.norms import norm_of
from hardy.attacks.state import AnyAttack
from hardy.evaluation.context import RANDOM, Context, Measured, NotMeasured, record
from hardy.evaluation.eps_curve import FRACTIONS, bottom, largest_eps
from hardy.results import Axis, Point
from hardy.threats import Threat

__all__ = ["TARGETS", "measure"]

TARGETS = 3  # likely wrong classes that FAB walks to; on digits 9 take three times as long and shorten the mean by 1 %


def measure(context: Context) -> Measured | NotMeasured:
    """Search for the nearest adversarial image; accuracy at eps is the share of images that have none within eps.

    ``arrays["distance"]`` (n,) holds the distances, in the norm of the threat and pixels in [0, 1]: 0 where the plain
    image is classified wrong, inf where no attack found an adversarial image.
    """
    if context.draws > 1:
        return NotMeasured("minimal_norm", RANDOM, "Read eps_curve, which attacks the expectation of its answers.")
    norm = context.threat.norm
    distance = torch.where(context.correct, torch.inf, 0.0)
    x_adv, nearest = context.x.clone(), torch.full_like(context.y, -1)
    passes = {"forward": 0, "backward": 0}
    attacks = _attacks(context)
    for number, attack in enumerate(attacks):
        found = context.attack(attack, eps=largest_eps(context), stop="min_norm")
        length = norm_of(found.x_adv - context.x, norm=norm)
        nearer = found.success & (length < distance)  # never where the plain image is wrong
        distance[nearer], x_adv[nearer], nearest[nearer] = length[nearer], found.x_adv[nearer], number
        passes = {kind: count + found.passes[kind] for kind, count in passes.items()}
    right = distance[context.correct]
    details: dict[str, str | int | float | bool | None] = {
        "attack": ", ".join(attack.name for attack in attacks),
        "steps": context.budget.min_norm_steps,
        "fab_targets": TARGETS,
        "attacked": len(right),
        "not_found": int(right.isinf().sum()),
        "median_distance": _median(right),
        **{f"nearest_by_{attack.name}": int((nearest == i).sum()) for i, attack in enumerate(attacks)},
    }
    points = _points(context, distance, passes, details)
    axis = Axis(
        name="minimal_norm",
        question="How small a change suffices?",
        headline=str(context.threat),
        points=points,
        level_name=f"eps ({norm}, pixels in [0, 1])",
    )
    return Measured(
        axis=axis,
        outcomes={point.label: distance > (point.level or 0.0) for point in points},
        x_adv=x_adv,
        eps_broken=distance,
        arrays={"distance": distance},
    )


def _attacks(context: Context) -> list[AnyAttack]:
    """Give the minimum-norm attacks that are defined for the norm."""
    steps = context.budget.min_norm_steps
    attacks: list[AnyAttack] = [FMN(steps=steps), FAB(steps=steps, restarts=TARGETS)]
    return [attack for attack in attacks if context.threat.norm in attack.norms]


def _points(
    context: Context,
    distance: Float[Tensor, "n"],
    passes: dict[str, int],
    details: dict[str, str | int | float | bool | None],
) -> tuple[Point, ...]:
    """Read the accuracies at the levels of ``eps_curve``; the threat's one carries what the search took and found."""
    norm, goal, last = context.threat.norm, context.threat.eps, largest_eps(context)
    points = [record(f"{norm} 0", distance > 0, level=0.0, passes={})]
    eps = goal * FRACTIONS[0]
    while True:
        facts = (passes, details) if eps == goal else ({}, {"attack": details["attack"], "steps": details["steps"]})
        made = record(str(Threat(norm, eps)), distance > eps, level=eps, passes=facts[0], details=facts[1])
        points.append(made)
        if eps >= goal and (made.accuracy <= bottom(context) or eps >= last):
            return tuple(points)
        eps = 2 * eps if eps < goal else min(2 * eps, last)


def _median(values: Tensor) -> float:
    """Give the (lower) median; inf where half of the values are, NaN where there are none."""
    return float(values.median()) if len(values) else torch.nan
