"""A folder of images, one sub-folder per class; decoded once, by a pool of threads, before anything is trained."""

import hashlib
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from hardy.data.rows import Rows, Split, check_memory
from hardy.errors import DataError

__all__ = ["SUFFIXES", "folder"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
TEST_FRACTION = 0.2  # where a folder has no test part
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)

Picture = npt.NDArray[np.uint8]


def folder(path: Path | None, size: int | None) -> dict[Split, Rows]:
    """Read ``DIR/train/CLASS/*`` and ``DIR/test/CLASS/*`` (or ``DIR/val``), or ``DIR/CLASS/*``.

    With both ``test`` and ``val``, ``val`` is the validation part. Without sub-folders for the parts, a fifth of each
    class, chosen by a hash of the path below DIR and never by the seed, is the test part. Images become RGB; with
    ``size`` the short side is resized to it and the centre is cut out, without it all must be of one size. The identity
    of an image is a hash of its path below DIR.

    Raises:
        DataError: no such folder, no images, unreadable images, or too many for the memory.
    """
    if path is None or not path.is_dir():
        raise DataError(f"data 'folder:{path or ''}': no such folder. Write folder:DIR.")
    name = f"folder:{path}"
    if not any((path / part).is_dir() for part in ("train", "val", "test")):
        whole = _rows(path, path, _classes(path, name), size, name)
        stay, cut = whole.divide(TEST_FRACTION, seed=0, purpose="test part")
        return {"train": stay, "test": cut}
    roots: dict[Split, Path] = {part: path / part for part in ("train", "val", "test") if (path / part).is_dir()}
    if "test" not in roots and "val" in roots:
        roots["test"] = roots.pop("val")
    classes = _classes(roots["train"] if "train" in roots else next(iter(roots.values())), name)
    for root in roots.values():
        if unknown := sorted(set(_classes(root, name)) - set(classes)):
            raise DataError(f"{name}: {root.name} has the class {unknown[0]!r}, which train has not.")
    return {part: _rows(root, path, classes, size, name) for part, root in roots.items()}


def decode(file: Path, size: int | None) -> Picture:
    """Decode one image to RGB, ``h w 3``; with ``size`` resize its short side to it and cut out the centre."""
    with Image.open(file) as image:
        rgb = image.convert("RGB")
    if size is not None:
        scale = size / min(rgb.size)
        w, h = max(size, round(rgb.width * scale)), max(size, round(rgb.height * scale))
        left, top = (w - size) // 2, (h - size) // 2
        rgb = rgb.resize((w, h), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return np.asarray(rgb, dtype=np.uint8)


def _classes(root: Path, name: str) -> tuple[str, ...]:
    found = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if not found:
        raise DataError(f"{name}: {root} must have one sub-folder per class; got none.")
    return found


def _rows(root: Path, base: Path, classes: tuple[str, ...], size: int | None, name: str) -> Rows:
    files, labels = [], []
    for label, each in enumerate(classes):
        here = sorted(p for p in (root / each).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        files += here
        labels += [label] * len(here)
    if not files:
        raise DataError(f"{name}: no images below {root}; known are {', '.join(SUFFIXES)}.")
    index = torch.tensor([_identity(file.relative_to(base)) for file in files])
    y = torch.tensor(labels, dtype=torch.int64)
    return Rows(y, index, classes, name, lambda rows: _read([files[i] for i in rows.tolist()], size, name))


def _identity(path: Path) -> int:
    digest = hashlib.blake2b(path.as_posix().encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _read(files: Sequence[Path], size: int | None, name: str) -> Tensor:
    """Decode all files to ``n 3 h w``; those that cannot be decoded, or have another size, are named together."""
    w, h = (size, size) if size is not None else _size(files[0], name)
    check_memory((len(files), 3, h, w), name)
    x = np.empty((len(files), 3, h, w), dtype=np.uint8)

    def one(i: int) -> str | None:
        try:
            picture = decode(files[i], size)
        except DAMAGED as error:
            return f"{files[i]} cannot be read ({error})"
        if picture.shape != (h, w, 3):
            return f"{files[i]} is {picture.shape[0]}x{picture.shape[1]}, not {h}x{w}: set size"
        x[i] = picture.transpose(2, 0, 1)
        return None

    with ThreadPoolExecutor() as pool:
        bad = [reason for reason in pool.map(one, range(len(files))) if reason is not None]
    if bad:
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise DataError(f"{name}: every image must be readable and of one size; {'; '.join(bad[:3])}{more}.")
    return torch.from_numpy(x)


def _size(file: Path, name: str) -> tuple[int, int]:
    """Read width and height of an image from its header."""
    try:
        with Image.open(file) as image:
            w, h = image.size
    except DAMAGED as error:
        raise DataError(f"{name}: every image must be readable; {file} is not ({error}).") from error
    return w, h
