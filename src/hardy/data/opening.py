"""Open data by name, in memory where they are small and on the disk where they are not."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import torch
from PIL import Image

from hardy.data.array import ArrayData
from hardy.data.load import open_rows, read_all
from hardy.data.pictures import DAMAGED, Bad, FolderReader, leave_out, verify
from hardy.data.rows import GIB, Rows, Split, free_bytes
from hardy.data.stream import StreamData
from hardy.data.workers import auto_workers
from hardy.errors import DataError

__all__ = ["open_data"]

RESIDENT = 2 * GIB  # images above this stay on the disk,
FREE_SHARE = 0.25  # and those above this share of the free memory
VERIFIED = 50_000  # image files: so many are all read once before training, of more only with skip_bad

Shape = tuple[int, int, int]


def open_data(
    spec: str,
    *,
    split: Split = "test",
    limit: int | None = None,
    size: int | None = None,
    seed: int = 0,
    val_fraction: float = 0.1,
    download: bool = False,
    skip_bad: bool = False,
    stream: bool | Literal["auto"] = "auto",
    workers: int | Literal["auto"] = "auto",
    augment: Sequence[str] = (),
) -> ArrayData | StreamData:
    """Open one part of a data set: in memory, or on the disk with worker processes that read it batch by batch.

    Both give the same images, labels, identities, batches and keys; with "resized_crop" a folder's windows come out of
    whole pictures when streamed, and out of the centres of ``size`` when in memory. Images are resized as by
    :func:`load_data` in both: short side to ``size``, then the centre.

    Up to 50,000 image files are all read once, so that a damaged one is found before training; of more only with
    ``skip_bad``, and otherwise the error comes when the image is due, and names it. Without ``size``, the sizes of all
    are looked at in any case.

    Args:
        spec: As for :func:`load_data`, and so the next seven.
        split: "train", "val" or "test".
        limit: At most this many images.
        size: Height and width.
        seed: Seed of the validation part and of the choice of ``limit``.
        val_fraction: Share of the training data for validation, in [0, 1).
        download: Let torchvision fetch a published set that is not there.
        skip_bad: Leave out images that cannot be read.
        stream: True: on the disk; False: in memory; "auto": on the disk if the images would take more than 2 GiB or a
            quarter of the free memory, or if ``augment`` has "resized_crop" and they are files of their own. A
            compressed ``.npz`` cannot be streamed.
        workers: Processes that read when streamed; "auto": one per core but one, at most 8.
        augment: What will be done to the images.

    Raises:
        DataError: as :func:`load_data`; or to be streamed, but compressed.
        ParameterError: a bad argument.
    """
    rows = open_rows(spec, split=split, limit=limit, size=size, seed=seed, val_fraction=val_fraction, download=download)
    reader = rows.read.streamed() if stream is not False and len(rows.y) else None
    if reader is None and stream is True:
        raise DataError(
            f"{rows.name}: to be streamed, the arrays of a .npz file must not be compressed. Write it with "
            "numpy.savez, or take stream = false."
        )
    if reader is not None:
        on_disk = replace(rows, read=reader)
        shape = _shape(on_disk, size)
        if stream is True or _too_large(on_disk, shape) or _whole_pictures(on_disk, augment):
            if isinstance(reader, FolderReader):
                on_disk, skipped = _verified(on_disk, reader, shape, skip_bad=skip_bad)
            else:
                skipped = ()
            count = auto_workers() if workers == "auto" else workers
            return StreamData(on_disk, shape, split, size, count, skipped)
    return read_all(rows, split=split, size=size, skip_bad=skip_bad)


def _too_large(rows: Rows, shape: Shape) -> bool:
    free = free_bytes()
    most = RESIDENT if free is None else min(RESIDENT, FREE_SHARE * free)
    return len(rows.y) * shape[0] * shape[1] * shape[2] > most


def _whole_pictures(rows: Rows, augment: Sequence[str]) -> bool:
    """Say whether windows are to be cut out of pictures larger than what would be in memory."""
    return "resized_crop" in augment and isinstance(rows.read, FolderReader)


def _shape(rows: Rows, size: int | None) -> Shape:
    """Give the shape of the images as they will be read; of a folder without ``size``, that of the first readable."""
    if not isinstance(rows.read, FolderReader):
        c, h, w = rows.read(torch.tensor([0])).shape[1:]
        return (c, h, w) if size is None else (c, size, size)
    if size is not None:
        return 3, size, size
    h, w = rows.read.first_size()
    return 3, h, w


def _verified(rows: Rows, reader: FolderReader, shape: Shape, *, skip_bad: bool) -> tuple[Rows, tuple[str, ...]]:
    """Read the files once if they are few or bad ones are to be left out; give the good ones, and what was left out.

    Raises:
        DataError: unreadable images that are not to be left out, or sizes that differ.
    """
    bad = verify(rows) if skip_bad or len(reader) <= VERIFIED else []
    skipped: tuple[str, ...] = ()
    if skip_bad:
        rows, skipped = leave_out(rows, bad)
    else:
        reader.refuse(bad)
    kept = rows.read
    if reader.size is None and isinstance(kept, FolderReader):
        with ThreadPoolExecutor() as pool:
            odd = list(pool.map(lambda i: _other_size(kept, i, shape), range(len(kept))))
        kept.refuse([one for one in odd if one is not None])
    return rows, skipped


def _other_size(reader: FolderReader, position: int, shape: Shape) -> Bad | None:
    try:
        with Image.open(reader.path(position)) as image:
            w, h = image.size
    except DAMAGED as error:
        return Bad(position, reader.path(position), f"cannot be read ({str(error) or type(error).__name__})")
    if (h, w) == shape[1:]:
        return None
    return Bad(position, reader.path(position), f"is {h}x{w}, not {shape[1]}x{shape[2]}: set size")
