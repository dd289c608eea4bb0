"""Files that are whole or absent, and readers that execute nothing.

Writing goes to a temporary file in the same folder, is flushed to the disk and renamed, so a crash, a full disk or
Ctrl-C leaves either the old file or the new one. What a killed process left of a temporary file is removed by the next
one that writes the same file. Reading a tensor file parses the safetensors format only: no pickle.
"""

import contextlib
import errno
import glob
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
from torch import Tensor

from hardy.errors import CheckpointError, DataError
from hardy.locks import take

__all__ = [
    "check_writable",
    "make_folder",
    "read_header",
    "read_tensors",
    "sweep",
    "write_atomic",
    "write_json",
    "write_pair",
    "write_tensors",
    "write_text",
]

Write = Callable[[IO[bytes]], object]

PART = ".part"  # of a file that is being written: ``.NAME.1a2b3c4d.part``
TRIAL = 4096  # bytes, one block: a disk without room for it is full
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
HEADER = "hardy"  # the one key of the safetensors metadata


def write_atomic(path: Path, write: Write) -> None:
    """Give ``write`` an open binary file; it becomes ``path`` only once it is complete and on the disk.

    Raises:
        DataError: the folder cannot be written, or the disk is full; an old file of that name is untouched.
    """
    with _written(path, write) as part:
        part.replace(path)
        _sync_folder(path.parent)


def write_pair(first: Path, write_first: Write, second: Path, write_second: Write) -> None:
    """Write two files that belong together: both are complete and on the disk before either gets its name.

    A full disk leaves both old ones. Only a kill or broken disk between the two renames leaves a new first file beside
    an old second one, so the second should say which first one is its own.

    Raises:
        DataError: as :func:`write_atomic`.
    """
    with _written(first, write_first) as one, _written(second, write_second) as two:
        one.replace(first)
        two.replace(second)
        _sync_folder(first.parent)
        _sync_folder(second.parent)


def check_writable(path: Path) -> None:
    """Find out, before hours of work, whether a file can be written: write a block beside it and remove it again.

    No folder is made. Whether there is room for all that is to come cannot be known and is not checked.

    Raises:
        DataError: the folder cannot be written, a folder or device has that name, or not one block is free.
    """
    trial: Path | None = None
    try:
        _check_name(path)
        folder = next(folder for folder in path.absolute().parents if folder.exists() or folder.is_symlink())
        sweep(folder, path.name)
        trial = _part_of(folder / path.name)
        with trial.open("xb") as file:
            file.write(bytes(TRIAL))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        if trial is not None:
            _remove(trial)


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left of temporary files: in a folder, or of the one file ``name`` there.

    A part that somebody is writing is locked and stays.
    """
    for part in list(folder.glob(f".{'*' if name is None else glob.escape(name)}.*{PART}")):
        with contextlib.suppress(OSError), part.open("rb") as file:
            if take(file.fileno()):
                part.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder and what it lies in, and make their names durable.

    Raises:
        DataError: it cannot be made.
    """
    try:
        _make_folder(folder)
    except OSError as error:
        raise _refused(folder, error) from error


@contextlib.contextmanager
def _written(path: Path, write: Write) -> Iterator[Path]:
    """Write a temporary file for ``path`` to the disk; in the end it is gone, unless it was renamed."""
    try:
        _check_name(path)
        _make_folder(path.parent)
        sweep(path.parent, path.name)
        part, file = _new(path)
    except OSError as error:
        raise _refused(path, error) from error
    try:
        with file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            yield part  # still open, and so locked
    except OSError as error:
        raise DataError(f"{path}: writing failed ({_reason(error)}); nothing was changed.{_advice(error)}") from error
    finally:
        _remove(part)


def _new(path: Path) -> tuple[Path, IO[bytes]]:
    """Open a new temporary file for ``path`` and lock it, so that nobody takes it for a dead one."""
    while True:
        part = _part_of(path)
        file = part.open("xb")
        ours = take(file.fileno())
        if ours is None or (ours and os.fstat(file.fileno()).st_nlink):
            return part, file
        file.close()  # somebody sweeps it, or did before it was locked


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")


def _remove(part: Path) -> None:
    with contextlib.suppress(OSError):
        part.unlink()


def _check_name(path: Path) -> None:
    """Refuse to put a file where a folder or a device is; writing would replace /dev/null itself."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: cannot write here (a folder or device has that name). Choose another --out.")


def _refused(path: Path, error: OSError) -> DataError:
    advice = _advice(error) or " Choose another folder with --out."
    return DataError(f"{path}: cannot write here ({_reason(error)}).{advice}")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _advice(error: OSError) -> str:
    return " Free some space there, or write elsewhere." if error.errno in FULL else ""


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
