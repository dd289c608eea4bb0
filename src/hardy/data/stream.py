"""Labelled images that stay on the disk: read batch by batch, with an identity per image as in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from PIL import Image
from torch import Tensor

from hardy.data.augment import augment_images, draw, draw_boxes
from hardy.data.load import resize
from hardy.data.pictures import FolderReader
from hardy.data.rows import Rows, check_classes, check_memory, spread_order
from hardy.data.schedule import Schedule
from hardy.data.workers import Feed, Images, fetched, loader
from hardy.errors import DataError, ParameterError

__all__ = ["StreamData"]


@dataclass(frozen=True, eq=False)
class StreamData:
    """A part of a data set whose images stay on the disk. What training asks of :class:`ArrayData`, it answers alike.

    Attributes:
        rows: Labels and identities, and how to read images.
        shape: Channels, height and width of one image, as :meth:`read` gives it.
        split: "train", "val" or "test".
        size: Side to which images are resized that the reader gives in another size; None: as they are.
        workers: Processes that read images in :meth:`batches` and in training; 0: the caller's.
        skipped: A line about every image that was left out because it cannot be read, when the data were opened.

    Raises:
        DataError: there are no images.
        ParameterError: ``workers`` below 0.
    """

    rows: Rows
    shape: tuple[int, int, int]
    split: str = "test"
    size: int | None = None
    workers: int = 0
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.rows.y):
            raise DataError(f"{self.name} ({self.split}): there must be at least one image; got none.")
        if self.workers < 0:
            raise ParameterError(f"{self.name}: workers must be at least 0; got {self.workers}.")

    @property
    def y(self) -> Int64[Tensor, "n"]:
        """Labels from 0."""
        return self.rows.y

    @property
    def index(self) -> Int64[Tensor, "n"]:
        """Identity of each image; it stays with the image in :meth:`subset` and :meth:`limit`."""
        return self.rows.index

    @property
    def class_names(self) -> tuple[str, ...]:
        """In label order; their number is the number of classes."""
        return self.rows.class_names

    @property
    def name(self) -> str:
        """The data as the user named it."""
        return self.rows.name

    @property
    def num_classes(self) -> int:
        """Number of classes, with or without images here."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.rows.y)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches(256)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Give batches ``(x, y)`` in order, ``x`` float32 in [0, 1]; the last may be smaller.

        Raises:
            ParameterError: ``batch_size`` is below 1.
            DataError: an image cannot be read; the message names its file.
            TrainingError: a worker process died.
        """
        if batch_size < 1:
            raise ParameterError(f"{self.name}: batch_size must be at least 1; got {batch_size}.")
        whole = Schedule(self.index, min(batch_size, len(self)), 0, shuffle=False, drop_last=False)
        images = Images(partial(self.augmented, names=()), self.y, self.shape)
        for x, y, _ in fetched(loader(images, Feed(whole), self.workers, pin=False)):
            yield x.float().div(255), y

    def images(self) -> Float[Tensor, "n c h w"]:
        """Read all images as float32 in [0, 1].

        Raises:
            DataError: they do not fit into memory, or one cannot be read.
        """
        check_memory((4 * len(self), *self.shape), self.name)
        return self.read(torch.arange(len(self))).float().div(255)

    def read(self, positions: Int64[Tensor, "m"]) -> UInt8[Tensor, "m c h w"]:
        """Read the images at some positions.

        Raises:
            DataError: one cannot be read, or has another size; the message names its file.
        """
        x = self.rows.read(positions)
        if self.size is not None and x.shape[2:] != (self.size, self.size):
            x = resize(x, self.size)
        if x.shape[1:] != self.shape:
            raise DataError(f"{self.name}: all images must be of one shape, {self.shape}; got {tuple(x.shape[1:])}.")
        return x

    def augmented(
        self, positions: Int64[Tensor, "m"], key: Int64[Tensor, "m"], names: Sequence[str]
    ) -> UInt8[Tensor, "m c h w"]:
        """Read the images at some positions and do what ``names`` say, by the key of each.

        "resized_crop" takes its windows out of whole pictures where images are files of their own, at the size they
        have there; else, as every other augmentation, it starts from what :meth:`read` gives, like data in memory.

        Raises:
            DataError: as :meth:`read`.
        """
        reader = self.rows.read
        if "resized_crop" not in names or not isinstance(reader, FolderReader):
            return augment_images(self.read(positions), key, names)
        h, w = self.shape[1:]
        _, _, flip = draw(key, pad=0, flip="flip" in names)
        x = np.empty((len(positions), h, w, 3), dtype=np.uint8)
        for i, position in enumerate(positions.tolist()):
            picture = reader.picture(position)
            top, left, tall, wide = draw_boxes(key[i : i + 1], height=picture.height, width=picture.width)[0].tolist()
            window = picture.crop((left, top, left + wide, top + tall))
            x[i] = np.asarray(window.resize((w, h), Image.Resampling.BILINEAR))
        nchw = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
        return torch.where(flip[:, None, None, None], nchw.flip(3), nchw)

    def subset(self, rows: Bool[Tensor, "n"] | Int[Tensor, "m"]) -> "StreamData":
        """Keep the images where a mask is true, or those at some positions, in that order.

        Raises:
            DataError: nothing is left.
        """
        positions = rows.nonzero().flatten() if rows.dtype == torch.bool else rows.long()
        return replace(self, rows=self.rows.take(positions))

    def limit(self, n: int | None, *, seed: int = 0) -> "StreamData":
        """Keep at most ``n`` images, each class in proportion: those that :meth:`ArrayData.limit` keeps.

        Raises:
            ParameterError: ``n`` is below 1.
        """
        if n is None or n >= len(self):
            return self
        if n < 1:
            raise ParameterError(f"{self.name}: limit must be at least 1; got {n}.")
        order = spread_order(self.y, self.index, seed=seed, purpose="limit")
        return self.subset(order[:n].sort().values)

    def check_classes(self) -> "StreamData":
        """Return the data itself if every class has an image, as training needs.

        Raises:
            DataError: the message names the classes without.
        """
        check_classes(self.y, self.class_names, f"{self.name} ({self.split})")
        return self
