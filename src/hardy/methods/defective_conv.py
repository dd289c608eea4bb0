"""Defective convolution (Random Mask): silence a fixed random set of neurons, in training and at test time.

Luo, Cai, Zhang, Chen, He, Wang. "Defective convolutional networks". https://arxiv.org/abs/1911.08432, and its
predecessor "Random mask: towards robust convolutional neural networks", https://arxiv.org/abs/2007.14249, whose text
was read (the body of the first was not). Sampling and placement follow the released code.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.errors import AttachError, ShapeError
from hardy.methods._card import Card
from hardy.methods._checks import in_range
from hardy.methods._places import after_norm

__all__ = ["CARD", "DefectiveConv", "DefectiveMask2d", "defective_mask"]

CARD = Card(
    name="defective_conv",
    summary="Set a fixed random set of neurons of the early layers to zero, in training and at test time, so that the "
    "net must use shape more than texture.",
    paper="Luo et al., 2019 (arXiv 1911.08432)",
    url="https://arxiv.org/abs/1911.08432",
    kind="layer",
    live=True,
    attaches="the outputs of convolutions with a kernel above 1 (all, if there are none) in the stem and the first "
    "half of the stages, after their norm and before the activation",
    deviations=(
        "Zeros are exact over the whole tensor, as in the released code; the text says within each channel.",
        "On any net by the rule above; the paper's placement for CIFAR ResNet-18 also masks the projection shortcut.",
    ),
    notes=(
        "The released code names a Chinese patent, no. 202110577422.5: ask a lawyer before you ship a product with it.",
        "A net with masks works at one input size only.",
    ),
)


def defective_mask(shape: tuple[int, int, int], *, keep: float, seed: int, purpose: str) -> Float[Tensor, "c h w"]:
    """Draw a mask with exactly ``floor((1 - keep) c h w)`` zeros, uniformly over all such masks.

    Args:
        shape: Channels, height and width of one feature map.
        keep: Share of the neurons that stay, in [0, 1] (p in the paper, 1 - sigma in its predecessor).
        seed: Seed.
        purpose: Name of the place, so that each layer has a mask of its own.

    Returns:
        Zeros and ones, float32, on the CPU.
    """
    size = math.prod(shape)
    zeros = math.floor((1 - keep) * size + 1e-9)  # 1 - 0.9 is a little more than 0.1
    key = seeding.keys(seeding.root(seed, purpose), torch.zeros(1, dtype=torch.int64))
    order = seeding.permutation(key, 0, size)[0]
    mask = torch.ones(size)
    mask[order[:zeros]] = 0
    return mask.reshape(shape)


class DefectiveMask2d(nn.Module):
    """Multiply a feature map by a fixed mask of zeros and ones, the same for every image and in both modes."""

    mask: Tensor

    def __init__(self, mask: Float[Tensor, "c h w"]) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if x.shape[1:] != self.mask.shape:
            raise ShapeError(
                f"defective_conv: the mask is for {tuple(self.mask.shape)} feature maps; got {tuple(x.shape[1:])}. "
                "A net with masks works at the input size it was attached with: resize the images to it."
            )
        mask = self.mask.to(x.dtype)[None]
        if x.is_contiguous(memory_format=torch.channels_last):  # in the order of x: a product of two orders is slow
            mask = mask.contiguous(memory_format=torch.channels_last)
        return x * mask

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self.mask.shape))}, keep={self.mask.mean().item():.3f}"


@dataclass(frozen=True, kw_only=True)
class DefectiveConv:
    """Defective convolution as a method.

    Attributes:
        keep: Share of the neurons that stay, in [0, 1] (the paper's p; its predecessor reports 0.05 to 0.7).
        sites: Stage names (see the card) or modules; "bottom" is the paper's placement that helps.
    """

    keep: float = 0.5
    sites: tuple[str, ...] = ("bottom",)

    def __post_init__(self) -> None:
        in_range("DefectiveConv", "keep", self.keep, 0, 1)

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Mask the outputs of ``sites`` for good; the masks are buffers, saved with the model."""

        def layer(name: str, y: Tensor) -> DefectiveMask2d:
            if y.ndim != 4:
                raise AttachError(f"defective_conv: {name} must give (n, c, h, w); got {tuple(y.shape)}.")
            shape = (y.shape[1], y.shape[2], y.shape[3])
            return DefectiveMask2d(defective_mask(shape, keep=self.keep, seed=seed, purpose=f"{CARD.name}:{name}"))

        sites, notes = after_norm(model, example, self.sites)
        held = surgery.Insert(self, seed=seed, live=True)
        held.notes = notes
        return surgery.after(model, sites, layer, method=CARD.name, example=example, held=held)
