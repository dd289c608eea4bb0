"""A folder of images, one sub-folder per class; what is where is listed first, images are read when they are wanted."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from hardy.data.pictures import SUFFIXES, FolderReader
from hardy.data.rows import Rows, Split
from hardy.errors import DataError

__all__ = ["class_folders", "folder", "identity", "list_parts"]

TEST_FRACTION = 0.2  # where a folder has no test part


def folder(path: Path | None, size: int | None, download: bool = False) -> dict[Split, Rows]:
    """Read ``DIR/train/CLASS/*`` and ``DIR/test/CLASS/*`` (or ``DIR/val``), or ``DIR/CLASS/*``.

    With both ``test`` and ``val``, ``val`` is the validation part. Without sub-folders for the parts, a fifth of each
    class, chosen by a hash of the path below DIR and never by the seed, is the test part. Images become RGB; with
    ``size`` the short side is resized to it and the centre is cut out, without it all must be of one size. The identity
    of an image is a hash of its path below DIR.

    Raises:
        DataError: no such folder, no images, or a folder that cannot be read.
    """
    del download
    if path is None or not path.is_dir():
        raise DataError(f"data 'folder:{path or ''}': no such folder. Write folder:DIR.")
    name = f"folder:{path}"
    if not any((path / part).is_dir() for part in ("train", "val", "test")):
        whole = _rows(path, path, class_folders(path, name), size, name)
        stay, cut = whole.divide(TEST_FRACTION, seed=0, purpose="test part")
        return {"train": stay, "test": cut}
    roots: dict[Split, Path] = {part: path / part for part in ("train", "val", "test") if (path / part).is_dir()}
    if "test" not in roots and "val" in roots:
        roots["test"] = roots.pop("val")
    return list_parts(roots, path, size, name)


def list_parts(roots: Mapping[Split, Path], base: Path, size: int | None, name: str) -> dict[Split, Rows]:
    """List the images of every part; the classes are those of the training part, or of the first there is.

    Raises:
        DataError: a part without images, with a class that training has not, or that cannot be read.
    """
    classes = class_folders(roots["train"] if "train" in roots else next(iter(roots.values())), name)
    for root in roots.values():
        if unknown := sorted(set(class_folders(root, name)) - set(classes)):
            raise DataError(f"{name}: {root.name} has the class {unknown[0]!r}, which train has not.")
    return {part: _rows(root, base, classes, size, name) for part, root in roots.items()}


def class_folders(root: Path, name: str) -> tuple[str, ...]:
    """List the names of the class folders, sorted; hidden ones are none.

    Raises:
        DataError: there is none, or the folder cannot be read.
    """
    try:
        found = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))
    except OSError as error:
        raise DataError(f"{name}: {root} cannot be read ({error.strerror}).") from error
    if not found:
        raise DataError(f"{name}: {root} must have one sub-folder per class; got none.")
    return found


def _rows(root: Path, base: Path, classes: tuple[str, ...], size: int | None, name: str) -> Rows:
    files: list[bytes] = []
    labels: list[int] = []
    for label, each in enumerate(classes):
        where = root / each
        below = where.relative_to(base).as_posix()
        here = [f"{below}/{file}".encode("utf-8", "surrogateescape") for file in _images(where, name)]
        files += here
        labels += [label] * len(here)
    if not files:
        raise DataError(f"{name}: no images below {root}; known are {', '.join(SUFFIXES)}.")
    index = torch.tensor([_hash(file) for file in files])
    return Rows(torch.tensor(labels), index, classes, name, FolderReader(base, np.array(files), size, name))


def _images(root: Path, name: str) -> list[str]:
    """List the images below a folder, sorted by the parts of their paths; a link that leads nowhere is one of them."""
    found, todo = [], [""] if root.is_dir() else []  # a part need not have every class
    try:
        while todo:
            below = todo.pop()
            with os.scandir(root / below) as entries:
                for entry in entries:
                    path = f"{below}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(f"{path}/")
                    elif os.path.splitext(path)[1].lower() in SUFFIXES and _is_file(entry):  # noqa: PTH122  (fast)
                        found.append(path)
    except OSError as error:
        raise DataError(f"{name}: {error.filename} cannot be read ({error.strerror}).") from error
    return sorted(found, key=lambda path: path.split("/"))


def _is_file(entry: "os.DirEntry[str]") -> bool:
    return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())


def identity(path: str) -> int:
    """Give the identity of the image at a path below the folder, with "/" between its parts."""
    return _hash(path.encode("utf-8", "surrogateescape"))


def _hash(path: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "little", signed=True)
