"""Fills: what an image shows where something was dropped.

A black square is itself unlike any photo, so a model may fail because of the square and not because of what it hides.
Four fills that err in different ways tell the two apart: black, the mean colour of the data, noise, and a blurred copy
of the image. Every fill is a whole image; the occlusions take from it what they need.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hardy import seeding
from hardy.errors import ParameterError

__all__ = ["blur_fill", "channel_mean", "mean_fill", "noise_fill", "zero_fill"]

GRAYS = 255


def zero_fill(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Give black images of the shape of ``x``; a view that takes no memory."""
    return x.new_zeros(()).expand_as(x)


def mean_fill(x: Float[Tensor, "n c h w"], *, mean: Float[Tensor, "c"]) -> Float[Tensor, "n c h w"]:
    """Give images of one colour and the shape of ``x``; a view that takes no memory.

    Args:
        x: Images.
        mean: The colour, in [0, 1], such as :func:`channel_mean` of the data set.
    """
    return mean.to(x)[:, None, None].expand_as(x)


def channel_mean(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "c"]:
    """Average the pixels of all images, per channel: one colour for a whole data set.

    It is rounded to a whole gray level (1/255), so that it does not depend on the order in which numbers are added.
    """
    return (x.float().mean(dim=(0, 2, 3)) * GRAYS).round() / GRAYS


def noise_fill(x: Float[Tensor, "n c h w"], *, key: Int[Tensor, "n"], counter: int = 0) -> Float[Tensor, "n c h w"]:
    """Draw images of independent uniform noise in [0, 1), of the shape of ``x``.

    Args:
        x: Images; only their shape matters.
        key: One int64 per row, the source of its noise.
        counter: Which draw of these keys.
    """
    return seeding.uniform(key, counter, x.shape[1:]).to(x.dtype)


def blur_fill(x: Float[Tensor, "n c h w"], *, cells: int) -> Float[Tensor, "n c h w"]:
    """Blur each image heavily: average it in ``cells`` x ``cells`` cells and enlarge these bilinearly.

    This has no border effects and works for any size; of what is finer than a cell nothing is left.

    Args:
        x: Pixels in [0, 1].
        cells: Cells per side, at least 1; a side shorter than that is not shrunk.

    Returns:
        Pixels in [0, 1], like ``x``.

    Raises:
        ParameterError: fewer than one cell.
    """
    if cells < 1:
        raise ParameterError(f"blur_fill: cells must be at least 1; got {cells}.")
    h, w = x.shape[2:]
    small = F.adaptive_avg_pool2d(x.contiguous(), (min(cells, h), min(cells, w)))
    large: Tensor = F.interpolate(small, size=(h, w), mode="bilinear", align_corners=False)
    return torch.clamp(large, 0, 1)
