"""Batches from images that stay on the device as uint8: crop, flip and conversion are batched tensor code.

Every image's crop and flip come from a key of its own, made of the seed, its identity and the epoch. So they do not
depend on the batch it is in, on the order, or on the methods that are switched on; and a run resumes at any batch
without a saved generator state.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Int64, UInt8
from torch import Tensor

from hardy.data.array import ArrayData
from hardy.errors import ParameterError, did_you_mean
from hardy.seeding import fold, keys, root, uniform

__all__ = ["Augment", "Batches", "crop_flip", "draw"]

Augment = Literal["crop", "flip"]
Batch = tuple[Tensor, Tensor, Tensor]


class Batches:
    """Batches ``(x, y, key)`` of an epoch, in a keyed order.

    ``x`` is float32 in [0, 1], ``y`` int64, ``key`` one int64 per image and epoch:
    ``fold(keys(root(seed, "sample"), index), epoch)``, for methods to draw from.

    Args:
        data: The images; they are moved to the device once.
        batch_size: Images per batch, in [1, n].
        seed: Seed of order, crops, flips and keys.
        augment: Of "crop" and "flip". "crop": pad by an eighth of the size (4 pixels at 32) with black and cut out a
            window of the old size; "flip": mirror half of the images. Empty for what must stay as it is: digits, for
            one, have no mirror images.
        device: Where the images stay and the batches are made.
        shuffle: A new order every epoch; otherwise that of the data.
        drop_last: Leave out a last batch that is not full.
        channels_last: Memory format of ``x``.

    Raises:
        ParameterError: a bad batch size, or an unknown augmentation.
    """

    def __init__(
        self,
        data: ArrayData,
        *,
        batch_size: int,
        seed: int,
        augment: Sequence[str] = ("crop", "flip"),
        device: str | torch.device = "cpu",
        shuffle: bool = True,
        drop_last: bool = True,
        channels_last: bool = False,
    ) -> None:
        if not 1 <= batch_size <= len(data):
            raise ParameterError(
                f"batches: batch_size must be in [1, {len(data)}], the number of images; got {batch_size}."
            )
        for name in augment:
            if name not in get_args(Augment):
                raise ParameterError(f"batches: no augmentation {name!r}; {did_you_mean(name, get_args(Augment))}")
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.augment = tuple(augment)
        self.device = torch.device(device)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._x = data.x.to(self.device)
        self._y = data.y.to(self.device)
        self._index = data.index.to(self.device)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch."""
        full, rest = divmod(len(self.data), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Give the batches of one epoch.

        Args:
            epoch: Number of the epoch, from 0.
            start: Number of batches to skip, when a run resumes within an epoch.
        """
        order = self._order(epoch)
        sample = fold(keys(root(self.seed, "sample"), self._index), epoch)
        for step in range(start, self.steps_per_epoch):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            key = sample[rows]
            x = self._augment(self._x.index_select(0, rows), key)
            yield x.float().div_(255).contiguous(memory_format=self.memory_format), self._y[rows], key

    def _order(self, epoch: int) -> Int64[Tensor, "n"]:
        if not self.shuffle:
            return torch.arange(len(self.data), device=self.device)
        return torch.argsort(fold(keys(root(self.seed, "order"), self._index), epoch))

    def _augment(self, x: UInt8[Tensor, "n c h w"], key: Int64[Tensor, "n"]) -> UInt8[Tensor, "n c h w"]:
        if not self.augment:
            return x
        pad = max(1, min(x.shape[2:]) // 8) if "crop" in self.augment else 0
        top, left, flip = draw(key, pad=pad, flip="flip" in self.augment)
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
