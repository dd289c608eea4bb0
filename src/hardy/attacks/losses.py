"""What a search increases: one number per point, from the logits and the goal of its row.

Where a row aims at a class the loss pulls towards it, elsewhere it pushes away from the label.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from hardy.attacks.goal import Goal
from hardy.errors import ParameterError

__all__ = ["Loss", "cross_entropy", "difference_of_logits_ratio", "logit_margin"]

Loss = Callable[[Tensor, Goal], Tensor]  # outputs (m, k) and goals (m rows) to (m,) numbers to increase

FLOOR = 1e-12  # of the denominator of the ratio, as AutoAttack has it


def cross_entropy(logits: Float[Tensor, "m k"], goal: Goal) -> Float[Tensor, "m"]:
    """Compute the cross-entropy of the true class, or minus that of the target where the row aims at one."""
    loss = F.cross_entropy(logits, goal.target, reduction="none")
    return torch.where(_aims(goal), -loss, loss)


def logit_margin(logits: Float[Tensor, "m k"], goal: Goal) -> Float[Tensor, "m"]:
    """Compute the best wrong logit minus that of the label; where the row aims, the target's minus the best other.

    The loss f6 of Carlini and Wagner, "Towards evaluating the robustness of neural networks", S&P 2017,
    https://arxiv.org/abs/1608.04644, without its bound: above 0 where the row has what it wants.
    """
    own, other = _own_and_best_other(logits, goal)
    return torch.where(_aims(goal), own - other, other - own)


def difference_of_logits_ratio(logits: Float[Tensor, "m k"], goal: Goal) -> Float[Tensor, "m"]:
    r"""Compute DLR, which does not change when the logits are scaled or shifted.

    Croce, Hein. "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks".
    ICML 2020, https://arxiv.org/abs/2003.01690. With the logits :math:`z`, sorted
    :math:`z_{(1)} \ge z_{(2)} \ge \dots`, the label :math:`y` and the target :math:`t`:

    - away from the label (Eq. 6): :math:`-(z_y - \max_{i \ne y} z_i) / (z_{(1)} - z_{(3)})`, at least -1;
    - towards a target (Eq. 7): :math:`-(z_y - z_t) / (z_{(1)} - (z_{(3)} + z_{(4)}) / 2)`.

    Args:
        logits: Any scale.
        goal: Of the same rows.

    Raises:
        ParameterError: fewer than 3 classes; fewer than 4 where a row aims at a class.
    """
    aims, k = _aims(goal), logits.shape[1]
    if k < 4:
        _check_classes(k, aims)
    top = logits.topk(min(k, 4), dim=1).values
    label = logits.gather(1, goal.label[:, None])[:, 0]
    best = logits.scatter(1, goal.label[:, None], -torch.inf).max(dim=1).values
    away = (best - label) / (top[:, 0] - top[:, 2] + FLOOR)
    if k < 4:
        return away
    target = logits.gather(1, goal.target[:, None])[:, 0]
    towards = (target - label) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + FLOOR)
    return torch.where(aims, towards, away)


def _aims(goal: Goal) -> Bool[Tensor, "m"]:
    return goal.target != goal.label


def _own_and_best_other(logits: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
    """Give the logit of the class that the row is about (the label where it aims at none), and the best other."""
    centre = goal.target[:, None]
    return logits.gather(1, centre)[:, 0], logits.scatter(1, centre, -torch.inf).max(dim=1).values


def _check_classes(k: int, aims: Bool[Tensor, "m"]) -> None:
    if k < 3:
        raise ParameterError(
            f"DLR loss: the model must have at least 3 outputs, as the loss divides by a difference to the third; "
            f'got {k}. Use "ce" or "margin".'
        )
    if bool(aims.any()):
        raise ParameterError(
            f'targeted DLR loss: the model must have at least 4 outputs; got {k}. Use "ce" or "margin".'
        )
