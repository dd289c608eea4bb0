"""Several local processes for one command, started as ``torchrun`` does: they find each other, and end together."""

import logging
import os
import pickle
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from hardy.allocator import keep_freed_memory
from hardy.errors import ConfigError, HardyError, RankError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

__all__ = ["check_processes", "launch", "rank", "report"]

R = TypeVar("R")
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")  # which torch's agent takes over while it runs
PATIENCE = 5.0  # seconds in which all processes come to the same end, if they do


def rank() -> int:
    """Give the number of this process among those that ``torchrun`` or :func:`launch` started; 0 without them."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def check_processes(processes: int, *, restarts: int = 0, device: str) -> None:
    """Check ``--devices`` and ``--restarts``.

    Raises:
        ConfigError: out of range, more than there are GPUs, or processes were started already.
    """
    if processes < 1 or restarts < 0:
        raise ConfigError(f"--devices, --restarts: must be at least 1 and 0; got {processes} and {restarts}.")
    if (processes > 1 or restarts) and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("--devices, --restarts: torchrun has started the processes already. Leave them out.")
    if device.partition(":")[0] == "cuda":
        import torch

        if processes > torch.cuda.device_count():
            raise ConfigError(f"--devices: at most {torch.cuda.device_count()}, one process for each GPU.")


def launch(function: Callable[..., R], *arguments: Any, processes: int, restarts: int = 0) -> R:
    """Call ``function(*arguments)`` in several processes of this machine and give what rank 0 returns.

    When a process dies, the others are ended, and all begin again, at most ``restarts`` times. Ctrl-C ends all.

    Args:
        function: At the top level of a module; arguments and result are pickled.
        arguments: What to call it with.
        processes: How many, at least 1.
        restarts: How often to begin again.

    Raises:
        HardyError: that of the function, in whichever process; it is not tried again.
        RankError: a process died, or raised another error (its traceback is in the message).
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = max(1, len(os.sched_getaffinity(0)) // processes) if hasattr(os, "sched_getaffinity") else 1
    more = {"OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "10"}
    with tempfile.TemporaryDirectory(prefix="hardy-") as folder, _environment(more), _handlers():
        _silence()
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=restarts,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        caught: int | None = None
        try:
            results = elastic_launch(config, _work)(function, arguments, folder)
        except SignalException as stopped:
            caught = stopped.sigval
        except ChildFailedError as failed:
            raise _told(Path(folder)) or RankError(_who(failed, processes, restarts)) from None
    if caught is not None:
        signal.raise_signal(caught)  # to the handlers of before
        raise KeyboardInterrupt
    if (error := _first([error for _, error in results.values() if error is not None])) is not None:
        raise error
    value: R = results[0][0]
    return value


def report(error: BaseException) -> None:
    """Tell ``torchrun`` why this process ends; its summary then shows it."""
    if os.environ.get("TORCHELASTIC_ERROR_FILE"):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def _work(function: Callable[..., R], arguments: tuple[Any, ...], folder: str) -> tuple[R | None, HardyError | None]:
    """Run in a process: an error of Hardy's is an answer, not a failure that another try could mend."""
    signal.signal(signal.SIGINT, _stop)
    keep_freed_memory()
    if (before := _told(Path(folder))) is not None:  # of the try before this one
        return None, before
    try:
        result = function(*arguments)
    except HardyError as error:
        if os.environ.get("HARDY_DEBUG"):
            sys.excepthook(type(error), error, error.__traceback__)
        if _waiting():
            _tell(error, Path(folder))
        return None, error
    return (result if rank() == 0 else None), None


def _waiting() -> bool:
    """Say whether others may wait for this process, and not see that it is gone: with NCCL, for many minutes."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_backend() == "nccl"


def _tell(error: HardyError, folder: Path) -> None:
    """Leave an error for the launcher, and give all others a while to come to the same end.

    Raises:
        RankError: one of them does not, and is ended because this process fails.
    """
    part = folder / f"error-{rank()}.part"
    part.write_bytes(pickle.dumps(error))
    part.replace(part.with_suffix(".pickle"))
    end = time.monotonic() + PATIENCE
    while len(list(folder.glob("error-*.pickle"))) < int(os.environ["WORLD_SIZE"]):
        if time.monotonic() > end:
            raise RankError(f"rank {rank()}: all processes must end alike; others go on after: {error}") from error
        time.sleep(0.1)


def _told(folder: Path) -> HardyError | None:
    """Give the error that a process left, if any did."""
    return _first([pickle.loads(file.read_bytes()) for file in sorted(folder.glob("error-*.pickle"))])  # noqa: S301  (ours)


def _first(errors: Sequence[HardyError]) -> HardyError | None:
    """Give the first error, rather one that is not about other processes."""
    return next((error for error in errors if not isinstance(error, RankError)), errors[0] if errors else None)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    """Stop once: the terminal and the parent both send the signal."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _who(failed: "ChildFailedError", processes: int, restarts: int) -> str:
    """Say which process died first, and how."""
    number, failure = failed.get_first_failure()
    who = f"rank {number} of {processes} (process {failure.pid})"
    after = f", after {restarts} restarts" if restarts else ""
    if failure.exitcode < 0:
        said = f"{who}: must run to the end; {failure.signal_name()} killed it{after}, and the others were ended."
        memory = failure.signal_name() == "SIGKILL"
        return f"{said} If nobody did it, memory ran out: take smaller batches or fewer processes." if memory else said
    message = failure.error_file_data.get("message")
    trace = message["extraInfo"]["py_callstack"].strip() if isinstance(message, dict) else ""
    said = f"{who}: must run to the end; it failed{after} (exit code {failure.exitcode}), and the others were ended."
    return f"{said}\n{trace}" if trace else said


@contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    """Set what is not set; the processes inherit it."""
    new = {name: value for name, value in more.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextmanager
def _handlers() -> Iterator[None]:
    """Give back the signal handlers that torch's agent replaces."""
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _silence() -> None:
    """Keep the agent's own account of failures off the terminal; we give one, and --debug shows both."""
    if not os.environ.get("HARDY_DEBUG"):
        for name in list(logging.root.manager.loggerDict):
            if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
                logging.getLogger(name).setLevel(logging.CRITICAL)
