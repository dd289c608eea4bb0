"""What a row of an attack wants from the model, and when it has it."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Goal", "predicted"]


def predicted(logits: Float[Tensor, "n k"]) -> Int[Tensor, "n"]:
    """Predict the class of the first largest logit; -1, which is no class, where a logit is NaN."""
    return torch.where(logits.isnan().any(dim=1), -1, logits.argmax(dim=1))


@dataclass(frozen=True)
class Goal:
    """What each row wants from the model.

    Attributes:
        label: The true class.
        target: The class the search aims at; equal to ``label`` where it aims at none (away from the label).
        must_hit: True where only ``target`` counts as success; elsewhere any class but ``label`` does.
    """

    label: Int[Tensor, "n"]
    target: Int[Tensor, "n"]
    must_hit: Bool[Tensor, "n"]

    def reached(self, logits: Float[Tensor, "n k"]) -> Bool[Tensor, "n"]:
        """Say whether the predicted class is a success. NaN logits predict no class: not the label, nor a target."""
        found = predicted(logits)
        return torch.where(self.must_hit, found == self.target, found != self.label)

    def margin(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        """Measure how far success is: correct logit minus best other; where a target must be hit, best other minus it.

        Negative (0 in a tie) where :meth:`reached`; for NaN logits -inf, and inf where a target must be hit.
        """
        centre = torch.where(self.must_hit, self.target, self.label)[:, None]
        own = logits.gather(1, centre)[:, 0]
        other = logits.scatter(1, centre, -torch.inf).amax(dim=1)
        margin = torch.where(self.must_hit, other - own, own - other)
        margin = torch.where(margin.isnan(), 0, margin)  # both infinite: a tie
        broken = torch.where(self.must_hit, torch.inf, -torch.inf)
        return torch.where(logits.isnan().any(dim=1), broken, margin)
