"""Ctrl-C, SIGTERM and a second process: clean stops, one message, nothing spoilt."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from hardy.cli.main import app
from hardy.locks import LOCK
from hardy.results import Result
from hardy.safefile import PART, read_tensors

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
SAID = {signal.SIGINT: "stopped.", signal.SIGTERM: "stopped by SIGTERM."}
Until = Callable[..., bool]


def check_clean(child: Any, number: signal.Signals, until: Until) -> list[str]:
    """Check the code, the last line and that no process is left; give the lines before."""
    assert child.wait() == CODES[number], child.said
    assert "Traceback" not in child.said and "Error" not in child.said, child.said
    assert until(lambda: not child.alive(), 20)  # those that tidy up behind it, at once
    said = [line for line in child.said.splitlines() if line.strip()]
    assert said[-1] == SAID[number]
    return said[:-1]


def listens(child: Any) -> bool:
    """Say whether a process has a handler for SIGTERM, which Python alone has not; before, there is nothing to stop."""
    status = Path(f"/proc/{child.pid}/status").read_text() if Path(f"/proc/{child.pid}").exists() else ""
    caught = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0").split()[1]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES, ids=lambda n: n.name)
@pytest.mark.parametrize("stream", [False, True], ids=["resident", "workers"])
def test_a_training_stops_and_goes_on(  # noqa: PLR0917  (fixtures)
    stream: bool, number: signal.Signals, cold: Any, nursery: Any, recipe: Path, tmp_path: Path, until: Until
) -> None:
    args = ["train", recipe, "--epochs", "60" if not stream else "6"]
    args += ["--set", "data.stream=true", "--set", "data.workers=2"] if stream else []
    run = tmp_path / "run"
    for times, moment in enumerate((run / "recipe.toml", run / "checkpoints" / "last.safetensors")):
        start = cold if stream else nursery.start
        child = start(*args, "--out", run, *(["--resume"] if times else []))
        assert until(moment.exists)
        if times and stream:
            assert until(lambda c=child: len(c.alive()) >= 3 or c.poll(0) is not None)
        os.kill(child.pid, number)  # the process alone, as a scheduler does
        said = check_clean(child, number, until)
        kept = "The last checkpoint is kept." if moment.name == "last.safetensors" else ""
        assert said[-1].startswith(kept) and said[-1].endswith(f"Go on: add --resume (--out {run}).")
        assert not list(run.rglob(f".*{PART}")) and not (run / LOCK).exists()
    done = nursery.run(*args, "--out", run, "--resume", "--quiet")
    assert done.wait() == 0, done.said
    assert nursery.run(*args, "--out", tmp_path / "whole", "--quiet").wait() == 0
    ours, theirs = (read_tensors(folder / "model.safetensors") for folder in (run, tmp_path / "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES, ids=lambda n: n.name)
def test_other_verbs_stop(number: signal.Signals, nursery: Any, recipe: Path, tmp_path: Path, until: Until) -> None:
    run, kept = tmp_path / "run", tmp_path / "run" / "result.partial"
    assert nursery.run("train", recipe, "--out", run, "--quiet", "--epochs", "4").wait() == 0
    asked = ["evaluate", run, "--axes", "clean,white_box", "--suite", "pgd,square", "--batch-size", "8"]
    child = nursery.start(*asked)
    assert until(lambda: list(kept.glob("*.npz")))
    child.send(number)  # the whole group, as a terminal does
    said = check_clean(child, number, until)
    assert said == [f"Finished images are kept in {kept}: go on with --resume."]
    assert not (run / "result.json").exists() and not list(run.rglob(f".*{PART}"))
    assert nursery.run(*asked, "--resume", "--quiet").wait() == 0 and Result.read(run / "result.json").n == 64
    for verb, seconds in (
        (["attack", run, "--attack", "square", "--out", tmp_path / "a.npz"], 0.5),
        (["report", run, "--out", tmp_path / "r.html"], 0.0),
        (["demo", "--out", tmp_path / "demo", "--quiet"], 2.0),
    ):
        child = nursery.start(*verb)
        assert until(lambda c=child: listens(c) or c.poll(0) is not None)
        child.poll(seconds)
        child.send(number)
        if child.wait() != 0:  # it was not faster
            check_clean(child, number, until)
        assert not list(tmp_path.rglob(f".*{PART}"))


@pytest.mark.slow
def test_a_second_process_is_refused_and_the_first_ends_well(
    nursery: Any, recipe: Path, tmp_path: Path, until: Until
) -> None:
    def refused(*args: str | Path) -> None:
        done = CliRunner().invoke(app, [str(arg) for arg in args])
        assert done.exit_code == 2 and f"process {first.pid} on " in done.stderr, done.stderr
        assert "is at work in this folder, and two at once would spoil it" in done.stderr

    run = tmp_path / "run"
    args = ["train", recipe, "--out", run, "--quiet", "--epochs", "40"]
    first = nursery.start(*args)
    assert until((run / "metrics.jsonl").exists)
    os.kill(first.pid, signal.SIGSTOP)  # it shall not be done before we are
    for more in ([], ["--resume"]):
        refused(*args, *more)
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait() == 0, first.said
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 41))
    asked = ["evaluate", run, "--suite", "pgd,square", "--axes", "clean,white_box", "--batch-size", "4", "--quiet"]
    first = nursery.start(*asked)
    assert until(lambda: list((run / "result.partial").glob("*.npz")))
    os.kill(first.pid, signal.SIGSTOP)
    for more in ([], ["--resume"], ["--overwrite"]):
        refused(*asked, *more)
    first.send(signal.SIGKILL)
    first.wait()
    assert list((run / "result.partial").glob("*.npz"))  # which --overwrite would have removed
