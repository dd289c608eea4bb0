"""Data sets that are arrays: the digits that come with scikit-learn, ``.npz`` files, and CIFAR-10."""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64
from torch import Tensor

from hardy.data.rows import Rows, Split, check_labels, check_memory
from hardy.errors import DataError

__all__ = ["cifar10", "digits", "npz"]

DIGITS_TEST = 360
MAX_CHANNELS = 16
# what numpy and zipfile raise for damaged files; NotImplementedError and "encrypted" are RuntimeErrors
DAMAGED = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, SyntaxError, MemoryError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),  # the last for damaged headers of arrays
)

Array = npt.NDArray[np.generic]


def digits(path: Path | None, size: int | None) -> dict[Split, Rows]:
    """Give scikit-learn's 1,797 handwritten digits, 1x8x8; their values 0 .. 16 become 0 .. 255.

    The test part is the last 360, in scikit-learn's order: mostly other writers than those before.

    Raises:
        DataError: a path was given.
    """
    del size
    if path is not None:
        raise DataError(f"data 'digits:{path}': digits come with scikit-learn and take no path. Write 'digits'.")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    y = bunch.target.astype(np.int64)
    names = tuple(map(str, range(10)))
    cut = len(x) - DIGITS_TEST
    index = torch.arange(len(x))
    whole = Rows(torch.from_numpy(y), index, names, "digits", lambda rows: torch.from_numpy(x)[rows, None])
    return {"train": whole.take(index[:cut]), "test": whole.take(index[cut:])}


def npz(path: Path | None, size: int | None) -> dict[Split, Rows]:
    """Read a ``.npz`` file: ``x_train y_train x_test y_test [x_val y_val] [class_names]``; one part is enough.

    Images are uint8, ``n h w c`` or ``n h w``. The identity of an image is its row in its part. Without ``class_names``
    the classes are the numbers up to the largest label of any part. Pickled objects are not read.

    Raises:
        DataError: no such file, damaged, or not in this format.
    """
    del size
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
    return {part: _from_file(path, part, y, names, name) for part, y in labels.items()}


def cifar10(path: Path | None, size: int | None) -> dict[Split, Rows]:
    """Read CIFAR-10 from a folder: ``cifar10.npz`` if it is there, else torchvision's ``cifar-10-batches-py``.

    torchvision's batches are pickles; its own class reads them, after comparing their MD5 sums with the published ones.

    Raises:
        DataError: neither is there, or it is damaged.
    """
    if path is None:
        raise DataError("data 'cifar10': the folder must be given. Write cifar10:DIR.")
    if (path / "cifar10.npz").is_file():
        return npz(path / "cifar10.npz", size)
    from torchvision.datasets import CIFAR10

    try:
        both = {"train": CIFAR10(str(path), train=True), "test": CIFAR10(str(path), train=False)}
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"data 'cifar10:{path}': must hold cifar10.npz or torchvision's cifar-10-batches-py ({error})."
        ) from error
    return {
        part: _from_array(both[part].data, both[part].targets, tuple(both[part].classes), f"cifar10:{path}")
        for part in ("train", "test")
    }


def _from_array(x: Array, labels: list[int], names: tuple[str, ...], name: str) -> Rows:
    y = torch.tensor(labels, dtype=torch.int64)
    images = to_nchw(x, name)
    return Rows(y, torch.arange(len(y)), names, name, lambda rows: images[rows])


def _from_file(path: Path, part: Split, y: Int64[Tensor, "n"], names: tuple[str, ...], name: str) -> Rows:
    def read(rows: Int64[Tensor, "m"]) -> Tensor:
        try:
            with np.load(path, allow_pickle=False) as file:
                x = file[f"x_{part}"]
        except DAMAGED as error:
            raise _unreadable(name, error) from error
        images = to_nchw(x, f"{name} x_{part}")
        if len(images) != len(y):
            raise DataError(f"{name}: x_{part} has {len(images)} images, y_{part} has {len(y)} labels; must be equal.")
        if len(rows) == len(y) and bool((rows == torch.arange(len(y))).all()):
            return images.contiguous()
        check_memory((len(rows), images.shape[1], images.shape[2], images.shape[3]), name)
        return images[rows]

    return Rows(y, torch.arange(len(y)), names, name, read)


def to_nchw(x: Array, name: str) -> Tensor:
    """View images ``n h w c`` or ``n h w`` as a tensor ``n c h w``.

    Raises:
        DataError: another dtype than uint8, or another shape.
    """
    if x.dtype != np.uint8:
        raise DataError(f"{name}: must be uint8, 0 .. 255; got {x.dtype}. Scale and round floats before saving.")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[-1] > MAX_CHANNELS:
        transpose = " Is it n c h w? Use transpose(0, 2, 3, 1)." if x.ndim == 4 and x.shape[1] <= MAX_CHANNELS else ""
        raise DataError(
            f"{name}: must be n h w or n h w c with at most {MAX_CHANNELS} channels; got {x.shape}.{transpose}"
        )
    return torch.from_numpy(x).permute(0, 3, 1, 2)


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
