"""Batches from images that stay on the device as uint8: crop, flip and conversion are batched tensor code.

Every image's crop and flip come from a key of its own, made of the seed, its identity and the epoch. So they do not
depend on the batch it is in, on the order, or on the methods that are switched on; and a run resumes at any batch
without a saved generator state.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hardy.data.array import ArrayData
from hardy.data.augment import augment_images, check_augment
from hardy.data.schedule import Schedule

__all__ = ["Batches"]

Batch = tuple[Tensor, ...]


class Batches:
    """Batches ``(x, y, key)`` of an epoch, in a keyed order; ``(x, y, key, background)`` where the data know it.

    ``x`` is float32 in [0, 1], ``y`` int64, ``key`` one int64 per image and epoch:
    ``fold(keys(root(seed, "sample"), index), epoch)``, for methods to draw from. ``background`` is float32 in [0, 1],
    ``n h w``, cut and mirrored as ``x`` is; what is padded is none.

    Args:
        data: The images; they are moved to the device once.
        batch_size: Images per batch, in [1, n].
        seed: Seed of order, crops, flips and keys.
        augment: Of "crop", "resized_crop" and "flip". "crop": pad by an eighth of the size (4 pixels at 32) with black
            and cut out a window of the old size; "resized_crop": cut out a window of 0.08 to 1 of the area and enlarge
            it to the old size, as torchvision's ``RandomResizedCrop``; "flip": mirror half of the images. Empty for
            what must stay as it is: digits, for one, have no mirror images.
        device: Where the images stay and the batches are made.
        shuffle: A new order every epoch; otherwise that of the data.
        drop_last: Leave out a last batch that is not full.
        channels_last: Memory format of ``x``.
        rank: Which share of each batch to give, in [0, ranks): images ``rank::ranks`` of it (:class:`Schedule`).
        ranks: Number of shares; ``batch_size`` counts the images of all.

    Raises:
        ParameterError: a bad batch size or rank, or an unknown augmentation.
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
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.data = data
        self.augment = check_augment(augment)
        self.device = torch.device(device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        index = data.index.to(self.device)
        self.schedule = Schedule(index, batch_size, seed, shuffle, drop_last, rank, ranks)
        self._known = data.background is not None
        x = data.x if data.background is None else torch.cat([data.x, data.background[:, None]], dim=1)
        self._x = x.to(self.device)
        self._y = data.y.to(self.device)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch."""
        return len(self.schedule)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def close(self) -> None:
        """Do nothing: there are no processes to end, as those of batches from the disk."""

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Give the batches of one epoch.

        Args:
            epoch: Number of the epoch, from 0.
            start: Number of batches to skip, when a run resumes within an epoch.
        """
        sample = self.schedule.keys(epoch)
        for rows in self.schedule.batches(epoch, start):
            key = sample[rows]
            x = augment_images(self._x.index_select(0, rows), key, self.augment)
            x, background = (x[:, :-1], x[:, -1].float().div_(255)) if self._known else (x, None)
            images = x.float().div_(255).contiguous(memory_format=self.memory_format)
            yield (images, self._y[rows], key) if background is None else (images, self._y[rows], key, background)
