"""Files that are whole or absent, and readers that execute nothing.

Writing goes to a temporary file in the same folder, is flushed to the disk and renamed, so a crash, a full disk or
Ctrl-C leaves either the old file or the new one. Reading a tensor file parses the safetensors format only: no pickle.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
from torch import Tensor

from hardy.errors import CheckpointError, DataError

__all__ = ["read_header", "read_tensors", "write_atomic", "write_json", "write_tensors", "write_text"]

HEADER = "hardy"  # the one key of the safetensors metadata


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Give ``write`` an open binary file; it becomes ``path`` only once it is complete and on the disk.

    Raises:
        DataError: the folder cannot be written, or the disk is full; an old file of that name is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise DataError(f"{path}: cannot write here ({error.strerror}). Choose another folder with --out.") from error
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)  # mkstemp makes private files
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise DataError(f"{path}: writing failed ({error.strerror}); nothing was changed.") from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; NaN and infinity are errors, not invalid JSON."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header as one safetensors file, atomically.

    Tensors that share memory (tied weights) are written once each, as separate copies.
    """
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data = safetensors.torch.save(flat, metadata={HEADER: json.dumps(header, allow_nan=False)})
    write_atomic(path, lambda file: file.write(data))


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...]]]]:
    """Read the JSON header and the name, dtype and shape of every tensor, without reading a tensor.

    Raises:
        CheckpointError: not a file, not safetensors, truncated, or without a Hardy header.
    """
    with _open(path) as file:
        text = (file.metadata() or {}).get(HEADER)
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a dict)  (not a dict)
        shapes = {name: (str(part.get_dtype()), tuple(part.get_shape())) for name, part in slices.items()}
    if text is None:
        raise CheckpointError(f"{path}: safetensors, but not written by Hardy (no header). Load it as weights instead.")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: the header is not JSON ({type(error).__name__}). The file is damaged."
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header must be a JSON object; got {type(header).__name__}.")
    return header, shapes


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors to the CPU.

    Raises:
        CheckpointError: not a file, not safetensors, or truncated.
    """
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)


@contextlib.contextmanager
def _open(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}).") from error


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; not every system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
