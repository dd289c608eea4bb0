"""Image files: reading them one by one or all at once, finding those that cannot be read, and leaving these out."""

import logging
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import get_worker_info

from hardy.data.rows import Reader, Rows, check_memory
from hardy.errors import DataError

__all__ = ["SUFFIXES", "Bad", "FolderReader", "decode", "leave_out", "verify"]

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# what Pillow raises for damaged files; NotImplementedError is a RuntimeError
DAMAGED = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, IndexError, SyntaxError, MemoryError),
    *(AttributeError, AssertionError, ArithmeticError, struct.error, zlib.error, Image.DecompressionBombError),
)
SHARE = 0.5  # of the images that may be left out, at most
TOLD = 20  # files that are named in the log
BLOCK = 32  # files that a thread takes at a time

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Bad:
    """A file that is of no use.

    Attributes:
        position: Which of the images it is.
        file: Where it lies.
        reason: What is wrong with it, as in "cannot be read (...)".
    """

    position: int
    file: Path
    reason: str

    def __str__(self) -> str:
        path = str(self.file)
        return f"{path if path.isprintable() else repr(path)} {self.reason}"


@dataclass(frozen=True, eq=False)
class FolderReader(Reader):
    """Reads images of a folder.

    Attributes:
        root: The folder.
        files: Paths below it, in UTF-8 with "/" between their parts: one array of bytes, which is small to send.
        size: Side in pixels to which images are resized and cut when they are read all at once; None: as they are.
        name: The data as the user named it.
    """

    root: Path
    files: npt.NDArray[np.generic]  # bytes of one length
    size: int | None
    name: str

    def __len__(self) -> int:
        return len(self.files)

    def take(self, positions: Int64[Tensor, "m"]) -> "FolderReader":
        """Give a reader of the images at these positions."""
        return replace(self, files=self.files[positions.numpy()])

    def path(self, position: int) -> Path:
        """Say where an image lies."""
        return self.root / bytes(self.files[position]).decode("utf-8", "surrogateescape")

    def picture(self, position: int) -> Image.Image:
        """Decode one image to RGB, in the size that it has in its file.

        Raises:
            DataError: it cannot be read; the message names the file.
        """
        try:
            return _rgb(self.path(position))
        except DAMAGED as error:
            raise DataError(f"{self.name}: every image must be readable; {self._bad(position, error)}.") from error

    def __call__(self, rows: Int64[Tensor, "m"]) -> Tensor:
        """Decode the images at these positions, on threads: uint8, ``m 3 h w``.

        Raises:
            DataError: files that cannot be read or have another size than the first; the message names some of them.
        """
        chosen = self.take(rows)
        x, bad, odd = chosen._decode()  # noqa: SLF001  (its own class)
        chosen.refuse([*bad, *odd])
        return x

    def readable(self) -> tuple[Tensor, list[Bad]]:
        """Decode all images that can be read: these, in order, as ``m 3 h w``, and what is wrong with the others.

        Raises:
            DataError: images of different sizes.
        """
        x, bad, odd = self._decode()
        self.refuse(odd)
        keep = np.setdiff1d(np.arange(len(self)), [one.position for one in bad])
        for to, place in enumerate(keep.tolist()):
            if to != place:
                x[to] = x[place]  # in place: twice the images may not fit into the memory
        return x[: len(keep)], bad

    def refuse(self, bad: Sequence[Bad]) -> None:
        """Raise an error that names the first files, if there are any.

        Raises:
            DataError: see above.
        """
        if bad:
            some = sorted(bad, key=lambda one: one.position)[:3]
            more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
            raise DataError(
                f"{self.name}: every image must be readable, and of one size unless it is resized; "
                f"{'; '.join(map(str, some))}{more}. Mend the files, or leave them out by --skip-bad (data.skip_bad)."
            )

    def _decode(self) -> tuple[Tensor, list[Bad], list[Bad]]:
        """Decode all images; give also those that cannot be read, and those that have another size than the first."""
        h, w = (self.size, self.size) if self.size is not None else self.first_size()
        check_memory((len(self), 3, h, w), self.name)
        x = np.empty((len(self), 3, h, w), dtype=np.uint8)
        odd: list[Bad] = []

        def one(i: int) -> Bad | None:
            try:
                picture = decode(self.path(i), self.size)
            except DAMAGED as error:
                return self._bad(i, error)
            if picture.shape != (h, w, 3):
                odd.append(Bad(i, self.path(i), f"is {picture.shape[0]}x{picture.shape[1]}, not {h}x{w}: set size"))
            else:
                x[i] = picture.transpose(2, 0, 1)
            return None

        bad = _each(one, len(self))
        return torch.from_numpy(x), bad, odd

    def first_size(self) -> tuple[int, int]:
        """Give height and width of the first image that can be read; 1 and 1 if none can."""
        for i in range(len(self)):
            try:
                picture = _rgb(self.path(i))
            except DAMAGED:
                continue
            return picture.height, picture.width
        return 1, 1

    def _bad(self, position: int, error: Exception) -> Bad:
        return Bad(position, self.path(position), f"cannot be read ({_reason(error)})")

    def check(self, position: int) -> Bad | None:
        """Say whether an image can be read; a JPEG is decoded at an eighth of its size, which finds the same damage."""
        try:
            with Image.open(self.path(position)) as image:
                image.draft("RGB", (1, 1))
                image.convert("RGB")
        except DAMAGED as error:
            return self._bad(position, error)
        return None


