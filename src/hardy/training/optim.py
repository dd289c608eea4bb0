"""Optimizers, learning rates in closed form, and the moving average of weights."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hardy.errors import ParameterError
from hardy.training.recipe import TrainRecipe

__all__ = ["Average", "learning_rate", "make_optimizer", "set_learning_rate"]


def make_optimizer(
    model: nn.Module, recipe: TrainRecipe, factors: Mapping[nn.Parameter, float] | None = None
) -> torch.optim.Optimizer:
    """Make the optimizer; vectors (biases, norms) are not decayed.

    Args:
        model: The net, with what is attached to it. What is frozen later belongs to the optimizer as well: it passes
            over parameters without a gradient, their decay and momentum included.
        recipe: Which optimizer.
        factors: Factors of the learning rate; 1 where there is none. Each group keeps its own as ``"factor"``.

    Raises:
        ParameterError: nothing to train.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ParameterError("train: the model must have parameters that require gradients; it has none.")
    members: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for p in trained:
        members.setdefault(((factors or {}).get(p, 1.0), p.ndim > 1), []).append(p)
    groups = [
        {"params": members[f, decays], "weight_decay": recipe.weight_decay if decays else 0.0, "factor": f}
        for f in dict.fromkeys(factor for factor, _ in members)
        for decays in (True, False)
        if (f, decays) in members
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group of an optimizer of :func:`make_optimizer` its learning rate: ``lr`` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]


def learning_rate(step: int, steps_per_epoch: int, recipe: TrainRecipe) -> float:
    """Give the learning rate of a step, counted from 0 over the whole training; no state, so nothing to resume.

    Example:
        >>> recipe = TrainRecipe(epochs=2, lr=1.0)
        >>> [round(learning_rate(step, 2, recipe), 3) for step in range(4)]
        [1.0, 0.854, 0.5, 0.146]
    """
    total = recipe.epochs * steps_per_epoch
    warmup = recipe.warmup_epochs * steps_per_epoch
    if step < warmup:
        return recipe.lr * (step + 1) / (math.floor(warmup) + 1)
    done = (step - warmup) / max(1.0, total - warmup)  # share of what follows the warm-up, in [0, 1)
    if recipe.schedule == "cosine":
        return recipe.lr * (1 + math.cos(math.pi * done)) / 2
    if recipe.schedule == "step":
        return recipe.lr * recipe.gamma ** sum(step >= m * total for m in recipe.milestones)
    if recipe.schedule == "one_cycle":
        rise = 0.3
        phase = done / rise - 1 if done < rise else (done - rise) / (1 - rise)
        low = 1 / 25 if done < rise else 0.0
        return recipe.lr * (low + (1 - low) * (1 + math.cos(math.pi * phase)) / 2)
    return recipe.lr


class Average:
    """An exponential moving average of a state dict: ``average = decay * average + (1 - decay) * value``.

    The decay of the first steps is lower, ``(1 + step) / (10 + step)``, so that the initial weights are soon forgotten.
    Integers (counters of batches) are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)

    def load(self, values: dict[str, Tensor], steps: int) -> None:
        """Continue a stopped run."""
        self.steps = steps
        for name, value in values.items():
            self.values[name].copy_(value)
