"""Worker processes that read images ahead: torch's DataLoader, fed with batches of positions and keys."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hardy.data.schedule import Schedule
from hardy.errors import DataError, HardyError, TrainingError

__all__ = ["Feed", "Images", "auto_workers", "fetched", "loader", "named_worker_errors"]

MOST_WORKERS = 8
AHEAD = 2  # batches that each worker has ready
DEAD = "DataLoader worker"  # how torch's errors about dead workers begin
WAIT = 1.0  # seconds in which the signal of a worker's death comes, with torch's own error, which says more
Item = tuple[list[int], list[int]]  # positions and keys of a batch


def auto_workers() -> int:
    """Choose a number of worker processes: one per core of this process but one, at most 8.

    Where a launcher says how many ranks share the machine (``LOCAL_WORLD_SIZE``), they share the cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return min(MOST_WORKERS, max(0, cores // (int(ranks) if ranks.isdecimal() and int(ranks) else 1) - 1))


@contextmanager
def named_worker_errors() -> Iterator[None]:
    """Turn torch's error about a dead worker process into one that says what to do.

    torch raises it in whatever the main process is doing, also between two batches.

    Raises:
        TrainingError: a worker process died in the block.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(DEAD):
            raise
        raise TrainingError(
            f"batches: worker processes must stay alive; one died ({str(error).strip().rstrip('.')}). If memory ran "
            "out, take fewer workers or a smaller batch; if /dev/shm is full, enlarge it or set workers = 0."
        ) from error


@dataclass(frozen=True)
class _Failure:
    """What a worker sends in the place of a batch that it cannot read."""

    message: str


class Images(Dataset[tuple[Tensor, Tensor, Tensor] | _Failure]):
    """Makes a batch ``(x, y, key)``, ``x`` uint8, of positions and keys; every worker process has one.

    Args:
        read: Gives the images at some positions, one key for each.
        y: All labels.
        shape: Channels, height and width of one image.
    """

    def __init__(
        self,
        read: Callable[[Int64[Tensor, "m"], Int64[Tensor, "m"]], UInt8[Tensor, "m c h w"]],
        y: Int64[Tensor, "n"],
        shape: tuple[int, int, int],
    ) -> None:
        self.read, self.y, self.shape = read, y, shape

    def __getitem__(self, item: Item) -> tuple[Tensor, Tensor, Tensor] | _Failure:
        positions, key = torch.tensor(item[0], dtype=torch.int64), torch.tensor(item[1], dtype=torch.int64)
        try:
            x = self.read(positions, key) if len(key) else torch.empty((0, *self.shape), dtype=torch.uint8)
        except HardyError as error:
            return _Failure(str(error))
        return x, self.y[positions], key


class Feed(Sampler[Item]):
    """Tells the loader what to read next; ``epoch`` and ``start`` are set before each epoch."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.epoch, self.start = schedule, 0, 0

    def __iter__(self) -> Iterator[Item]:
        key = self.schedule.keys(self.epoch)
        for rows in self.schedule.batches(self.epoch, self.start):
            yield rows.tolist(), key[rows].tolist()


def loader(images: Images, feed: Feed, workers: int, *, pin: bool) -> DataLoader[Any]:
    """Make a loader whose workers stay alive until it is dropped; each reads a batch, two ahead."""
    return DataLoader(
        images,
        sampler=feed,
        batch_size=None,  # an item of the sampler is a batch
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        persistent_workers=workers > 0,
        pin_memory=pin,
        worker_init_fn=_leave_interrupts,
        generator=torch.Generator(),  # not the global one, which is the user's
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the main process, which ends its workers, and do not tell that it left amid a batch."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _tell


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report what the thread reports that hands over memory, but for a main process that hung up."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def fetched(batches: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Give what the workers send, in order.

    Raises:
        DataError: an image could not be read; the message names the file.
        TrainingError: a worker process died.
    """
    with named_worker_errors():
        try:
            for batch in batches:
                if isinstance(batch, _Failure):
                    raise DataError(batch.message)
                yield batch
        except (ConnectionError, EOFError, FileNotFoundError) as error:  # it died while it sent a batch
            time.sleep(WAIT)
            raise RuntimeError(f"{DEAD}, {type(error).__name__}") from error
        finally:
            del batches  # and its workers, also while somebody keeps the error and with it this frame
