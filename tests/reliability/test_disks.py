"""Full disks and folders that cannot be written: one clear line, early where it can be known, and nothing damaged."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hardy import io
from hardy.errors import DataError
from hardy.results import Result
from hardy.safefile import PART, check_writable, read_tensors

LOGGED = ("--set", 'train.loggers=["csv","tensorboard"]')


def lines(child: Any) -> list[str]:
    return [line for line in child.said.splitlines() if line.strip()]


def same(a: Path, b: Path) -> bool:
    ours, theirs = (read_tensors(folder / "model.safetensors") for folder in (a, b))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def sizes(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def run(nursery: Any, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training."""
    folder: Path = tmp_path_factory.mktemp("run") / "run"
    done = nursery.run("train", recipe, "--out", folder, "--quiet", "--epochs", "6", *LOGGED)
    assert done.wait() == 0, done.said
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.2, 0.4, 0.6, 0.8, 0.95])
def test_a_training_on_a_full_disk_stops_and_goes_on_when_there_is_room(  # noqa: PLR0917  (fixtures)
    share: float, nursery: Any, recipe: Path, run: Path, disk: Path, fill: Callable[[Path, int], Path]
) -> None:
    filling = fill(disk, int(share * sum(map(len, sizes(run).values()))))
    args = ["train", recipe, "--out", disk / "run", "--quiet", "--epochs", "6", *LOGGED]
    stopped = nursery.run(*args)
    assert stopped.wait() == 2, stopped.said
    said = lines(stopped)
    assert len(said) == 1 and said[0].startswith(f"error: {disk / 'run'}"), stopped.said
    assert "No space left on device" in said[0] and "Free some space there" in said[0]
    assert not list(disk.rglob(f".*{PART}"))
    last = disk / "run" / "checkpoints" / "last.safetensors"
    if (disk / "run" / "recipe.toml").exists():
        assert ("The last checkpoint is kept" if last.exists() else "No epoch is finished yet") in said[0]
    if last.exists():
        read_tensors(last)
    filling.unlink()
    again = nursery.run(*args, "--resume")
    assert again.wait() == 0 and lines(again) == [], again.said
    assert same(disk / "run", run)
    rows = (disk / "run" / "logs" / "csv" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 6  # those from before the stop too


@pytest.mark.slow
def test_what_was_there_survives_a_full_disk(
    nursery: Any, run: Path, disk: Path, fill: Callable[[Path, int], Path]
) -> None:
    out = disk / "result.json"
    asked = ["evaluate", run, "--out", out, "--limit", "150", "--quiet", "--overwrite"]
    assert nursery.run(*asked, "--axes", "clean").wait() == 0
    assert nursery.run("report", out, "--out", disk / "report.html", "--quiet").wait() == 0
    before = sizes(disk)
    more = ["--axes", "clean,white_box,eps_curve", "--save-adversarial", disk / "adv.npz", "--batch-size", "8"]
    for free in (0, 8, 24):
        filling = fill(disk, free * 1024)
        for verb in (
            [*asked, *more],
            ["attack", run, "--limit", "150", "--out", disk / "attack.npz", "--quiet"],
            ["report", out, "--out", disk / "report.html", "--quiet", "--title", "another"],
        ):
            stopped = nursery.run(*verb)
            said = lines(stopped)
            assert stopped.wait() == 2 and "Traceback" not in stopped.said, stopped.said
            assert said[-1].startswith(f"error: {disk}") and "No space left on device" in said[-1]
            kept = (disk / "result.partial").exists()
            assert len(said) == 1 + (kept and verb[0] == "evaluate")
            now = sizes(disk)
            assert all(now[name] == content for name, content in before.items())
            assert not list(disk.rglob(f".*{PART}"))
            Result.read(out)
        filling.unlink()
    done = nursery.run(*asked, *more, "--resume")
    assert done.wait() == 0, done.said
    alone = nursery.run(*asked[:3], run.parent / "r.json", *asked[4:], *more[:2])
    assert alone.wait() == 0, alone.said
    ours, theirs = Result.read(out), Result.read(run.parent / "r.json")
    assert ours.axes == theirs.axes and sorted(p.name for p in disk.iterdir()) == [
        "adv.npz", "report.html", "result.json", "result.npz",
    ]  # fmt: skip


def verbs(run: Path, recipe: Path, out: Path) -> list[list[str | Path]]:
    """Every verb that writes, writing below ``out``, each with work that takes a while."""
    return [
        ["train", recipe, "--set", "train.epochs=100000", "--out", out / "run"],
        ["evaluate", run, "--suite", "standard", "--out", out / "r.json"],
        ["evaluate", run, "--suite", "standard", "--out", run.parent / "r2.json", "--save-adversarial", out / "a.npz"],
        ["evaluate", run, "--suite", "standard", "--out", run.parent / "r3.json", "--robustbench", out / "r.json"],
        ["attack", run, "--attack", "square", "--out", out / "a.npz"],
        ["report", run, "--out", out / "r.html"],
        ["demo", "--out", out / "demo", "--quiet"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["read_only", "below a file"])
def test_a_place_that_cannot_be_written_is_an_error_before_any_work(  # noqa: PLR0917  (fixtures)
    where: str, nursery: Any, recipe: Path, run: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if where == "read_only":
        out, reason = request.getfixturevalue("read_only"), "Read-only file system"
    else:
        out, reason = tmp_path / "file" / "folder", "Not a directory"
        (tmp_path / "file").write_text("x")
    before = sizes(run.parent)
    for verb in verbs(run, recipe, out):
        began = time.monotonic()
        stopped = nursery.start(*verb)
        assert stopped.poll(60) == 2, (verb, stopped.said)
        said = lines(stopped)
        assert len(said) == 1 and said[0].startswith(f"error: {out}") and reason in said[0], stopped.said
        assert "--out" in said[0] and time.monotonic() - began < 30
    assert sizes(run.parent) == before


def test_a_trial_on_a_full_disk_says_so(disk: Path, fill: Callable[[Path, int], Path]) -> None:
    fill(disk, 0)
    with pytest.raises(DataError, match=r"No space left on device\)\. Free some space there, or write elsewhere"):
        check_writable(disk / "a.json")
    assert [p.name for p in disk.iterdir()] == ["filling"]


def test_a_checkpoint_on_a_full_disk_is_the_old_one(disk: Path, fill: Callable[[Path, int], Path]) -> None:
    small = io.load_model("cifar_resnet8", num_classes=10, in_channels=1, args={"width": 4})
    io.save(small, disk / "m.safetensors", trained_with=("small",))
    fill(disk, 40 * 1024)
    large = io.load_model("cifar_resnet8", num_classes=10, in_channels=1, args={"width": 16})
    with pytest.raises(DataError, match="No space left on device"):
        io.save(large, disk / "m.safetensors")
    assert io.read(disk / "m.safetensors").trained_with == ("small",)
    assert sorted(p.name for p in disk.iterdir()) == ["filling", "m.safetensors"]
