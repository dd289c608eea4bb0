"""Batches from images on the disk, read and augmented by worker processes; the same batches as from memory.

An image's place in the order, its key and what its key decides are those of :class:`~hardy.data.pipeline.Batches`, so
neither the number of workers nor what each of them happens to read changes a pixel.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from hardy.data.array import ArrayData
from hardy.data.augment import check_augment
from hardy.data.pipeline import Batch, Batches
from hardy.data.schedule import Schedule
from hardy.data.stream import StreamData
from hardy.data.workers import Feed, Images, fetched, loader
from hardy.errors import ParameterError

__all__ = ["StreamBatches", "make_batches"]


class StreamBatches:
    """Batches ``(x, y, key)`` of an epoch, in a keyed order: those of :class:`Batches`, from images on the disk.

    ``data.workers`` processes read and augment, a batch each, two batches ahead; they stay alive between epochs, until
    :meth:`close` or the end of this object. Images travel as uint8 and become floats on the device; to a GPU they go
    through pinned memory, while it computes. With 0 workers the caller's process reads, when a batch is asked for.

    Args:
        data: The images.
        batch_size: Images per batch, over all ranks, in [1, n].
        seed: Seed of order, augmentation and keys.
        augment: As for :class:`Batches`. "resized_crop" starts from whole pictures where images are files of their own.
        device: Where the batches go.
        shuffle: A new order every epoch; otherwise that of the data.
        drop_last: Leave out a last batch that is not full.
        channels_last: Memory format of ``x``.
        rank: Which share of each batch to give, in [0, ranks).
        ranks: Number of shares.

    Raises:
        ParameterError: a bad batch size or rank, or an unknown augmentation.
    """

    def __init__(
        self,
        data: StreamData,
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
        self.schedule = Schedule(data.index, batch_size, seed, shuffle, drop_last, rank, ranks)
        self._feed = Feed(self.schedule)
        self._images = Images(partial(data.augmented, names=self.augment), data.y, data.shape)
        self._loader = self._start()
        self._turn = 0

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch."""
        return len(self.schedule)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """Give the batches of one epoch; one epoch at a time.

        Args:
            epoch: Number of the epoch, from 0.
            start: Number of batches to skip, when a run resumes within an epoch; their images are not read.

        Raises:
            DataError: an image cannot be read; the message names its file.
            TrainingError: a worker process died.
            ParameterError: another epoch was begun before this one ended.
        """
        self._turn += 1
        turn = self._turn
        self._feed.epoch, self._feed.start = epoch, start
        for batch in fetched(self._loader):
            x, y, key = (part.to(self.device, non_blocking=True) for part in batch)
            yield x.float().div_(255).contiguous(memory_format=self.memory_format), y, key
            if turn != self._turn:
                raise ParameterError(f"{self.data.name}: an epoch must end before another begins; got two at a time.")

    def close(self) -> None:
        """End the worker processes; another epoch starts new ones."""
        self._turn += 1
        self._loader = self._start()

    def _start(self) -> DataLoader[Any]:
        return loader(self._images, self._feed, self.data.workers, pin=self.device.type == "cuda")


def make_batches(data: ArrayData | StreamData, **options: Any) -> Batches | StreamBatches:
    """Make the training batches of data in memory or on the disk; options as for :class:`Batches`."""
    return Batches(data, **options) if isinstance(data, ArrayData) else StreamBatches(data, **options)