def verify(rows: Rows) -> list[Bad]:
    """Find the images that cannot be read, on threads; give them in order. What is read as one file has none.

    Every file is read to its end. A JPEG is decoded at an eighth of its size, which finds the same damage as decoding
    it whole at about 0.6 of the cost (0.8 ms of one core for 500x375 pixels, where decoding and resizing to 224 takes
    2.7 ms); other formats are decoded whole. Nothing is kept in memory.
    """
    reader = rows.read
    return _each(reader.check, len(reader)) if isinstance(reader, FolderReader) else []


def leave_out(rows: Rows, bad: Sequence[Bad]) -> tuple[Rows, tuple[str, ...]]:
    """Leave out the images that cannot be read, and log which; the others keep their identities and their order.

    Args:
        rows: The images.
        bad: What :func:`verify` found.

    Returns:
        The images that stay, and a line about each that does not.

    Raises:
        DataError: more than half of the images cannot be read, or none of a class can.
    """
    if not bad:
        return rows, ()
    n = len(rows.y)
    keep = torch.ones(n, dtype=torch.bool)
    keep[[one.position for one in bad]] = False
    if len(bad) > SHARE * n:
        raise DataError(
            f"{rows.name}: at most half of the images may be left out; {len(bad)} of {n} cannot be read, such as "
            f"{bad[0]}. Is the folder complete?"
        )
    lost = sorted(set(rows.y.tolist()) - set(rows.y[keep].tolist()))
    if lost:
        raise DataError(
            f"{rows.name}: every class must keep an image; none of {rows.class_names[lost[0]]!r} can be read, such as "
            f"{next(one for one in bad if int(rows.y[one.position]) == lost[0])}. Repair some, or drop the class."
        )
    log.warning("%s: left out %d of %d images that cannot be read", rows.name, len(bad), n)
    for one in bad[:TOLD]:
        log.warning("left out: %s", one)
    if len(bad) > TOLD:
        log.warning("left out: and %d more", len(bad) - TOLD)
    return rows.take(keep.nonzero().flatten()), tuple(map(str, bad))


def decode(file: Path, size: int | None) -> Picture:
    """Decode one image to RGB, ``h w 3``; with ``size`` resize its short side to it and cut out the centre."""
    rgb = _rgb(file)
    if size is not None:
        scale = size / min(rgb.size)
        w, h = max(size, round(rgb.width * scale)), max(size, round(rgb.height * scale))
        left, top = (w - size) // 2, (h - size) // 2
        rgb = rgb.resize((w, h), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return np.asarray(rgb, dtype=np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no known image format"
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return str(error) or type(error).__name__


def _rgb(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def _each(look: Callable[[int], Bad | None], n: int) -> list[Bad]:
    """Call ``look`` for 0 .. n - 1 on threads; give what it found, in order."""

    def block(start: int) -> list[Bad]:
        found = (look(i) for i in range(start, min(start + BLOCK, n)))
        return [one for one in found if one is not None]

    alone = get_worker_info() is not None  # among worker processes, which are many enough
    with ThreadPoolExecutor(1 if alone else None) as pool:
        return [one for found in pool.map(block, range(0, n, BLOCK)) for one in found]
