"""Several processes (ranks) that work on one question: each does a share, and all learn everything.

All ranks run the same program on the same input. Where work falls into jobs that do not depend on each other, each rank
does some of them (:meth:`Ranks.share`), and every rank goes on with the answers to all. So what is derived from them,
and every decision, is the same everywhere, and the rest of the program need not know of ranks.

What is exchanged are NumPy arrays, through the memory of the CPU, in a gloo group of its own: whatever group the caller
has, with whatever backend and timeout. Nothing here is a step of training, where such a detour would cost.
"""

import atexit
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from hardy import errors
from hardy.errors import HardyError, RankError

__all__ = ["Ranks", "Rows", "meet", "together"]

J = TypeVar("J")
T = TypeVar("T")
Rows = dict[str, Tensor]  # what a job finds, by name
MEET = timedelta(minutes=10)  # in which all ranks must have come: some may load their data more slowly
WORK = timedelta(days=7)  # that one rank may need for its jobs; a rank that dies closes its connections and is seen
LINGER = 5.0  # seconds in which whoever started the processes sees which one died, before the others end as well


@dataclass(frozen=True)
class Ranks:
    """The processes of a job; by default this one alone.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
        group: Through which they talk; None for one process.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    def share(
        self, jobs: Sequence[J], work: Callable[[J], Rows], *, device: torch.device, split: bool = True
    ) -> list[Rows]:
        """Do the jobs, rank r every ``size``-th from the r-th, and give the answers to all, in order.

        Args:
            jobs: The same in all ranks.
            work: Does one; must not talk to other ranks.
            device: Where answers of others shall be.
            split: False: every rank does all jobs, so that what they leave behind (a random generator that moved on) is
                the same everywhere, and the answers of rank 0 count.

        Raises:
            HardyError: that ``work`` raised, in any rank.
            RankError: another rank failed for another reason, or is gone.
        """
        if self.size == 1:
            return [work(job) for job in jobs]
        found: dict[int, dict[str, Any]] = {}
        own: Exception | None = None
        try:
            for number in range(self.rank, len(jobs), self.size) if split else range(len(jobs)):
                answer = work(jobs[number])
                if split or self.rank == 0:
                    found[number] = {name: value.detach().cpu().numpy() for name, value in answer.items()}
        except Exception as error:  # noqa: BLE001  (whatever it is: the others must not wait for this rank)
            own = error
        merged: dict[int, dict[str, Any]] = {}
        for part in self._exchange(found, own):
            merged |= part
        return [{name: torch.from_numpy(v).to(device) for name, v in merged[i].items()} for i in range(len(jobs))]

    @contextmanager
    def agree(self) -> Iterator[None]:
        """Leave the block in all ranks or in none; nothing in it may talk to other ranks.

        Raises:
            HardyError: of any rank.
            RankError: another rank failed for another reason, or is gone.
        """
        if self.size == 1:
            yield
            return
        own: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001  (as above)
            own = error
        self._exchange(None, own)

    def tell(self, value: T) -> T:
        """Give the value of rank 0; tensors in it must be on the CPU."""
        if self.size == 1:
            return value
        first: T = self._exchange(value if self.rank == 0 else None, None)[0]
        return first

    def _exchange(self, mine: object, own: Exception | None) -> list[Any]:
        """Give what all ranks say, or raise the error of the first that has one."""
        told: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(told, (mine, None if own is None else (type(own).__name__, str(own))), self.group)
        except RuntimeError as error:
            if own is not None:
                raise own from error
            time.sleep(LINGER)
            raise RankError(
                f"rank {self.rank}: all {self.size} processes must be there; another one has ended. "
                "What it said, or who ended it, is the cause."
            ) from error
        if own is not None and not isinstance(own, HardyError):
            raise own
        for rank, (_, failure) in enumerate(told):
            if failure is not None:
                raise _error(rank, *failure) from own
        return [said for said, _ in told]


@contextmanager
def together() -> Iterator[Ranks]:
    """Meet the other processes of the job for a block; this process alone where torch.distributed has not been set up.

    Raises:
        RankError: not all of them come.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        yield Ranks()
        return
    rank, size = dist.get_rank(), dist.get_world_size()
    try:
        meeting = dist.new_group(backend="gloo", timeout=MEET)
        group = dist.new_group(backend="gloo", timeout=WORK)
    except RuntimeError as error:
        raise RankError(
            f"rank {rank}: all {size} processes of the job must come here within {MEET}; not all did. Call it in all, "
            "or tell it that it works alone."
        ) from error
    try:
        yield Ranks(rank, size, group)
    finally:
        for each in (group, meeting):  # who waits for this rank then sees that it is gone
            dist.destroy_process_group(each)


def meet(backend: str, *, device: torch.device | None = None) -> None:
    """Set torch.distributed up among the processes that ``torchrun`` started, if nobody has.

    The store through which they find each other may outlive them, and show a restarted process the addresses of dead
    ones. So rank 0 names a new place in it for every start: it answers what the others ask under names of their own,
    until each of them has confirmed.

    Args:
        backend: "gloo" or "nccl".
        device: The GPU of this process, for nccl.

    Raises:
        RankError: not all of them come.
    """
    if dist.is_initialized():
        return
    own = uuid.uuid4().hex
    try:
        store, rank, size = next(rendezvous("env://", timeout=MEET))
        place = _lead(store, size, own) if rank == 0 else _follow(store, rank, own)
        dist.init_process_group(backend, store=PrefixStore(place, store), rank=rank, world_size=size, device_id=device)
    except RuntimeError as error:
        raise RankError(f"all processes of the job must come within {MEET}; not all did ({error}).") from error
    atexit.register(_part)


def _part() -> None:
    """Leave the others before Python takes itself apart, whose end the threads of a group may otherwise meet."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _lead(store: Store, size: int, place: str) -> str:
    """Answer until all others have confirmed; an old question of a dead process is soon written over."""
    left, end = set(range(1, size)), time.monotonic() + MEET.total_seconds()
    while left:
        for other in sorted(left):
            if store.check([f"ask/{other}"]):
                store.set(f"answer/{_text(store, f'ask/{other}')}", place)
            if store.check([f"here/{place}/{other}"]):
                left.discard(other)
        if time.monotonic() > end:
            raise RuntimeError(f"waited for ranks {', '.join(map(str, sorted(left)))}")
        time.sleep(0.01)
    return place


def _follow(store: Store, rank: int, own: str) -> str:
    store.set(f"ask/{rank}", own)
    store.wait([f"answer/{own}"], MEET)
    place = _text(store, f"answer/{own}")
    store.set(f"here/{place}/{rank}", "")
    return place


def _text(store: Store, key: str) -> str:
    return bytes(store.get(key)).decode()


def _error(rank: int, name: str, text: str) -> HardyError:
    """Make the error of another rank again; one that is not Hardy's has its place in that rank's own words."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, HardyError):
        return kind(text)
    return RankError(f"rank {rank}: must finish its share; it failed with {name}: {text}")
