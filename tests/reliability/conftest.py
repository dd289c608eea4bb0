"""Processes to kill: the command line in processes of its own, and small disks to fill."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

SRC = Path(__file__).parents[2] / "src"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SRC), "PYTHONUNBUFFERED": "1"}
RECIPE = """
seed = 3
[model]
name = "cifar_resnet8"
args = { width = 4 }
[data]
name = "digits"
limit = 256
augment = ["crop"]
[[methods]]
name = "lfm"
[[methods]]
name = "mixup"
[[methods]]
name = "soft_threshold"
[train]
epochs = 24
batch_size = 64
ema = 0.9
select = "best"
save_every = 3
[evaluate]
eps = 0.1
limit = 64
suite = "quick"
axes = ["clean", "white_box"]
"""
NURSERY = """
import json, os, sys, time
import hardy.cli.evaluate, hardy.cli.main, hardy.cli.progress, hardy.cli.targets, hardy.cli.train
import hardy.evaluation, hardy.models, hardy.training, hardy.training.loop, hardy.reporting
sys.stdout.write("ready\\n")
sys.stdout.flush()
for line in sys.stdin:
    args, log = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(out, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["hardy", *args]
        code = 70
        try:
            hardy.cli.main.app(args, standalone_mode=True)
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.stdout.write(f"{child}\\n")
    sys.stdout.flush()
    _, status = os.waitpid(child, 0)
    sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\\n")
    sys.stdout.flush()
"""


class Child:
    """A running ``hardy`` with a process group of its own."""

    def __init__(self, pid: int, log: Path, poll: Callable[[float | None], int | None]) -> None:
        self.pid, self.log, self.poll = pid, log, poll

    def send(self, number: int = signal.SIGKILL) -> None:
        """Signal the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self) -> int:
        """Give the exit code, negative for a signal."""
        code = self.poll(None)
        assert code is not None
        return code

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def alive(self) -> list[int]:
        """List the processes of the group that run, ended ones aside."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[2]) == self.pid and fields[0] not in "ZX":
                    found.append(int(stat.parent.name))
        return found


class Nursery:
    """Starts ``hardy`` in forks of a process that has imported everything: a kill costs no seconds of imports."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        self.last: Child | None = None
        with (folder / "nursery.log").open("w") as log:
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=ENV
            )
        self._line()

    def start(self, *args: str | Path) -> Child:
        self.number += 1
        log = self.folder / f"{self.number}.log"
        self._stdin.write(json.dumps([[str(a) for a in args], str(log)]).encode() + b"\n")
        self._stdin.flush()
        code: list[int] = []
        pid = int(self._line())

        def poll(seconds: float | None) -> int | None:
            import select

            if not code and select.select([self.process.stdout], [], [], seconds)[0]:
                code.append(int(self._line()))
            return code[0] if code else None

        self.last = Child(pid, log, poll)
        return self.last

    def run(self, *args: str | Path) -> Child:
        child = self.start(*args)
        child.wait()
        return child

    def close(self) -> None:
        if self.last is not None and self.last.poll(0) is None:
            self.last.send()
        self._stdin.close()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def _stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def _line(self) -> str:
        """Read one line without buffering, so that ``select`` sees what is left."""
        assert self.process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self.process.stdout.fileno(), 1)
            assert byte, (self.folder / "nursery.log").read_text()
            line += byte
        return line.decode()


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Let SIGINT do what it does in a terminal, in our processes too: a shell's background job has it ignored."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("nursery"))
    yield made
    made.close()


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Start ``python -m hardy`` from nothing."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*args: str | Path) -> Child:
        log = tmp_path / f"cold-{len(started)}.log"
        with log.open("wb") as out:
            command = [sys.executable, "-m", "hardy", *map(str, args)]
            process = subprocess.Popen(command, stdout=out, stderr=out, env=ENV, start_new_session=True)  # noqa: S603
        started.append(process)

        def poll(seconds: float | None) -> int | None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(seconds)
            return None

        return Child(process.pid, log, poll)

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "r.toml"
    path.write_text(RECIPE)
    return path


def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """Mount something on a folder, or skip where we may not."""
    folder.mkdir()
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if done.returncode:
        pytest.skip(f"needs to mount a file system: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S603, S607


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    yield from mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m", "tmpfs")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A disk that nobody may write to, root included."""
    yield from mounted(tmp_path / "read_only", "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs")


@pytest.fixture
def fill() -> Callable[[Path, int], Path]:
    """Leave this many bytes free on a disk; remove the file given to free them again."""

    def fill_(folder: Path, free: int) -> Path:
        path = folder / "filling"
        stat = os.statvfs(folder)
        size = stat.f_bavail * stat.f_frsize - free
        with path.open("wb") as file:
            while size > 0:
                size -= file.write(bytes(min(size, 4096)))
                file.flush()
        return path

    return fill_


@pytest.fixture
def until() -> Callable[[Callable[[], Any], float], bool]:
    """Wait until something holds."""

    def wait(holds: Callable[[], Any], seconds: float = 200) -> bool:
        end = time.monotonic() + seconds
        while not holds() and time.monotonic() < end:
            time.sleep(0.002)
        return bool(holds())

    return wait
