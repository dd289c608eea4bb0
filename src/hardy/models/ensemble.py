"""Ensembles: several classifiers that answer as one, by the mean of their logits.

The released code of defective convolution (https://arxiv.org/abs/1911.08432) averages the raw logits of five nets with
different masks so; other work averages probabilities, which is another function.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hardy.errors import ParameterError, ShapeError
from hardy.models.classifier import Classifier

__all__ = ["Ensemble"]


class Ensemble(nn.Module):
    """The mean of the raw logits of its members; ``forward`` maps pixels in [0, 1] to logits.

    Each member keeps what is attached to it, its masks above all; attach to the members first. Gradients go through all
    of them. It starts in eval mode if all members are. To keep it in a file, save the members.

    Args:
        members: Classifiers of the same images and classes; at least one.

    Raises:
        ParameterError: no member, or members that differ in channels, number or names of classes.
        ShapeError: on the first images, where members give logits of different shapes.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise ParameterError("Ensemble: there must be at least one member; got none.")
        known = [member for member in members if isinstance(member, Classifier)]
        named = [member.class_names for member in known if member.class_names != _numbers(len(member.class_names))]
        facts: dict[str, Sequence[object]] = {
            "channels": [member.source.in_channels for member in known],
            "number of classes": [member.source.num_classes for member in known],
            "class names": named,
        }
        for what, values in facts.items():
            if other := [value for value in values if value != values[0]]:
                raise ParameterError(
                    f"Ensemble: all members must have the same {what}; got {values[0]} and {other[0]}. "
                    "Choose members that were trained on the same data."
                )
        self.members = nn.ModuleList(members)
        self.training = self.members.training = any(member.training for member in members)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        logits = [member(x) for member in self.members]
        if other := [each.shape for each in logits if each.shape != logits[0].shape]:
            raise ShapeError(
                f"Ensemble: all members must give logits of one shape; got {tuple(logits[0].shape)} and "
                f"{tuple(other[0])}. Choose members with the same classes."
            )
        return torch.stack(logits).mean(dim=0)

    def extra_repr(self) -> str:
        return f"mean of the logits of {len(self.members)}"


def _numbers(count: int) -> tuple[str, ...]:
    """Give the names that classes have where nobody named them."""
    return tuple(map(str, range(count)))
