"""Label smoothing: train towards a mixture of the label and the uniform distribution.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna. "Rethinking the Inception architecture for computer vision". CVPR 2016,
https://arxiv.org/abs/1512.00567 (section 7).
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy import surgery
from hardy.methods._card import Card
from hardy.methods._checks import in_range

__all__ = ["CARD", "LabelSmoothing", "smoothed_cross_entropy"]

CARD = Card(
    name="label_smoothing",
    summary="Train towards labels that are a little uncertain, so that the logits stay small. It shrinks gradients: "
    "read the zero-gradient check before you believe a gain under attack.",
    paper="Szegedy et al., CVPR 2016",
    url="https://arxiv.org/abs/1512.00567",
    kind="loss",
    live=False,
    attaches="the task loss",
    defaults_from="smoothing 0.1 is the paper's value on ImageNet, and that of the label-smoothing baseline in the "
    "released code of defective convolution.",
    deviations=(
        "Spread over all classes, as in the paper; the released code of defective convolution spreads over the others.",
    ),
)


def smoothed_cross_entropy(
    logits: Float[Tensor, "n k"], y: Int[Tensor, "n"] | Float[Tensor, "n k"], *, smoothing: float
) -> Float[Tensor, "n"]:
    """Compute the cross-entropy with ``(1 - smoothing) * label + smoothing / k``.

    Args:
        logits: Outputs of the net.
        y: Labels, or label probabilities from a method that mixes images.
        smoothing: Weight of the uniform distribution, in [0, 1].
    """
    return F.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing)


class LabelSmoothingInsert(surgery.Insert):
    """Replaces the task loss."""

    def task(self, logits: Tensor, y: Tensor) -> Tensor:
        return smoothed_cross_entropy(logits, y, smoothing=self.spec.smoothing)


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing:
    """Label smoothing as a method.

    Attributes:
        smoothing: Weight of the uniform distribution, in [0, 1] (the paper's 0.1).
    """

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        in_range("LabelSmoothing", "smoothing", self.smoothing, 0, 1)

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Define the task loss of ``Objective``; changes no layer."""
        return surgery.insert(model, LabelSmoothingInsert(self, seed=seed), method=CARD.name)
