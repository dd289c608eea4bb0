"""ImageNet (ILSVRC 2012) and its subsets, as folders of WordNet ids."""

import pickle
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hardy.data import arrays
from hardy.data.folder import list_parts
from hardy.data.rows import Rows, Split
from hardy.errors import DataError

__all__ = ["imagenet"]

WNID = re.compile(r"n\d{8}")
META = "meta.bin"  # which torchvision's class writes: (wnid -> words, wnids of the validation images)
DAMAGED = (*arrays.DAMAGED, AttributeError, IndexError, pickle.PickleError)


def imagenet(path: Path | None, size: int | None, download: bool = False) -> dict[Split, Rows]:
    """Read ``DIR/train/WNID/*`` and ``DIR/val/WNID/*``, where WNID is like n01440764; ``val`` is the test part.

    One of both is enough, and so are some of the classes. Class k is the k-th WordNet id in sorted order, which for all
    1,000 is the usual order. Classes are named by the first of their words in ``meta.bin``, if that lies in DIR, with
    the id behind it where two share their name; else by their ids. Images as with ``folder:DIR``.

    Args:
        path: The folder.
        size: Side to which images are resized and cut.
        download: Unused: ImageNet is given out to registered users only.

    Raises:
        DataError: no such folder, other class folders, no images, or a damaged ``meta.bin``.
    """
    del download
    name = f"imagenet:{path or ''}"
    folders: dict[Split, str] = {"train": "train", "test": "val"}
    roots = {part: path / each for part, each in folders.items() if (path / each).is_dir()} if path is not None else {}
    if path is None or not roots:
        raise DataError(
            f"data {name!r}: must have train/ or val/ with one folder per WordNet id; there is neither. Write "
            "imagenet:DIR. ImageNet cannot be downloaded without an account (https://image-net.org); "
            "torchvision.datasets.ImageNet(DIR, split) unpacks its archives in this layout."
        )
    parts = list_parts(roots, path, size, name)
    wnids = next(iter(parts.values())).class_names
    if other := [each for each in wnids if not WNID.fullmatch(each)]:
        raise DataError(f"{name}: class folders must be WordNet ids, as n01440764; got {other[0]!r}. Use folder:DIR.")
    names = _names(path / META, wnids, name) if (path / META).is_file() else wnids
    return {part: replace(rows, class_names=names) for part, rows in parts.items()}


def _names(file: Path, wnids: Sequence[str], name: str) -> tuple[str, ...]:
    """Name classes by the first of their words; those that share it get their id behind it."""
    words = _words(file, name)
    first = [words.get(wnid, (wnid,))[0] for wnid in wnids]
    counts = Counter(first)
    return tuple(each if counts[each] == 1 else f"{each} ({wnid})" for each, wnid in zip(first, wnids, strict=True))


def _words(file: Path, name: str) -> Mapping[str, tuple[str, ...]]:
    from torchvision.datasets.imagenet import load_meta_file

    try:
        found, _ = load_meta_file(file.parent, file.name)  # only tensors and plain objects are unpickled
        words = {str(wnid): tuple(str(word) for word in given) for wnid, given in found.items()}
    except DAMAGED as error:
        raise DataError(
            f"{name}: {file} must be the file that torchvision writes ({type(error).__name__}). Delete it: the classes "
            "are then named by their WordNet ids."
        ) from error
    return {wnid: given for wnid, given in words.items() if given}
