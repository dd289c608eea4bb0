"""Labelled images in memory: uint8, with an identity per image that survives every selection."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy.data.rows import check_classes, check_labels, spread_order
from hardy.errors import DataError, ParameterError

__all__ = ["ArrayData"]


@dataclass(frozen=True, eq=False)
class ArrayData:
    """A part of a data set in memory. Iterating gives batches ``(x, y)`` of 256 in order, ``x`` float in [0, 1].

    Attributes:
        x: Images, uint8, ``n c h w``.
        y: Labels from 0, int64, ``n``.
        index: Identity of each image, int64, ``n``; it stays with the image in :meth:`subset` and :meth:`limit`.
        class_names: In label order; their number is the number of classes.
        name: The data as the user named it.
        split: "train", "val" or "test".
        skipped: A line about every image that was left out because it cannot be read, when the data were loaded.
        background: How much of each pixel is no part of the object, uint8 from 0 (object) to 255, ``n h w``, for
            methods that ask for it; all 0 in an image of which it is not known. None: known of none.

    Raises:
        DataError: wrong dtypes or shapes, no images, or labels out of range.

    Example:
        >>> x = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
        >>> data = ArrayData.make(x, torch.tensor([0, 1, 0, 1]), class_names=("off", "on"))
        >>> data.subset(data.y == 1).index.tolist()
        [1, 3]
    """

    x: Tensor  # shapes are checked below, for everybody
    y: Tensor
    index: Tensor
    class_names: tuple[str, ...]
    name: str = "data"
    split: str = "test"
    skipped: tuple[str, ...] = ()
    background: Tensor | None = None

    def __post_init__(self) -> None:
        who = f"{self.name} ({self.split})"
        if self.x.dtype != torch.uint8 or self.x.ndim != 4:
            raise DataError(f"{who}: x must be uint8, n c h w; got {self.x.dtype}, {tuple(self.x.shape)}.")
        for label, values in {"y": self.y, "index": self.index}.items():
            if values.dtype != torch.int64 or values.shape != self.x.shape[:1]:
                raise DataError(
                    f"{who}: {label} must be int64, one for each of the {len(self.x)} images; "
                    f"got {values.dtype}, {tuple(values.shape)}."
                )
        if self.background is not None:
            given, wanted = self.background, (len(self.x), *self.x.shape[2:])
            if given.dtype != torch.uint8 or given.shape != wanted:
                raise DataError(
                    f"{who}: background must be uint8, n h w = {wanted}; got {given.dtype}, {tuple(given.shape)}."
                )
        if min(self.x.shape) < 1:
            raise DataError(f"{who}: there must be at least one image of one pixel; got {tuple(self.x.shape)}.")
        check_labels(self.y, len(self.class_names), who)

    @classmethod
    def make(
        cls,
        x: Tensor,
        y: Int[Tensor, "n"],
        *,
        class_names: Sequence[str] | None = None,
        name: str = "data",
        split: str = "test",
    ) -> "ArrayData":
        """Make data from tensors of the caller; identities are positions, class names "0", "1", ... if not given."""
        y = y.long()
        if class_names is None:
            class_names = tuple(map(str, range(int(y.max()) + 1 if len(y) else 1)))
        return cls(x, y, torch.arange(len(y)), tuple(class_names), name, split)

    @property
    def num_classes(self) -> int:
        """Number of classes, with or without images here."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        return self.x.shape[1], self.x.shape[2], self.x.shape[3]

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches(256)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Give batches ``(x, y)`` in order, ``x`` float32 in [0, 1]; the last may be smaller.

        Raises:
            ParameterError: ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise ParameterError(f"{self.name}: batch_size must be at least 1; got {batch_size}.")
        for start in range(0, len(self), batch_size):
            rows = slice(start, start + batch_size)
            yield self.x[rows].float().div(255), self.y[rows]

    def images(self) -> Float[Tensor, "n c h w"]:
        """Give all images as float32 in [0, 1]: four times the memory of ``x``."""
        return self.x.float().div(255)

    def subset(self, rows: Bool[Tensor, "n"] | Int[Tensor, "m"]) -> "ArrayData":
        """Keep the images where a mask is true, or those at some positions, in that order.

        Raises:
            DataError: nothing is left.
        """
        background = None if self.background is None else self.background[rows]
        return replace(self, x=self.x[rows], y=self.y[rows], index=self.index[rows], background=background)

    def limit(self, n: int | None, *, seed: int = 0) -> "ArrayData":
        """Keep at most ``n`` images, each class in proportion, chosen by keyed hashes; their order stays.

        The choice for a smaller ``n`` is part of that for a larger one.

        Raises:
            ParameterError: ``n`` is below 1.
        """
        if n is None or n >= len(self):
            return self
        if n < 1:
            raise ParameterError(f"{self.name}: limit must be at least 1; got {n}.")
        order = spread_order(self.y, self.index, seed=seed, purpose="limit")
        return self.subset(order[:n].sort().values)

    def check_classes(self) -> "ArrayData":
        """Return the data itself if every class has an image, as training needs.

        Raises:
            DataError: the message names the classes without.
        """
        check_classes(self.y, self.class_names, f"{self.name} ({self.split})")
        return self
