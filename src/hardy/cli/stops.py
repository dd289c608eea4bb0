"""Clean stops: Ctrl-C and SIGTERM, which schedulers send, end a command by KeyboardInterrupt wherever they hit it."""

import _thread
import contextlib
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator

__all__ = ["settle", "signals", "stopping"]

PATIENCE = 2.0  # seconds in which a second signal is the echo of the first: shells and schedulers signal whole groups
SOON = 0.02  # seconds until an interrupt that Python dropped is repeated


class _Stop:
    """The handler of the signals.

    Python drops an exception that is raised in a finalizer or while a process forks, and the handler's with it. From
    the first signal on these are collected without a word (by a builtin, in which no other handler can raise), and a
    thread interrupts once more where ours was among them.
    """

    def __init__(self) -> None:
        self.process, self.caught, self.began, self.again = os.getpid(), 0, 0.0, False
        self.over = threading.Event()  # the command has ended, and nothing needs to be interrupted
        self.dropped: list[sys.UnraisableHookArgs] = []

    def __call__(self, number: int, _frame: object) -> None:
        if os.getpid() != self.process:  # a worker that has not set its own handlers yet
            os._exit(128 + number)
        if not self.caught:
            self.caught, self.began = number, time.monotonic()
            sys.unraisablehook = self.dropped.append
            threading.Thread(target=self._watch, daemon=True).start()
            raise KeyboardInterrupt
        if self.again and not self.over.is_set():
            self.again = False
            raise KeyboardInterrupt
        if time.monotonic() - self.began > PATIENCE:
            os._exit(128 + number)

    def _watch(self) -> None:
        while not self.over.wait(SOON):
            found = [isinstance(what.exc_value, KeyboardInterrupt) for what in self.dropped]
            del self.dropped[: len(found)]
            if any(found):
                self.again = True
                _thread.interrupt_main(signal.Signals(self.caught))


_now: list[_Stop] = []  # that of the running command


def stopping() -> int:
    """Give the signal that is ending the command, or 0; what it interrupts may end by any exception."""
    return _now[-1].caught if _now else 0


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """Let signals raise KeyboardInterrupt in the block, in the main thread.

    A second one, after a while, ends the process where the clean-up hangs; every file is whole even then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop = _Stop()
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGCHLD] if hasattr(signal, "SIGCHLD") else [])]
    before = {number: signal.getsignal(number) for number in numbers}
    hook = sys.unraisablehook
    for number in (signal.SIGINT, signal.SIGTERM):
        # torchrun sends SIGTERM to a rank that may be waiting for a dead one in C++, where no handler of ours runs
        rank = number == signal.SIGTERM and "TORCHELASTIC_RUN_ID" in os.environ
        if before[number] is not signal.SIG_IGN and not rank:  # ignored, as nohup asks
            signal.signal(number, stop)
    _now.append(stop)
    try:
        yield
    finally:
        stop.over.set()
        _now.remove(stop)
        for number in numbers if stop.caught else numbers[:2]:
            signal.signal(number, before[number] or signal.SIG_DFL)
        sys.unraisablehook = hook


def settle(error: BaseException) -> None:
    """Take note of the exception by which a command ends that is being stopped, so that the last words can be said.

    What it keeps alive, such as worker processes, is let go, and nothing interrupts any more: neither our handler nor
    that of torch, which raises an error when a worker ends.
    """
    if not stopping():
        return
    _now[-1].over.set()
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, lambda *_: None)
    held: BaseException | None = error
    while held is not None:
        traceback.clear_frames(held.__traceback__)
        held = held.__context__
    gc.collect()
