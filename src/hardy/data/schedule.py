"""Which images come in which batch of an epoch, and with which key: the same whatever reads them, and wherever."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from hardy.errors import ParameterError
from hardy.seeding import fold, keys, root

__all__ = ["Schedule"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The batches of every epoch, as positions of images.

    Several ranks share each batch: rank r takes every ``ranks``-th of its images, from the r-th on. Together they have
    the batch of a single process, and all have equally many batches. Where the last batch is kept although it is not
    full, shares differ by one image, and some may be empty.

    Attributes:
        index: Identity of each image, int64.
        batch_size: Images per batch, over all ranks, in [1, n] and at least ``ranks``.
        seed: Seed of the order and the keys.
        shuffle: A new order every epoch; otherwise that of the data.
        drop_last: Leave out a last batch that is not full.
        rank: Which share to take, in [0, ranks).
        ranks: Number of shares.

    Raises:
        ParameterError: a value out of its range.
    """

    index: Int64[Tensor, "n"]
    batch_size: int
    seed: int
    shuffle: bool = True
    drop_last: bool = True
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= len(self.index):
            raise ParameterError(
                f"batches: batch_size must be in [1, {len(self.index)}], the number of images; got {self.batch_size}."
            )
        if not 0 <= self.rank < self.ranks:
            raise ParameterError(f"batches: rank must be in [0, ranks); got {self.rank} of {self.ranks}.")
        if self.batch_size < self.ranks:
            raise ParameterError(
                f"batches: batch_size must be at least {self.ranks}, one image for each rank; got {self.batch_size}."
            )

    def __len__(self) -> int:
        """Number of batches of an epoch, the same for every rank."""
        full, rest = divmod(len(self.index), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def keys(self, epoch: int) -> Int64[Tensor, "n"]:
        """Give the key of every image in an epoch: ``fold(keys(root(seed, "sample"), index), epoch)``."""
        return fold(keys(root(self.seed, "sample"), self.index), epoch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Int64[Tensor, "m"]]:
        """Give the positions of this rank's share of each batch of an epoch, from the ``start``-th batch on."""
        order = self._order(epoch)
        for step in range(start, len(self)):
            yield order[step * self.batch_size : (step + 1) * self.batch_size][self.rank :: self.ranks]

    def _order(self, epoch: int) -> Int64[Tensor, "n"]:
        if not self.shuffle:
            return torch.arange(len(self.index), device=self.index.device)
        return torch.argsort(fold(keys(root(self.seed, "order"), self.index), epoch))
