"""Which pixels of an image are its object: from a folder of mask images, an array, boxes, or a callable."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from hardy.data.array import ArrayData
from hardy.data.folder import identity
from hardy.data.pictures import DAMAGED, SUFFIXES
from hardy.errors import DataError, did_you_mean

__all__ = ["MaskSource", "object_masks", "with_background"]

# a text, or a callable (images uint8 (n, c, h, w), identities (n,)) -> bool (n, h, w)
MaskSource = str | Path | Callable[[Tensor, Tensor], Tensor]
KINDS = ("folder", "npz", "boxes")


def object_masks(data: ArrayData, masks: MaskSource) -> tuple[Bool[Tensor, "n h w"], Bool[Tensor, "n"]]:
    """Find the object in every image, as far as it is known.

    Args:
        data: The images.
        masks: One of

            - ``folder:DIR`` (or just DIR), for images from a folder: a mask image for an image, at the same path below
              DIR, whatever the suffix; bright pixels (above 127) are the object. Masks of another size than the images
              are resized and cut as the images are.
            - ``npz:FILE``, for images from an array: ``masks_train`` or ``masks_test``, (n, h, w), not zero where the
              object is; the row is the identity of the image: its place in the part of the file it comes from.
            - ``boxes:FILE``: a CSV file with the columns ``image,left,top,right,bottom``; image is the path below the
              folder, or the identity; bounds are pixels of the images as they are in ``data``, right and bottom
              excluded. Several boxes of an image add up.
            - a callable that gets the images, uint8 (n, c, h, w), and their identities, int64 (n,), and gives bool
              (n, h, w).

    Returns:
        True where the object is, and which images are known; one without any object is not.

    Raises:
        DataError: no such source, one that cannot be read or does not fit, or one that knows none of the images.
    """
    if callable(masks):
        found, known = _called(data, masks), torch.ones(len(data), dtype=torch.bool)
    else:
        kind, _, where = str(masks).partition(":")
        if kind not in KINDS:
            if not Path(masks).is_dir():
                raise DataError(f"masks {str(masks)!r}: must be a folder, folder:DIR, npz:FILE or boxes:FILE; "
                                f"{did_you_mean(kind, KINDS)}")  # fmt: skip
            kind, where = "folder", str(masks)
        found, known = {"folder": _folder, "npz": _npz, "boxes": _boxes}[kind](data, Path(where))
    known = known & found.flatten(1).any(dim=1)  # an image without any object is one that nobody marked
    if not known.any():
        raise DataError(
            f"masks {masks}: must mark objects in images of {data.name} ({data.split}); "
            f"got none in {len(data)}. Bright pixels (above 127) of mask images are the object."
        )
    return found, known


def with_background(data: ArrayData, masks: MaskSource) -> ArrayData:
    """Give the data with the background of every image whose object is known; arguments as :func:`object_masks`."""
    found, known = object_masks(data, masks)
    background = (~found & known[:, None, None]).to(torch.uint8) * 255
    return replace(data, background=background)


def _called(data: ArrayData, ask: Callable[[Tensor, Tensor], Tensor]) -> Bool[Tensor, "n h w"]:
    found = ask(data.x, data.index)
    wanted = (len(data), *data.shape[1:])
    if not isinstance(cast("object", found), Tensor) or found.dtype != torch.bool or found.shape != wanted:
        got = (
            f"{found.dtype} {tuple(found.shape)}" if isinstance(cast("object", found), Tensor) else type(found).__name__
        )
        raise DataError(f"masks: a callable (images, identities) must give bool (n, h, w) = {wanted}; got {got}.")
    return found


def _folder(data: ArrayData, root: Path) -> tuple[Bool[Tensor, "n h w"], Bool[Tensor, "n"]]:
    """Read the masks whose paths are those of images."""
    if not root.is_dir():
        raise DataError(f"masks folder:{root}: no such folder.")
    found, known = _nothing(data)
    places = _places(data)
    for file in sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES):
        stem = file.relative_to(root).with_suffix("").as_posix()
        for suffix in SUFFIXES:
            for name in (stem + suffix, stem + suffix.upper()):
                if (place := places.get(identity(name))) is not None:
                    found[place], known[place] = _read(file, data.shape[1:]), True
    return found, known


def _read(file: Path, size: tuple[int, int]) -> Bool[Tensor, "h w"]:
    """Read a mask image; one of another size is resized by its short side and its centre is cut out, as images are."""
    try:
        with Image.open(file) as image:
            values = torch.from_numpy(np.array(image.convert("L"), dtype=np.uint8))
    except DAMAGED as error:
        raise DataError(f"masks: {file} cannot be read ({error}).") from error
    if values.shape != size:
        h, w = values.shape
        if size[0] != size[1]:
            raise DataError(f"masks: {file} must be {size[1]} x {size[0]} pixels, as its image; got {w} x {h}.")
        new = [max(size[0], round(side * size[0] / min(h, w))) for side in (h, w)]
        values = F.interpolate(values[None, None].float(), size=new, mode="bilinear", antialias=True)[0, 0]
        top, left = (new[0] - size[0]) // 2, (new[1] - size[1]) // 2
        values = values[top : top + size[0], left : left + size[1]]
    return values > 127


def _npz(data: ArrayData, file: Path) -> tuple[Bool[Tensor, "n h w"], Bool[Tensor, "n"]]:
    """Read an array of masks whose rows are identities."""
    part = "test" if data.split == "test" else "train"
    try:
        with np.load(file, allow_pickle=False) as held:
            keys = [key for key in (f"masks_{data.split}", f"masks_{part}") if key in held.files]
            values = held[keys[0]] if keys else None
            names = ", ".join(held.files)
    except DAMAGED as error:
        raise DataError(f"masks npz:{file}: must be a readable .npz file ({error}).") from error
    if values is None:
        raise DataError(f"masks npz:{file}: must hold masks_{part}; got {names}.")
    if values.ndim != 3 or values.shape[1:] != data.shape[1:] or values.dtype.kind not in "bui":
        raise DataError(
            f"masks npz:{file}: must be whole numbers (n, h, w) with h, w = {data.shape[1:]}; "
            f"got {values.dtype}, {values.shape}."
        )
    last = int(data.index.max())
    if not 0 <= int(data.index.min()) <= last < len(values):
        raise DataError(
            f"masks npz:{file}: must have a row for every image of the whole part, at least {last + 1}, as rows are "
            f"identities; got {len(values)}."
        )
    known = torch.ones(len(data), dtype=torch.bool)
    found, _ = _nothing(data)
    found[known] = torch.from_numpy(values[data.index[known].numpy()] != 0)
    return found, known


def _boxes(data: ArrayData, file: Path) -> tuple[Bool[Tensor, "n h w"], Bool[Tensor, "n"]]:
    """Fill boxes."""
    found, known = _nothing(data)
    places, (h, w) = _places(data), data.shape[1:]
    for line, name, (left, top, right, bottom) in _lines(file):
        whole = int(name) if name.lstrip("-").isdecimal() else identity(name)
        if (place := places.get(whole)) is None:
            continue  # of another part
        if not (0 <= left < right <= w and 0 <= top < bottom <= h):
            raise DataError(f"masks {file}, line {line}: a box must lie in {w} x {h} pixels; "
                            f"got {left}, {top}, {right}, {bottom}.")  # fmt: skip
        found[place, top:bottom, left:right], known[place] = True, True
    return found, known


def _lines(file: Path) -> Iterator[tuple[int, str, tuple[int, int, int, int]]]:
    """Read the lines of a file of boxes.

    Raises:
        DataError: it cannot be read, or a line is no box.
    """
    names = ("left", "top", "right", "bottom")
    try:
        with file.open(encoding="utf-8", newline="") as held:
            reader = csv.DictReader(held)
            if not {"image", *names} <= set(reader.fieldnames or ()):
                raise DataError(f"masks {file}: its first line must be image,left,top,right,bottom.")
            for row in reader:
                left, top, right, bottom = (int(row[name]) for name in names)
                yield reader.line_num, row["image"], (left, top, right, bottom)
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise DataError(
            f"masks {file}: every line must be a path or number and four whole numbers ({error})."
        ) from error


def _nothing(data: ArrayData) -> tuple[Bool[Tensor, "n h w"], Bool[Tensor, "n"]]:
    return torch.zeros(len(data), *data.shape[1:], dtype=torch.bool), torch.zeros(len(data), dtype=torch.bool)


def _places(data: ArrayData) -> dict[int, int]:
    return {int(index): place for place, index in enumerate(data.index)}
