"""Axis ``query``: how many queries does an attacker need who sees only the outputs?

Series "scores": Square, which sees the logits. Series "labels only": HopSkipJump, which sees the predicted class, for
the norms it is defined for. Each runs once, at the threat's budget, and an image is broken after as many queries as it
took to find its first adversarial image inside the ball; the curve reads the accuracy after 10, 30, 100, ... of them.

What is a query: every point whose outputs the search looked at, the adversarial image included. What is not: the
prediction of the plain image (the attacker is told the label) and the verification of the adversarial one. HopSkipJump
asks up to 32 points of an estimate at once; all of them count, though one of the first may have been adversarial. A
find that rounding undoes in the verification costs one more.

Both walks compare single answers, so for a net that answers at random they would follow the noise: not measured there.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hardy.attacks import AttackResult, HopSkipJump, Square
from hardy.attacks.state import AnyAttack
from hardy.evaluation.context import RANDOM, Context, Measured, NotMeasured, record
from hardy.results import Axis, Point

__all__ = ["measure"]

BEFORE, AFTER = 1, 1  # forward passes of a broken image that are no query: plain prediction, verification


def measure(context: Context) -> Measured | NotMeasured:
    """Run both attacks with ``budget.queries`` queries per image.

    ``arrays["scores"]`` and ``arrays["labels_only"]`` (n,) hold the number of queries to the first adversarial image: 0
    where the plain image is classified wrong, inf where none was found.
    """
    if context.draws > 1:
        return NotMeasured("query", RANDOM, "Read white_box, which attacks the expectation of its answers.")
    most, eps = context.budget.queries, context.threat.eps
    attacks: dict[str, AnyAttack] = {
        "scores": Square(queries=max(1, most - 1)),  # the starting point is a query too
        "labels only": HopSkipJump(queries=most),
    }
    points: list[Point] = []
    outcomes: dict[str, Tensor] = {}
    arrays: dict[str, Tensor] = {}
    x_adv, eps_broken = context.x.clone(), torch.where(context.correct, torch.inf, 0.0)
    for series, attack in attacks.items():
        if context.threat.norm not in attack.norms:
            continue
        found = context.attack(attack, stop="first_success")
        count = _queries(context, found)
        arrays[series.replace(" ", "_")] = count
        made = _points(series, count, most, found)
        points += made
        outcomes |= {point.label: count > (point.level or 0) for point in made}
        new = ~outcomes[points[-1].label] & eps_broken.isinf()
        x_adv[new], eps_broken[new] = found.x_adv[new], eps
    seen = "scores or labels" if "labels_only" in arrays else "scores"
    axis = Axis(
        name="query",
        question=f"How many queries does an attacker need who sees only {seen}, within {context.threat}?",
        headline=f"scores, {most} queries",
        points=tuple(points),
        level_name="queries",
    )
    return Measured(axis=axis, outcomes=outcomes, x_adv=x_adv, eps_broken=eps_broken, arrays=arrays)


def _queries(context: Context, found: AttackResult) -> Float[Tensor, "n"]:
    """Count the queries of each image's search until it was broken."""
    count = (found.forward_passes - BEFORE - AFTER).float()
    count = torch.where(found.success, count, torch.inf)
    return torch.where(context.correct, count, 0.0)


def _levels(most: int) -> list[int]:
    """Give 0, 10, 30, 100, 300, ... below ``most``, and ``most``."""
    grid = [digit * 10**power for power in range(1, len(str(most)) + 1) for digit in (1, 3)]
    return [0, *(level for level in grid if level < most), most]


def _points(series: str, count: Float[Tensor, "n"], most: int, found: AttackResult) -> list[Point]:
    """Record the levels of one series; the last also says what the whole search took and found."""
    attacked = count[count > 0]
    points = []
    for level in _levels(most):
        details: dict[str, str | int | float | bool | None] = {"attack": found.attack}
        if level == most and len(attacked):
            details["median_queries"] = float(attacked.median())  # inf, and left out, where most images hold
        label, passes = f"{series}, {level} queries", found.passes if level == most else {}
        made = record(label, count > level, level=float(level), series=series, passes=passes, details=details)
        points.append(made)
    return points
