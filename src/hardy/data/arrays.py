"""Data sets that are arrays: the digits that come with scikit-learn, and ``.npz`` files."""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64
from torch import Tensor

from hardy.data.mapped import StoredArray, find_array
from hardy.data.rows import Reader, Rows, Split, check_labels, check_memory
from hardy.errors import DataError

__all__ = ["ArrayReader", "NpzReader", "digits", "npz", "to_nchw"]

DIGITS_TEST = 360
MAX_CHANNELS = 16
# what numpy and zipfile raise for damaged files; NotImplementedError and "encrypted" are RuntimeErrors
DAMAGED = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, SyntaxError, MemoryError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),  # the last for damaged headers of arrays
)

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class ArrayReader(Reader):
    """Gives images that are in memory: uint8, ``n c h w``."""

    x: Tensor

    def __call__(self, rows: Int64[Tensor, "m"]) -> Tensor:
        """Give the images at these positions."""
        return self.x[rows]


@dataclass(frozen=True, eq=False)
class NpzReader(Reader):
    """Reads a part of a ``.npz`` file, the whole of it each time.

    Attributes:
        path: The file.
        part: Which images: ``x_PART``.
        n: How many there must be.
        name: The data as the user named it.
    """

    path: Path
    part: Split
    n: int
    name: str

    def __call__(self, rows: Int64[Tensor, "m"]) -> Tensor:
        """Read the images at these positions.

        Raises:
            DataError: the file is damaged, not in the format, or too large for the memory.
        """
        part = self.part
        try:
            with np.load(self.path, allow_pickle=False) as file:
                x = file[f"x_{part}"]
        except DAMAGED as error:
            raise _unreadable(self.name, error) from error
        images = to_nchw(x, f"{self.name} x_{part}", n=self.n)
        if len(rows) == self.n and bool((rows == torch.arange(self.n)).all()):
            return images.contiguous()
        check_memory((len(rows), images.shape[1], images.shape[2], images.shape[3]), self.name)
        return images[rows]

    def streamed(self) -> Reader | None:
        """Read from the file as the memory map that it is, if it is not compressed; sums of the file are not checked.

        Raises:
            DataError: the file is damaged, or not in the format.
        """
        try:
            found = find_array(self.path, f"x_{self.part}.npy")
            if found is None:
                return None
            check_images(found.dtype, found.shape, f"{self.name} x_{self.part}", n=self.n)
        except DAMAGED as error:
            raise _unreadable(self.name, error) from error
        return MappedReader(found, f"{self.name} x_{self.part}")


@dataclass(frozen=True, eq=False)
class MappedReader(Reader):
    """Reads images from an array in a file, those that are asked for.

    Attributes:
        array: Where the array lies, ``n h w c`` or ``n h w``.
        name: The data as the user named it, and which part.
    """

    array: StoredArray
    name: str

    def __call__(self, rows: Int64[Tensor, "m"]) -> Tensor:
        """Read the images at these positions.

        Raises:
            DataError: the file is no longer what it was.
        """
        try:
            x = self.array.open()[rows.numpy()]
        except DAMAGED as error:
            raise _unreadable(self.name, error) from error
        return to_nchw(x, self.name)


def digits(path: Path | None, size: int | None, download: bool = False) -> dict[Split, Rows]:
    """Give scikit-learn's 1,797 handwritten digits, 1x8x8; their values 0 .. 16 become 0 .. 255.

    The test part is the last 360, in scikit-learn's order: mostly other writers than those before.

    Raises:
        DataError: a path was given.
    """
    del size, download
    if path is not None:
        raise DataError(f"data 'digits:{path}': digits come with scikit-learn and take no path. Write 'digits'.")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    y = bunch.target.astype(np.int64)
    names = tuple(map(str, range(10)))
    cut = len(x) - DIGITS_TEST
    index = torch.arange(len(x))
    whole = Rows(torch.from_numpy(y), index, names, "digits", ArrayReader(torch.from_numpy(x)[:, None]))
    return {"train": whole.take(index[:cut]), "test": whole.take(index[cut:])}


