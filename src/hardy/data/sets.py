"""Published data sets in the files that their authors gave out, read by torchvision's own classes.

Where there are MD5 sums, torchvision compares them before anything is read: the pickles of CIFAR are no others than the
published ones, and SciPy, which damaged ``.mat`` files can crash, sees those of SVHN only. Nothing is fetched unless
asked for.
"""

import contextlib
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hardy.data import arrays
from hardy.data.rows import Rows, Split, check_labels
from hardy.errors import DataError

__all__ = ["SETS", "published"]

DAMAGED = (*arrays.DAMAGED, AssertionError, AttributeError, IndexError, pickle.PickleError, HTTPException)
DIGITS = tuple("0123456789")
STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

Arrays = tuple[Any, Any, tuple[str, ...]]  # images n h w c or n h w, labels, class names


@dataclass(frozen=True)
class Published:
    """What torchvision knows of a set.

    Attributes:
        layout: What the folder must hold.
        files: Paths below it, and MD5 sums where they are known.
        source: Where it is fetched from.
        archive: Where to put what was fetched by hand, below the folder.
        read: Reads a part: the folder, whether it is the training part, and whether to fetch what is not there.
    """

    layout: str
    files: tuple[tuple[str, str | None], ...]
    source: str
    archive: str
    read: Callable[[str, bool, bool], Arrays]


def published(path: Path | None, size: int | None, download: bool = False, *, name: str) -> dict[Split, Rows]:
    """Read a set of :data:`SETS` from a folder: ``NAME.npz`` if it is there, else torchvision's layout.

    The identity of an image is its row in its part. SVHN: the training part without the extra images. STL-10: the
    labelled images. EMNIST: the balanced split, 47 classes, upright (the files hold every image transposed).

    Args:
        path: The folder.
        size: Unused: images are resized when they are read.
        download: Let torchvision fetch what is not there, and unpack archives that are.
        name: One of :data:`SETS`.

    Raises:
        DataError: no folder is named; files are not there, damaged, not the published ones, or could not be fetched.
    """
    del size
    if path is None:
        raise DataError(f"data {name!r}: the folder must be given. Write {name}:DIR.")
    if (path / f"{name}.npz").is_file():
        return arrays.npz(path / f"{name}.npz", None)
    kind, who = SETS[name](), f"{name}:{path}"
    try:
        with _alone(path) if download else contextlib.nullcontext():
            read = {part: kind.read(str(path), part == "train", download) for part in ("train", "test")}
    except DAMAGED as error:
        raise _explain(kind, path, name, error, download=download) from error
    return {"train": _rows(read["train"], f"{who} train", who), "test": _rows(read["test"], f"{who} test", who)}


def _rows(read: Arrays, which: str, name: str) -> Rows:
    x, labels, names = read
    images = arrays.to_nchw(np.asarray(x), which)
    y = torch.from_numpy(np.asarray(labels).astype(np.int64).reshape(-1))
    if len(y) != len(images):
        raise DataError(f"{which}: has {len(images)} images and {len(y)} labels; must be equal. Unpack it again.")
    check_labels(y, len(names), which)
    return Rows(y, torch.arange(len(y)), names, name, arrays.ArrayReader(images))


def _explain(kind: Published, path: Path, name: str, error: Exception, *, download: bool) -> DataError:
    """Say which file is missing or damaged, and what to do."""
    who, reason = f"data '{name}:{path}'", " ".join(str(error).split()) or type(error).__name__
    lost = next((path / file for file, _ in kind.files if not (path / file).is_file()), None)
    wrong = next((path / file for file, md5 in kind.files if not lost and not _is_published(path / file, md5)), None)
    if download and (lost or wrong):
        return DataError(
            f"{who}: must be fetched from {kind.source}, which failed ({reason}). Is there a network? By hand: put "
            f"what lies there into {path / kind.archive}; --download then unpacks it."
        )
    if lost:
        return DataError(
            f"{who}: must hold {name}.npz or {kind.layout}; there is no {lost}. Put it there (from {kind.source}), or "
            "fetch and unpack it with --download (download = true)."
        )
    if wrong:
        return DataError(
            f"{who}: {wrong} must be the published file; its MD5 sum is another, so it is damaged. Delete it, and "
            "unpack or fetch it again (--download)."
        )
    return DataError(
        f"{who}: a file cannot be read ({type(error).__name__}: {reason}). Delete {kind.layout}, and unpack or fetch "
        "it again (--download)."
    )


