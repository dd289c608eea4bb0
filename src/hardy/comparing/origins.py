"""What a cell rests on besides its recipe: images and files, as digests, so that a changed one is noticed."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hardy import io
from hardy.data import ArrayData, StreamData
from hardy.errors import ConfigError, DataError
from hardy.training.folder import RunFolder
from hardy.training.recipe import Recipe

__all__ = ["Origins", "data_digest", "file_digest", "net_files", "source_file", "source_names"]


@dataclass(frozen=True)
class Origins:
    """Digests of what is read from the disk, by what it is, in words.

    Attributes:
        training: Behind the training of each net, by its name: images, a factory file, a weights file.
        question: Behind the evaluation: test images, sources.
    """

    training: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    question: Mapping[str, str] = field(default_factory=dict)


def file_digest(path: str | Path) -> str:
    """Hash the bytes of a file: 32 hex characters of BLAKE2b.

    Raises:
        DataError: it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        with Path(path).open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return digest.hexdigest()


def data_digest(data: ArrayData | StreamData, *, pixels: bool = True) -> str:
    """Hash images, labels and identities, in order: 32 hex characters of BLAKE2b.

    Args:
        data: The images.
        pixels: False: labels and identities alone, for what is too large to be read for this.
    """
    digest = hashlib.blake2b(f"{data.shape} {data.class_names}".encode(), digest_size=16)
    for values in (data.y, data.index):
        digest.update(values.contiguous().numpy().tobytes())
    if not pixels:
        return digest.hexdigest()
    if isinstance(data, ArrayData):
        digest.update(data.x.contiguous().numpy().data)
    else:
        for x, _ in data.batches(256):
            digest.update(x.mul(255).round().byte().contiguous().numpy().data)
    return digest.hexdigest()


def net_files(recipe: Recipe) -> dict[str, str]:
    """Hash the files that a net is built from: that of a factory (not what it imports), and one of weights."""
    name, weights = recipe.model.name, recipe.model.pretrained
    file = name.rpartition(":")[0] if ".py:" in name else name if name.endswith(io.SUFFIX) else ""
    found = {file: file_digest(file)} if file else {}
    return found | ({weights: file_digest(weights)} if isinstance(weights, str) and Path(weights).is_file() else {})


def source_file(text: str) -> Path:
    """Give the file of a source: of a run folder, its net."""
    folder = RunFolder(text)
    return folder.model_file if folder.path.is_dir() else Path(text)


def source_names(texts: Sequence[str]) -> tuple[str, ...]:
    """Name sources by their paths, by as many parts from the end as it takes to tell them apart.

    Raises:
        ConfigError: one is named twice.

    Example:
        >>> source_names(["a/wrn_0.3", "b/wrn_0.3", "c/plain.safetensors"])
        ('a/wrn_0.3', 'b/wrn_0.3', 'plain')
    """
    parts = [Path(os.path.abspath(text.removesuffix(io.SUFFIX))).parts for text in texts]  # noqa: PTH100  (links stay)
    names = []
    for own, text in zip(parts, texts, strict=True):
        if parts.count(own) > 1:
            raise ConfigError(f"compare.sources: every net must be named once; got {text} twice.")
        depth = next(d for d in range(1, len(own) + 1) if sum(other[-d:] == own[-d:] for other in parts) == 1)
        names.append("/".join(own[-depth:]))
    return tuple(names)