def npz(path: Path | None, size: int | None, download: bool = False) -> dict[Split, Rows]:
    """Read a ``.npz`` file: ``x_train y_train x_test y_test [x_val y_val] [class_names]``; one part is enough.

    Images are uint8, ``n h w c`` or ``n h w``. The identity of an image is its row in its part. Without ``class_names``
    the classes are the numbers up to the largest label of any part. Pickled objects are not read.

    Raises:
        DataError: no such file, damaged, or not in this format.
    """
    del size, download
    if path is None or not path.is_file():
        raise DataError(f"data 'npz:{path or ''}': no such file. Write npz:FILE.")
    name = f"npz:{path}"
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DataError(f"{name}: must be a .npz file; got a single array. Use numpy.savez.")
        with file:
            keys = set(file.files)
            parts: list[Split] = [p for p in ("train", "val", "test") if {f"x_{p}", f"y_{p}"} <= keys]
            labels = {part: _labels(file[f"y_{part}"], f"{name} y_{part}") for part in parts}
            names = _class_names(file["class_names"] if "class_names" in keys else None, labels, name)
    except DAMAGED as error:
        raise _unreadable(name, error) from error
    if not parts:
        raise DataError(f"{name}: must hold x_train and y_train, or x_test and y_test; got {', '.join(sorted(keys))}.")
    for part, y in labels.items():
        check_labels(y, len(names), f"{name} y_{part}")
    return {
        part: Rows(y, torch.arange(len(y)), names, name, NpzReader(path, part, len(y), name))
        for part, y in labels.items()
    }


def to_nchw(x: Array, name: str, *, n: int | None = None) -> Tensor:
    """View images ``n h w c`` or ``n h w`` as a tensor ``n c h w``.

    Raises:
        DataError: as :func:`check_images`.
    """
    check_images(x.dtype, x.shape, name, n=n)
    return torch.from_numpy(x if x.ndim == 4 else x[..., None]).permute(0, 3, 1, 2)


def check_images(dtype: np.dtype[np.generic], shape: tuple[int, ...], name: str, *, n: int | None = None) -> None:
    """Refuse arrays that are no images, or not as many as there are labels (``n``; None: any number).

    Raises:
        DataError: another dtype than uint8, or another shape.
    """
    if dtype != np.uint8:
        raise DataError(f"{name}: must be uint8, 0 .. 255; got {dtype}. Scale and round floats before saving.")
    full = (*shape, 1) if len(shape) == 3 else shape
    if len(full) != 4 or full[-1] > MAX_CHANNELS:
        transpose = " Is it n c h w? Use transpose(0, 2, 3, 1)." if len(full) == 4 and full[1] <= MAX_CHANNELS else ""
        raise DataError(
            f"{name}: must be n h w or n h w c with at most {MAX_CHANNELS} channels; got {full}.{transpose}"
        )
    if n is not None and full[0] != n:
        who, _, which = name.rpartition(" x_")
        raise DataError(f"{who}: x_{which} has {full[0]} images, y_{which} has {n} labels; must be equal.")


def _labels(y: Array, name: str) -> Int64[Tensor, "n"]:
    if not np.issubdtype(y.dtype, np.integer) or y.size != len(y):
        raise DataError(f"{name}: must be one integer per image; got {y.dtype}, {y.shape}.")
    return torch.from_numpy(y.reshape(-1).astype(np.int64))


def _class_names(given: Array | None, labels: Mapping[Split, Tensor], name: str) -> tuple[str, ...]:
    if given is None:
        largest = max((int(y.max()) for y in labels.values() if len(y)), default=0)
        return tuple(map(str, range(largest + 1)))
    if given.ndim != 1 or given.dtype.kind not in "US":
        raise DataError(f"{name}: class_names must be a list of strings; got {given.dtype}, {given.shape}.")
    return tuple(v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in given.tolist())


def _unreadable(name: str, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    return DataError(
        f"{name}: not a readable .npz file ({type(error).__name__}: {error}). Write it again with numpy.savez."
    )
