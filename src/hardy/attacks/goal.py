"""What a row of an attack wants from the model, and when it has it."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Goal"]


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
        """Say whether the predicted class (first largest logit) is a success. NaN logits are a wrong prediction."""
        predicted = logits.argmax(dim=1)
        wrong = (predicted != self.label) | logits.isnan().any(dim=1)
        return torch.where(self.must_hit, predicted == self.target, wrong)

    def margin(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        """Measure how far success is: correct logit minus best other; where a target must be hit, best other minus it.

        Negative where :meth:`reached`; -inf for NaN logits.
        """
        centre = torch.where(self.must_hit, self.target, self.label)[:, None]
        own = logits.gather(1, centre)[:, 0]
        other = logits.scatter(1, centre, -torch.inf).amax(dim=1)
        margin = torch.where(self.must_hit, other - own, own - other)
        return torch.where(margin.isnan(), -torch.inf, margin)
