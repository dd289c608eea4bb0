"""What is done to training images, each by numbers that its key decides: crop, flip, and random resized crop."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Int64, UInt8
from torch import Tensor

from hardy.errors import ParameterError, did_you_mean
from hardy.seeding import fold, root, uniform

__all__ = ["Augment", "augment_images", "check_augment", "crop_flip", "cut_resize", "draw", "draw_boxes"]

Augment = Literal["crop", "flip", "resized_crop"]
SCALE = (0.08, 1.0)  # share of the area that a resized crop takes
RATIO = (3 / 4, 4 / 3)  # its width over its height
ATTEMPTS = 10
BITS = 11  # of a bilinear weight: two of them and a pixel fit into 32 bits, so that integer sums do
ONE = 1 << BITS


def check_augment(names: Sequence[str]) -> tuple[str, ...]:
    """Refuse names of no augmentation, and "crop" beside "resized_crop".

    Raises:
        ParameterError: the message says which name is meant.
    """
    for name in names:
        if name not in get_args(Augment):
            raise ParameterError(f"augment: no augmentation {name!r}; {did_you_mean(name, get_args(Augment))}")
    if {"crop", "resized_crop"} <= set(names):
        raise ParameterError('augment: must have at most one of "crop" and "resized_crop"; got both.')
    return tuple(names)


def augment_images(
    x: UInt8[Tensor, "n c h w"], key: Int64[Tensor, "n"], names: Sequence[str]
) -> UInt8[Tensor, "n c h w"]:
    """Do what ``names`` say to images of one size, which they keep; each image's numbers come from its key."""
    if not names or not len(x):
        return x
    h, w = x.shape[2:]
    pad = max(1, min(h, w) // 8) if "crop" in names else 0
    top, left, flip = draw(key, pad=pad, flip="flip" in names)
    if "resized_crop" in names:
        return cut_resize(x, box=draw_boxes(key, height=h, width=w), flip=flip)
    return crop_flip(x, top=top, left=left, flip=flip, pad=pad)


def draw(
    key: Int64[Tensor, "n"], *, pad: int, flip: bool
) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"], Bool[Tensor, "n"]]:
    """Draw the window's top and left in 0 .. 2 pad, uniformly, and whether to mirror, with probability 1/2.

    Each is a draw of its own: crops are the same with and without flips.
    """
    u = uniform(fold(key, root(0, "augment")), 0, (3,))
    offsets = (u[:, :2] * (2 * pad + 1)).long()
    return offsets[:, 0], offsets[:, 1], (u[:, 2] < 0.5) & flip


def draw_boxes(
    key: Int64[Tensor, "n"], *, height: int | Int[Tensor, "n"], width: int | Int[Tensor, "n"]
) -> Int64[Tensor, "n 4"]:
    """Draw the window of a random resized crop, distributed as in torchvision's ``RandomResizedCrop``.

    A share of the area, uniform in [0.08, 1], and a ratio of width to height, log-uniform in [3/4, 4/3]; of ten such
    attempts the first that fits into the image is put anywhere in it, uniformly. If none fits, the window is the
    largest with an allowed ratio, in the centre.

    Args:
        key: One per image.
        height: Of the images, in pixels.
        width: Likewise.

    Returns:
        Top, left, height and width of each window, in pixels.
    """
    u = uniform(fold(key, root(0, "resized_crop")), 0, (2 * ATTEMPTS + 2,)).double()
    tall = torch.as_tensor(height, device=key.device).expand(len(key))[:, None]
    wide = torch.as_tensor(width, device=key.device).expand(len(key))[:, None]
    area = (tall * wide) * (SCALE[0] + (SCALE[1] - SCALE[0]) * u[:, :ATTEMPTS])
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = torch.exp(low + (high - low) * u[:, ATTEMPTS : 2 * ATTEMPTS])
    h, w = torch.round(torch.sqrt(area / ratio)), torch.round(torch.sqrt(area * ratio))
    fits = (h > 0) & (h <= tall) & (w > 0) & (w <= wide)
    first = fits.int().argmax(dim=1, keepdim=True)
    found = fits.any(dim=1, keepdim=True)
    h = torch.where(found, h.gather(1, first), torch.minimum(tall, torch.round(wide / RATIO[0]))).long()
    w = torch.where(found, w.gather(1, first), torch.minimum(wide, torch.round(tall * RATIO[1]))).long()
    top = torch.where(found, (u[:, -2:-1] * (tall - h + 1)).long(), (tall - h) // 2)
    left = torch.where(found, (u[:, -1:] * (wide - w + 1)).long(), (wide - w) // 2)
    return torch.cat([top, left, h, w], dim=1)


def crop_flip(
    x: UInt8[Tensor, "n c h w"],
    *,
    top: Int[Tensor, "n"],
    left: Int[Tensor, "n"],
    flip: Bool[Tensor, "n"],
    pad: int,
) -> UInt8[Tensor, "n c h w"]:
    """Pad with zeros, cut a window of the old size out of every image, and mirror some of them left to right.

    Args:
        x: Images.
        top: First row of the window in the padded image, in 0 .. 2 pad.
        left: First column, in 0 .. 2 pad.
        flip: Which windows to mirror.
        pad: Width of the border, in pixels.

    Returns:
        New images of the old size and dtype.
    """
    n, c, h, w = x.shape
    wide = w + 2 * pad
    columns = torch.arange(w, device=x.device)
    columns = left[:, None] + torch.where(flip[:, None], columns.flip(0), columns)  # n w
    rows = top[:, None] + torch.arange(h, device=x.device)  # n h
    place = (rows[:, :, None] * wide + columns[:, None, :]).reshape(n, 1, h * w).expand(n, c, h * w)
    return F.pad(x, (pad, pad, pad, pad)).reshape(n, c, -1).gather(2, place).reshape(n, c, h, w)


def cut_resize(
    x: UInt8[Tensor, "n c h w"], *, box: Int64[Tensor, "n 4"], flip: Bool[Tensor, "n"]
) -> UInt8[Tensor, "n c h w"]:
    """Cut a window out of every image, enlarge it to the old size (bilinear), and mirror some of them left to right.

    A window is never larger than its image, so there is nothing to smooth away. Weights are multiples of 2^-11 and sums
    are integers: an image comes out the same in every batch and on every device, within one level of float arithmetic.

    Args:
        x: Images.
        box: Top, left, height and width of each window, inside the image.
        flip: Which to mirror.
    """
    n, c, h, w = x.shape
    top, left, tall, wide = box.unbind(dim=1)
    row, below, down = _taps(top, tall, h)
    column, beside, across = _taps(left, wide, w)
    column, beside, across = (torch.where(flip[:, None], v.flip(1), v) for v in (column, beside, across))
    flat = x.reshape(n, c, h * w)

    def pixels(rows: Tensor, columns: Tensor) -> Tensor:
        place = (rows[:, :, None] * w + columns[:, None, :]).reshape(n, 1, h * w).expand(n, c, h * w)
        return flat.gather(2, place).reshape(n, c, h, w).int()

    def mix(rows: Tensor) -> Tensor:
        return pixels(rows, column) * (ONE - across) + pixels(rows, beside) * across

    across, down = across[:, None, None, :], down[:, None, :, None]
    whole = mix(row) * (ONE - down) + mix(below) * down
    return ((whole + ONE * ONE // 2) >> (2 * BITS)).to(torch.uint8)


def _taps(start: Int64[Tensor, "n"], side: Int64[Tensor, "n"], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Give the two pixels that each of ``size`` new ones lies between, and the weight of the second in 2^-11."""
    at = (2 * torch.arange(size, device=start.device) + 1) * side[:, None] - size  # centres, in half new pixels
    low, high = (torch.minimum((at // (2 * size) + more).clamp(min=0), side[:, None] - 1) for more in (0, 1))
    weight = (at % (2 * size) * ONE + size) // (2 * size)
    return start[:, None] + low, start[:, None] + high, weight.int()