def _is_published(file: Path, md5: str | None) -> bool:
    from torchvision.datasets.utils import check_integrity

    try:
        return bool(check_integrity(str(file), md5))
    except OSError:
        return True  # not readable, which is said in its own words


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let the processes of one machine fetch one after the other, so that they do not write the same file at once."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ImportError):  # where nothing can be written, or there are no such locks
            import fcntl

            path.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((path / ".download.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed, also by a crash
        yield


def _cifar(cls: str) -> Published:
    from torchvision import datasets

    kind = getattr(datasets, cls)

    def read(root: str, train: bool, download: bool) -> Arrays:
        found = kind(root, train=train, download=download)
        return found.data, found.targets, tuple(found.classes)

    meta = (kind.meta["filename"], kind.meta["md5"])
    files = tuple((f"{kind.base_folder}/{file}", md5) for file, md5 in [*kind.train_list, *kind.test_list, meta])
    return Published(f"torchvision's {kind.base_folder}", files, kind.url, kind.filename, read)


def _svhn() -> Published:
    from torchvision.datasets import SVHN

    def read(root: str, train: bool, download: bool) -> Arrays:
        found = SVHN(root, split="train" if train else "test", download=download)
        return found.data.transpose(0, 2, 3, 1), found.labels, DIGITS

    files = tuple((SVHN.split_list[part][1], SVHN.split_list[part][2]) for part in ("train", "test"))
    source = SVHN.split_list["train"][0].rpartition("/")[0]
    return Published(f"the files {files[0][0]} and {files[1][0]}", files, source, "", read)


def _stl10() -> Published:
    from torchvision import datasets

    class Labelled(datasets.STL10):
        """Without the 2.6 GB of unlabelled images, which are neither read nor needed."""

        train_list = datasets.STL10.train_list[:2]

    def read(root: str, train: bool, download: bool) -> Arrays:
        found = Labelled(root, split="train" if train else "test", download=download)
        return found.data.transpose(0, 2, 3, 1), found.labels, STL10

    base = Labelled.base_folder
    files = tuple((f"{base}/{file}", md5) for file, md5 in [*Labelled.train_list, *Labelled.test_list])
    return Published(f"torchvision's {base}", files, Labelled.url, Labelled.filename, read)


def _mnist(cls: str, names: tuple[str, ...] | None = None) -> Published:
    from torchvision import datasets

    kind = getattr(datasets, cls)

    def read(root: str, train: bool, download: bool) -> Arrays:
        found = kind(root, train=train, download=download)
        return found.data.numpy(), found.targets, names or tuple(found.classes)

    files = tuple((f"{cls}/raw/{file.removesuffix('.gz')}", None) for file, _ in kind.resources)
    return Published(f"torchvision's {cls}/raw", files, kind.mirrors[0], f"{cls}/raw", read)


def _emnist() -> Published:
    from torchvision.datasets import EMNIST

    def read(root: str, train: bool, download: bool) -> Arrays:
        found = EMNIST(root, split="balanced", train=train, download=download)
        return found.data.numpy().transpose(0, 2, 1), found.targets, tuple(found.classes)

    kinds = ("images-idx3", "labels-idx1")
    names = [f"emnist-balanced-{part}-{kind}-ubyte" for part in ("train", "test") for kind in kinds]
    files = tuple((f"EMNIST/raw/{name}", None) for name in names)
    return Published("torchvision's EMNIST/raw", files, EMNIST.url, "EMNIST/raw", read)


SETS: Mapping[str, Callable[[], Published]] = {
    "cifar10": partial(_cifar, "CIFAR10"),
    "cifar100": partial(_cifar, "CIFAR100"),
    "svhn": _svhn,
    "stl10": _stl10,
    "mnist": partial(_mnist, "MNIST", DIGITS),
    "fashion_mnist": partial(_mnist, "FashionMNIST"),
    "kmnist": partial(_mnist, "KMNIST"),
    "emnist": _emnist,
}
