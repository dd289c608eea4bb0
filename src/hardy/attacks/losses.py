"""What a search increases: one number per point, from the logits and the goal of its row."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hardy.attacks.goal import Goal

__all__ = ["Loss", "cross_entropy"]

Loss = Callable[[Tensor, Goal], Tensor]  # outputs (m, k) and goals (m rows) to (m,) numbers to increase


def cross_entropy(logits: Float[Tensor, "m k"], goal: Goal) -> Float[Tensor, "m"]:
    """Compute the cross-entropy of the true class, or minus that of the target where the row aims at one."""
    aims = goal.target != goal.label
    loss = F.cross_entropy(logits, goal.target, reduction="none")
    return torch.where(aims, -loss, loss)
