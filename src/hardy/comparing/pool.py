"""Cells in local processes: one process each, so that one that dies takes no other along."""

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, cast

from hardy.comparing.cells import Cell
from hardy.comparing.work import run_cell
from hardy.errors import HardyError

__all__ = ["Event", "work_through"]

log = logging.getLogger(__name__)
PATIENCE = 10.0  # seconds that a process gets to end


@dataclass(frozen=True)
class Event:
    """What happened to a cell.

    Attributes:
        cell: Which one.
        what: "training", "evaluating", ..., or "done", "failed".
        done: Cells at their end, failed ones included.
        total: Cells that had something to do.
        seconds: Since the cell was begun.
        error: Why it failed; empty otherwise.
    """

    cell: Cell
    what: str
    done: int
    total: int
    seconds: float = 0.0
    error: str = ""


Listener = Callable[[Event], None]


def work_through(
    cells: Sequence[Cell], *, workers: int, device: str, overwrite: bool, on_event: Listener
) -> dict[str, str]:
    """Bring all cells to their end, several at a time.

    Args:
        cells: In the order in which they are begun.
        workers: Processes; with one everything is done in this one.
        device: "cpu", "cuda".
        overwrite: Begin anew what another recipe or question made.
        on_event: Told what happens.

    Returns:
        Why cells failed, by their names; the others are finished.
    """
    board = _Board(len(cells), on_event)
    if workers == 1:
        for cell in cells:
            board.begin(cell)
            board.end(cell, _tried(cell, device, overwrite, lambda what, cell=cell: board.say(cell, what)))  # type: ignore[misc]  # bound now
    else:
        _in_processes(list(cells), board, workers=workers, device=device, overwrite=overwrite)
    return board.failed


class _Board:
    """Keeps how far all cells are, and tells."""

    def __init__(self, total: int, on_event: Listener) -> None:
        self.total, self.on_event, self.done = total, on_event, 0
        self.began: dict[str, float] = {}
        self.failed: dict[str, str] = {}

    def begin(self, cell: Cell) -> None:
        self.began[cell.name] = time.monotonic()

    def say(self, cell: Cell, what: str, error: str = "") -> None:
        seconds = time.monotonic() - self.began[cell.name]
        self.on_event(Event(cell, what, self.done, self.total, seconds, error))

    def end(self, cell: Cell, error: str) -> None:
        self.done += 1
        if error:
            self.failed[cell.name] = error
        self.say(cell, "failed" if error else "done", error)


def _tried(cell: Cell, device: str, overwrite: bool, say: Callable[[str], None]) -> str:
    """Run a cell; give why it failed, or nothing. Whatever goes wrong in one must not stop the others."""
    try:
        run_cell(cell, device=device, overwrite=overwrite, say=say)
    except HardyError as error:
        return str(error)
    except Exception as error:
        log.warning("%s failed", cell.name, exc_info=True)
        return f"{type(error).__name__}: {error}"
    return ""


def _in_processes(waiting: list[Cell], board: _Board, *, workers: int, device: str, overwrite: bool) -> None:
    context = multiprocessing.get_context("spawn")
    threads = max(1, _cores() // min(workers, max(1, len(waiting))))
    running: dict[Connection, tuple[Cell, Any]] = {}
    try:
        with _environment("OMP_NUM_THREADS", str(threads)):
            while waiting or running:
                while waiting and len(running) < workers:
                    cell = waiting.pop(0)
                    ours, theirs = context.Pipe()
                    process = context.Process(target=_child, args=(cell, device, overwrite, theirs), daemon=False)
                    board.begin(cell)
                    process.start()
                    theirs.close()
                    running[ours] = cell, process
                for pipe in multiprocessing.connection.wait(list(running)):
                    _hear(cast("Connection", pipe), running, board)
    finally:
        for _, process in running.values():
            process.terminate()
        for pipe, (_, process) in running.items():
            process.join(PATIENCE)
            if process.is_alive():
                process.kill()
            pipe.close()


def _hear(pipe: Connection, running: dict[Connection, tuple[Cell, Any]], board: _Board) -> None:
    """Take one message of a process, or its end."""
    cell, process = running[pipe]
    try:
        kind, text = pipe.recv()
    except (EOFError, OSError):
        process.join()
        kind, text = "end", _died(process.exitcode)
    if kind == "say":
        board.say(cell, text)
        return
    del running[pipe]
    pipe.close()
    process.join(PATIENCE)
    board.end(cell, text)


def _died(code: int | None) -> str:
    """Say how a process ended that had not come to an end of its own."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        more = " If nobody did it, memory ran out: take fewer workers or smaller batches." if name == "SIGKILL" else ""
        return f"its process was ended by {name}.{more} Run the same command again: it goes on from the checkpoint."
    return f"its process ended with exit code {code}. Run the same command again: it goes on from the checkpoint."


def _child(cell: Cell, device: str, overwrite: bool, pipe: Connection) -> None:
    """Run a cell in a process of its own, which ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends us
    threading.Thread(target=_follow, daemon=True).start()
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    error = _tried(cell, device, overwrite, lambda what: pipe.send(("say", what)))
    pipe.send(("end", error))
    pipe.close()


def _follow() -> None:
    """End this process when its parent is gone, however that ended: files are whole at any moment."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable that is not set; the processes inherit it."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
