"""Cutout: blank one square of a training image.

DeVries, Taylor. "Improved regularization of convolutional neural networks with cutout". 2017,
https://arxiv.org/abs/1708.04552 (section 3).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.methods._card import Card
from hardy.methods._checks import in_range

__all__ = ["CARD", "Cutout", "cutout", "squares"]

CARD = Card(
    name="cutout",
    summary="Blank one square of a training image, anywhere, so that the net uses the whole object instead of its most "
    "telling part.",
    paper="DeVries and Taylor, arXiv 2017",
    url="https://arxiv.org/abs/1708.04552",
    kind="input",
    live=False,
    attaches="the input, pixels in [0, 1]",
    defaults_from="size 0.5 is the 16 of 32 pixels that the released code's README gives for CIFAR-10 (it gives 8 for "
    "CIFAR-100 and 20 for SVHN: sizes 0.25 and 0.625); every image is cut; fill 0.5 is ours, see the deviations.",
    deviations=(
        "The paper fills with 0 after normalisation, which is the mean of the data. Here normalisation is inside the "
        "net, so pixels are filled, with mid-grey unless told otherwise (channel means of CIFAR-10: 0.49, 0.48, 0.45).",
        "The size is a share of the short side instead of a number of pixels, so that one recipe fits any net.",
        "A square of an odd number of pixels has that side; the released code makes it one pixel smaller.",
    ),
)


def cutout(
    x: Float[Tensor, "n c h w"], *, size: float, fill: float, p: float, key: Int[Tensor, "n"]
) -> Float[Tensor, "n c h w"]:
    """Fill one square in each of some random images.

    Args:
        x: Images, pixels in [0, 1].
        size: Side of the square as a share of the short side of the image, in [0, 1].
        fill: Value of the blanked pixels, in [0, 1].
        p: Probability that an image is cut, in [0, 1].
        key: Source of randomness, one per row.

    Returns:
        A new tensor; pixels outside the squares are bit-equal.
    """
    inside = squares(key, (x.shape[2], x.shape[3]), size=size)
    inside &= (seeding.uniform(key, 0, ()) < p)[:, None, None, None]
    inside = torch.empty_like(x, dtype=torch.bool).copy_(inside)  # in the memory format of x, which where() then keeps
    return torch.where(inside, x.new_tensor(fill), x)


def squares(key: Int[Tensor, "n"], shape: tuple[int, int], *, size: float) -> Bool[Tensor, "n 1 h w"]:
    """Draw one square for each row: its centre is a uniform pixel, so that part of it may lie outside the image.

    Args:
        key: Source of randomness, one per row.
        shape: Height and width of the images.
        size: Side of the square as a share of the short side, in [0, 1]; rounded to whole pixels.

    Returns:
        True inside the squares.
    """
    h, w = shape
    side = round(size * min(h, w))
    centre = seeding.uniform(key, 1, (2,))
    top, left = (centre[:, i] * length // 1 - side // 2 for i, length in enumerate((h, w)))
    rows, columns = torch.arange(h, device=key.device), torch.arange(w, device=key.device)
    in_rows = (rows >= top[:, None]) & (rows < top[:, None] + side)
    in_columns = (columns >= left[:, None]) & (columns < left[:, None] + side)
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


class CutoutInsert(surgery.Insert):
    """Blanks a square in training images."""

    def inputs(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        s: Cutout = self.spec
        return cutout(x, size=s.size, fill=s.fill, p=s.p, key=key), y


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """Cutout as a method; the defaults are those for CIFAR-10, scaled to any size.

    Attributes:
        size: Side of the square as a share of the short side of the image, in [0, 1] (16 of 32 pixels).
        fill: Value of the blanked pixels, in [0, 1].
        p: Probability that an image is cut, in [0, 1] (the paper cuts every image).
    """

    size: float = 0.5
    fill: float = 0.5
    p: float = 1.0

    def __post_init__(self) -> None:
        in_range("Cutout", "size", self.size, 0, 1)
        in_range("Cutout", "fill", self.fill, 0, 1)
        in_range("Cutout", "p", self.p, 0, 1)

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Cut in the batches that ``Objective`` gives to the model; changes no layer."""
        return surgery.insert(model, CutoutInsert(self, seed=seed), method=CARD.name)
