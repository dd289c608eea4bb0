"""Load data by name: ``digits``, ``npz:FILE``, ``folder:DIR``, ``cifar10:DIR`` and other published sets, ``shapes``."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from hardy.data.array import ArrayData
from hardy.data.arrays import digits, npz
from hardy.data.folder import folder
from hardy.data.imagenet import imagenet
from hardy.data.pictures import FolderReader, leave_out
from hardy.data.rows import Rows, Split, check_classes, check_memory, spread_order
from hardy.data.sets import SETS, published
from hardy.data.shapes import shapes
from hardy.errors import DataError, ParameterError, did_you_mean

__all__ = ["LOADERS", "load_data", "open_rows", "read_all", "resize"]

# name -> loader; it takes the path behind the colon, the wanted size, and whether to fetch what is not there, and gives
# the parts there are
Loader = Callable[[Path | None, int | None, bool], dict[Split, Rows]]
LOADERS: Mapping[str, Loader] = {
    "digits": digits,
    "npz": npz,
    "folder": folder,
    "imagenet": imagenet,
    **{name: partial(published, name=name) for name in SETS},
    "shapes": shapes,
}
CHUNK = 1024


def load_data(
    spec: str,
    *,
    split: Split = "test",
    limit: int | None = None,
    size: int | None = None,
    seed: int = 0,
    val_fraction: float = 0.1,
    download: bool = False,
    skip_bad: bool = False,
) -> ArrayData:
    """Load one part of a data set into memory.

    The validation part is cut off the training part: ``round(val_fraction * n)`` images, each class its share, chosen
    by keyed hashes of the image identities. The same seed and fraction give disjoint "train" and "val" that together
    are the training part; "test" depends on neither. Data that bring a validation part of their own keep it.

    Args:
        spec: ``digits``, ``npz:FILE``, ``folder:DIR``, ``imagenet:DIR``, ``shapes[:OPTIONS]``, or ``cifar10:DIR``,
            ``cifar100:DIR``, ``svhn:DIR``, ``stl10:DIR``, ``mnist:DIR``, ``fashion_mnist:DIR``, ``kmnist:DIR``,
            ``emnist:DIR``, where DIR holds ``NAME.npz`` or the layout of torchvision.
        split: "train", "val" or "test".
        limit: At most this many images, each class in proportion (:meth:`ArrayData.limit`); None: all.
        size: Resize the short side to it and cut out the centre, in pixels; None: as they are.
        seed: Seed of the validation part and of the choice of ``limit``.
        val_fraction: Share of the training data for validation, in [0, 1).
        download: Let torchvision fetch a published set that is not there, and unpack archives that are.
        skip_bad: Leave out images of a folder that cannot be read, after the parts and ``limit`` are chosen, so that no
            other image moves; they are logged as warnings and listed in :attr:`ArrayData.skipped`.

    Raises:
        DataError: no such data, damaged, not in the documented format, too large for the memory, or, for "train", a
            class without an image; with ``skip_bad``, more than half cannot be read, or none of a class.
        ParameterError: a bad argument.
    """
    rows = open_rows(spec, split=split, limit=limit, size=size, seed=seed, val_fraction=val_fraction, download=download)
    return read_all(rows, split=split, size=size, skip_bad=skip_bad)


def read_all(rows: Rows, *, split: Split, size: int | None, skip_bad: bool) -> ArrayData:
    """Read the images of :func:`open_rows` into memory; arguments as for :func:`load_data`.

    Raises:
        DataError: damaged or too large for the memory; with ``skip_bad``, more than half cannot be read, or none of a
            class.
    """
    skipped: tuple[str, ...] = ()
    if skip_bad and isinstance(rows.read, FolderReader):
        x, bad = rows.read.readable()
        rows, skipped = leave_out(rows, bad)
    else:
        x = rows.read(torch.arange(len(rows.y)))
    if size is not None and x.shape[2:] != (size, size):
        check_memory((len(x), x.shape[1], size, size), rows.name)
        x = torch.cat([resize(chunk, size) for chunk in torch.split(x, CHUNK)])
    return ArrayData(x.contiguous(), rows.y, rows.index, rows.class_names, rows.name, split, skipped)


def open_rows(
    spec: str,
    *,
    split: Split = "test",
    limit: int | None = None,
    size: int | None = None,
    seed: int = 0,
    val_fraction: float = 0.1,
    download: bool = False,
) -> Rows:
    """Choose the images of :func:`load_data`, with the same arguments, without reading those of folders and ``.npz``.

    Raises:
        DataError: no such data, or, for "train", a class without an image.
        ParameterError: a bad argument.
    """
    _check(split, limit, size, val_fraction)
    kind, _, where = spec.partition(":")
    if kind not in LOADERS:
        raise DataError(f"data {spec!r}: no such kind of data {kind!r}; {did_you_mean(kind, LOADERS)}")
    parts = LOADERS[kind](Path(where).expanduser() if where else None, size, download)
    rows = _part(parts, split, seed=seed, val_fraction=val_fraction, spec=spec)
    if limit is not None and limit < len(rows.y):
        order = spread_order(rows.y, rows.index, seed=seed, purpose="limit")
        rows = rows.take(order[:limit].sort().values)
    if split == "train":
        check_classes(rows.y, rows.class_names, f"{rows.name} ({split})")
    return rows


def resize(x: UInt8[Tensor, "n c h w"], size: int) -> UInt8[Tensor, "n c s s"]:
    """Resize the short side to ``size`` pixels (bilinear, antialiased) and cut out the centre."""
    h, w = x.shape[2:]
    new = [max(size, round(side * size / min(h, w))) for side in (h, w)]
    big = F.interpolate(x.float(), size=new, mode="bilinear", antialias=True, align_corners=False)
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    return big[:, :, top : top + size, left : left + size].round().clamp(0, 255).to(torch.uint8)


def _part(parts: Mapping[Split, Rows], split: Split, *, seed: int, val_fraction: float, spec: str) -> Rows:
    """Choose a part; without a validation part of its own the data lend one from the training part."""
    if split in parts and (split == "test" or "val" in parts):
        return parts[split]
    if split == "test" or "train" not in parts:
        raise DataError(f"data {spec!r}: has no {split} part; it has {', '.join(parts)}.")
    stay, cut = parts["train"].divide(val_fraction, seed=seed, purpose="validation part")
    chosen = cut if split == "val" else stay
    if not len(chosen.y):
        n = len(parts["train"].y)
        raise ParameterError(f"data {spec!r}: val_fraction {val_fraction} of {n} images leaves none for {split}.")
    return chosen


def _check(split: str, limit: int | None, size: int | None, val_fraction: float) -> None:
    if split not in get_args(Split):
        raise ParameterError(f"data: split must be one of {', '.join(get_args(Split))}; got {split!r}.")
    for name, value in {"limit": limit, "size": size}.items():
        if value is not None and value < 1:
            raise ParameterError(f"data: {name} must be at least 1; got {value}.")
    if not 0 <= val_fraction < 1:
        raise ParameterError(f"data: val_fraction must be in [0, 1); got {val_fraction}.")
