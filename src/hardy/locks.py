"""One process at a time: locks that the kernel releases when their process ends, however it ends."""

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from hardy.errors import HardyError

if sys.platform != "win32":
    import fcntl

__all__ = ["LOCK", "locked", "take"]

LOCK = ".lock"
_held: set[int] = set()  # file descriptors of the locks of this process


def take(handle: int) -> bool | None:
    """Lock an open file for this process, without waiting.

    Returns:
        True if it is ours now, False if somebody else has it, None where the file system has no locks.
    """
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def locked(folder: Path, error: type[HardyError]) -> Iterator[None]:
    """Keep other processes out of a folder that is there; child processes do not inherit the lock.

    Where the file system has no locks, nobody is kept out.

    Raises:
        HardyError: of the class ``error``: another process works here (the message says which), or the folder cannot
            be written.
    """
    path = folder / LOCK
    try:
        handle = _open(path)
        while (ours := take(handle)) and not _is(path, handle):  # its owner has just removed it
            os.close(handle)
            handle = _open(path)
    except OSError as problem:
        raise error(f"{folder}: cannot write here ({problem.strerror}). Choose another folder with --out.") from problem
    if ours is False:
        owner = os.read(handle, 200).decode("utf-8", errors="replace").strip() or "another process"
        os.close(handle)
        raise error(
            f"{folder}: {owner} is at work in this folder, and two at once would spoil it. Wait until it ends or stop "
            "it, then go on with --resume; or choose another --out."
        )
    _held.add(handle)
    try:
        with contextlib.suppress(OSError):  # on a full disk it has no name
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            if _is(path, handle):
                path.unlink()
        _held.discard(handle)
        os.close(handle)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _is(path: Path, handle: int) -> bool:
    """Say whether the open file still has that name."""
    try:
        named, held = path.stat(), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)


def _forget() -> None:
    """Close the locks of the parent in a forked child: a worker that outlives a killed parent would hold them."""
    while _held:
        os.close(_held.pop())


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget)
