"""What the minimum-norm attacks share: which points count, and what they hand to the engine."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hardy.attacks.goal import Goal
from hardy.attacks.norms import norm_of, project
from hardy.attacks.state import Ball

__all__ = ["pull_inside", "safe_margin", "surely_reached"]

SURE = 1e-5  # of the largest logit


def safe_margin(logits: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
    """Give the size of a margin that the rounding of another batch shape does not undo; 0 for logits not finite.

    An attack that walks on the decision boundary ends where margins are within rounding of 0. The engine predicts its
    result once more, in another shape; a point that is no success there would count as robust.
    """
    return SURE * torch.nan_to_num(logits.abs().amax(dim=1), nan=0.0, posinf=0.0)


def surely_reached(goal: Goal, logits: Float[Tensor, "n k"]) -> Bool[Tensor, "n"]:
    """Say where the goal is reached by at least the :func:`safe_margin`."""
    return goal.reached(logits) & (goal.margin(logits) <= -safe_margin(logits))


def pull_inside(x_adv: Float[Tensor, "n c h w"], x: Float[Tensor, "n c h w"], ball: Ball) -> Float[Tensor, "n c h w"]:
    """Leave images inside the threat's ball bit for bit as they are; project the others to its border."""
    outside = (norm_of(x_adv - x, norm=ball.norm) > ball.eps)[:, None, None, None]
    return torch.where(outside, project(x_adv, x=x, eps=ball.eps, norm=ball.norm), x_adv)
