"""``hardy evaluate`` in several processes: the same file, one answer, and an end when one of them dies."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hardy.results import Result

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
PATIENCE = 240  # seconds for what takes about 10 on an idle machine
HARDY = (sys.executable, "-m", "hardy")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", "-m", "hardy")
RECIPE = """
[model]
name = "cifar_resnet8"
args = { width = 4 }
[data]
name = "digits"
limit = 256
[train]
epochs = 2
batch_size = 64
"""
QUICK = ("--axes", "clean,white_box", "--suite", "quick", "--eps", "0.05", "--limit", "61")
LONG = ("--axes", "clean,white_box", "--suite", "pgd,apgd,square", "--eps", "0.001", "--limit", "24")


def started(*command: str | Path, **facts: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen([str(part) for part in command], env=ENV, text=True, **facts)  # noqa: S603  (ours)


def done(*command: str | Path) -> tuple[int, str, str]:
    process = started(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("devices")
    (folder / "recipe.toml").write_text(RECIPE)
    code, _, err = done(*HARDY, "train", folder / "recipe.toml", "--out", folder / "a", "--quiet")
    assert code == 0, err
    return folder / "a"


def read(path: Path) -> Result:
    found = Result.read(path)
    return dataclasses.replace(found, seconds=0.0, environment={}, command="")


def processes(parent: int) -> list[int]:
    """List the processes that work for a launcher, by rank."""
    found = []
    for each in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            line = (each / "cmdline").read_bytes()
            if int((each / "stat").read_text().rpartition(")")[2].split()[1]) == parent and b"spawn_main" in line:
                found.append(int(each.name))
    return sorted(found)


@contextlib.contextmanager
def at_work(run: Path, out: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start two processes, and go on when some images are kept."""
    command = (*HARDY, "evaluate", run, *LONG, "--devices", "2", "--quiet", "--out", out)
    process = started(*command, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + PATIENCE
        while not any(out.with_suffix(".partial").glob("*.npz")) and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


def test_two_and_three_processes_write_the_file_of_one(run: Path, tmp_path: Path) -> None:
    one, two, three = (tmp_path / f"{name}.json" for name in ("one", "two", "three"))
    assert done(*HARDY, "evaluate", run, *QUICK, "--quiet", "--out", one)[0] == 0
    code, out, err = done(*HARDY, "evaluate", run, *QUICK, "--json", "--devices", "2", "--out", two)
    assert code == 0 and err.count(f"-> {two}") == 1  # told once
    assert json.loads(out)["n"] == 61
    assert done(*TORCHRUN, "evaluate", run, *QUICK, "--quiet", "--out", three)[0] == 0
    assert read(one) == read(two) == read(three)
    assert one.with_suffix(".npz").is_file() and not list(tmp_path.glob("*.partial"))


def test_an_error_is_told_once_and_nothing_is_written(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    code, _, err = done(*HARDY, "evaluate", run, *QUICK, "--devices", "2", "--out", out, "--source", tmp_path / "gone")
    assert code == 2 and err.count("error:") == 1 and "gone" in err and not list(tmp_path.iterdir())
    code, _, err = done(*HARDY, "evaluate", run, *QUICK, "--devices", "0", "--out", out)
    assert code == 2 and "--devices" in err
    floor = ("--fail-under", "white_box=0.99")
    assert done(*HARDY, "evaluate", run, *QUICK, "--devices", "2", "--out", out, *floor)[0] == 1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_all_and_the_rest_goes_on(run: Path, tmp_path: Path, rank: int) -> None:
    out = tmp_path / "r.json"
    out.write_text("{}")  # an older file, which must not be touched
    with at_work(run, tmp_path / "new.json") as process:
        os.kill(processes(process.pid)[rank], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and f"rank {rank} of 2" in err and "SIGKILL" in err and "--resume" in err
    assert not (tmp_path / "new.json").exists() and out.read_text() == "{}"
    one = tmp_path / "one.json"
    assert done(*HARDY, "evaluate", run, *LONG, "--quiet", "--out", one)[0] == 0
    assert done(*HARDY, "evaluate", run, *LONG, "--quiet", "--out", tmp_path / "new.json", "--resume")[0] == 0
    assert read(one) == read(tmp_path / "new.json")


def test_ctrl_c_stops_all_and_says_how_to_go_on(run: Path, tmp_path: Path) -> None:
    with at_work(run, tmp_path / "r.json") as process:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped." in err and "--resume" in err
    assert not (tmp_path / "r.json").exists() and any((tmp_path / "r.partial").glob("*.npz"))
