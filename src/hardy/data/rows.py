"""Labels and identities of images that are not read yet, and the keyed order in which parts are cut off them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from hardy.errors import DataError
from hardy.seeding import keys, root

__all__ = ["Reader", "Rows", "Split", "check_classes", "check_labels", "check_memory", "spread_order"]

Split = Literal["train", "val", "test"]
GIB = 2**30
SHARE = 0.8  # of the free memory, at most, for images


class Reader(ABC):
    """Reads images that are not in memory yet; can be pickled, so that worker processes can have it."""

    @abstractmethod
    def __call__(self, rows: Int64[Tensor, "m"]) -> Tensor:
        """Read the images at these positions: uint8, ``m c h w``."""

    def take(self, positions: Int64[Tensor, "m"]) -> "Reader":
        """Give a reader of the images at these positions."""
        return Selected(self, positions)

    def streamed(self) -> "Reader | None":
        """Give a reader of the same images that reads a few of them at the cost of a few; None if there is none."""
        return self


@dataclass(frozen=True, eq=False)
class Selected(Reader):
    """The images of another reader at some positions."""

    read: Reader
    positions: Int64[Tensor, "m"]

    def __call__(self, rows: Int64[Tensor, "k"]) -> Tensor:
        return self.read(self.positions[rows])

    def take(self, positions: Int64[Tensor, "k"]) -> Reader:
        return Selected(self.read, self.positions[positions])

    def streamed(self) -> Reader | None:
        read = self.read.streamed()
        return None if read is None else Selected(read, self.positions)


@dataclass(frozen=True, eq=False)
class Rows:
    """One part of a data set, with its images still on the disk.

    Attributes:
        y: Labels, from 0.
        index: One number per image that stays with it in every subset, the source of its randomness.
        class_names: In label order.
        name: The data as the user named it.
        read: Gives the images at some positions of ``y``; of a folder of images a
            :class:`~hardy.data.pictures.FolderReader`, also after :meth:`take` and :meth:`divide`.
    """

    y: Int64[Tensor, "n"]
    index: Int64[Tensor, "n"]
    class_names: tuple[str, ...]
    name: str
    read: Reader

    def take(self, positions: Int64[Tensor, "m"]) -> "Rows":
        """Keep the images at these positions."""
        return replace(self, y=self.y[positions], index=self.index[positions], read=self.read.take(positions))

    def divide(self, fraction: float, *, seed: int, purpose: str) -> tuple["Rows", "Rows"]:
        """Cut off ``round(fraction * n)`` rows, each class its share, chosen by keyed hashes of the identities.

        Returns:
            The rows that stay and those cut off, both in the old order.
        """
        order = spread_order(self.y, self.index, seed=seed, purpose=purpose)
        count = round(fraction * len(order))
        return self.take(order[count:].sort().values), self.take(order[:count].sort().values)


def spread_order(y: Int[Tensor, "n"], index: Int[Tensor, "n"], *, seed: int, purpose: str) -> Int64[Tensor, "n"]:
    """Order rows such that every beginning of the order holds each class about in proportion.

    Within a class the order is that of keyed hashes of the identities; the i-th of a class of m images stands at
    (i + 1/2) / m, so classes of equal size differ by at most one image. Beginnings are nested: the first 100 rows are
    among the first 200.

    Args:
        y: Labels, from 0.
        index: Identities.
        seed: Another seed gives another order.
        purpose: Another purpose gives an independent order.

    Returns:
        Positions in ``y``; they do not depend on the order of the rows, if no identity comes twice.
    """
    hashes = keys(root(seed, purpose), index.long())
    by_hash = torch.argsort(hashes)
    by_class = by_hash[torch.argsort(y[by_hash], stable=True)]  # class by class, hashes in order
    counts = torch.bincount(y, minlength=1)
    rank = torch.arange(len(y)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    place = torch.empty(len(y), dtype=torch.float64)
    place[by_class] = (rank.double() + 0.5) / torch.repeat_interleave(counts, counts)
    return by_hash[torch.argsort(place[by_hash], stable=True)]


def check_labels(y: Int64[Tensor, "n"], num_classes: int, name: str) -> None:
    """Refuse labels outside ``0 .. num_classes - 1``.

    Raises:
        DataError: the message names the first of them.
    """
    bad: Bool[Tensor, "n"] = (y < 0) | (y >= num_classes)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise DataError(
            f"{name}: labels must be in 0 .. {num_classes - 1} ({num_classes} class names); "
            f"got {int(y[row])} at row {row}."
        )


def check_classes(y: Int64[Tensor, "n"], class_names: Sequence[str], who: str) -> None:
    """Refuse labels among which a class is missing, as training needs all.

    Raises:
        DataError: the message names the classes without an image.
    """
    counts = torch.bincount(y, minlength=len(class_names))
    empty = [class_names[i] for i in (counts == 0).nonzero().flatten().tolist()]
    if empty:
        some = ", ".join(map(repr, empty[:5])) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        raise DataError(
            f"{who}: every class must have an image to train on; none for {some}. "
            f"Add images, raise limit, or drop the class."
        )


def check_memory(shape: tuple[int, int, int, int], name: str) -> None:
    """Refuse images that would not fit into the free memory.

    Raises:
        DataError: the message says how much they need, how much there is, and what to do.
    """
    need, free = shape[0] * shape[1] * shape[2] * shape[3], free_bytes()
    if free is not None and need > SHARE * free:
        n, c, h, w = shape
        raise DataError(
            f"{name}: the images must fit into memory; {n} of {c}x{h}x{w} need {need / GIB:.1f} GiB, "
            f"{free / GIB:.1f} GiB are free. Take fewer with limit, or make them smaller with size."
        )


def free_bytes() -> int | None:
    """Give the memory that can be had without swapping, in bytes; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else int(kib) * 1024
