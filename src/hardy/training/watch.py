"""Stop as soon as a loss is not finite, and say where it began."""

import torch
from torch import Tensor, nn

from hardy.errors import TrainingError

__all__ = ["Watch"]

CHECK_EVERY = 20  # steps between looks on a GPU


class Watch:
    """Looks for losses that are not finite; on a GPU only now and then, since every look waits for the device."""

    def __init__(self, model: nn.Module, device: str) -> None:
        self.model, self.every = model, 1 if device == "cpu" else CHECK_EVERY
        self.first: dict[str, Tensor] = {}
        self.x: Tensor | None = None

    def look(self, step: int, losses: dict[str, Tensor], x: Tensor) -> None:
        """Note which losses of a step are not finite."""
        for name, value in losses.items():
            known = self.first.setdefault(name, torch.full((), -1, dtype=torch.int64, device=value.device))
            bad = ~torch.isfinite(value) & (known < 0)
            self.first[name] = torch.where(bad, step, known)
        self.x = x
        if step % self.every == 0:
            self.check()

    def check(self) -> None:
        """Raise if any loss was not finite so far.

        Raises:
            TrainingError: names the first step, the loss and the culprit.
        """
        steps = {name: int(step) for name, step in self.first.items() if int(step) >= 0}
        if steps:
            name = min(steps, key=lambda n: steps[n])
            raise TrainingError(
                f"train: the loss must be finite; loss {name!r} was not at step {steps[name]}, {self._culprit()}. "
                "Lower lr, warm up (train.warmup_epochs), or clip gradients (train.clip_norm). "
                "The last checkpoint is kept in checkpoints/."
            )

    def check_weights(self, step: int) -> None:
        """Raise if a weight or buffer is not finite: the last gradient may be, though its loss was finite.

        Raises:
            TrainingError: names the first such tensor.
        """
        for name, value in self.model.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise TrainingError(
                    f"train: weights must stay finite; {name} was not after step {step}, though the loss was: a "
                    "gradient overflowed. Lower lr or clip gradients. The last checkpoint is kept in checkpoints/."
                )

    def _culprit(self) -> str:
        """Say where the first value that is not finite is: in the images, the weights, or the output of a layer."""
        if self.x is not None and not bool(torch.isfinite(self.x).all()):
            return "and the images hold values that are not finite"
        for name, value in self.model.named_parameters():
            if not bool(torch.isfinite(value).all()):
                return f"and the weights of {name} are not finite after it"
        return "while images and weights are finite: the loss itself overflowed"
