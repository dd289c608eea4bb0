"""What counts: the final image, inside ball and box, predicted again in float32 in one fixed padded shape."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy.attacks.goal import Goal
from hardy.attacks.norms import norm_of
from hardy.attacks.passes import Passes
from hardy.attacks.state import Ball

__all__ = ["TOLERANCE", "Verdict", "inside", "verify"]

TOLERANCE = 1e-6  # rounding allowed outside ball and box; relative for budgets above 1
ROUNDING = 2.0**-24  # l1: allowed for every value in addition; what float32 pixels are rounded by, summed up


@dataclass(frozen=True)
class Verdict:
    """Whether each image reaches its goal (and is inside), and by how much (:meth:`Goal.margin`)."""

    success: Bool[Tensor, "n"]
    margin: Float[Tensor, "n"]
    inside: Bool[Tensor, "n"]


def inside(x_adv: Float[Tensor, "n c h w"], x: Float[Tensor, "n c h w"], threat: Ball) -> Bool[Tensor, "n"]:
    """Say which images are finite, in the box [0, 1] and in the ball around ``x``, up to rounding."""
    flat = x_adv.flatten(1)
    box = (flat >= -TOLERANCE).all(dim=1) & (flat <= 1 + TOLERANCE).all(dim=1)  # False for NaN too
    slack = TOLERANCE * threat.eps.clamp(min=1) + (ROUNDING * flat.shape[1] if threat.norm == "l1" else 0)
    return box & (norm_of(x_adv - x, norm=threat.norm) <= threat.eps + slack)


def verify(
    passes: Passes,
    x_adv: Float[Tensor, "n c h w"],
    *,
    x: Float[Tensor, "n c h w"],
    goal: Goal,
    threat: Ball,
    image: Int[Tensor, "n"],
) -> Verdict:
    """Predict the images again and judge them. ``passes`` calls the attacked model; ``image`` is for its counts."""
    logits = passes.logits(x_adv, image, fixed=True)
    valid = inside(x_adv, x, threat)
    return Verdict(success=goal.reached(logits) & valid, margin=goal.margin(logits), inside=valid)
