"""A fault at any file operation, an end of the process or a full disk: nothing half-written is ever read."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hardy.errors import DataError
from hardy.results import Axis, Result, point
from hardy.safefile import PART, read_header, read_tensors
from hardy.threats import Threat
from hardy.training import DataRecipe, ModelRecipe, Recipe, RunFolder, TrainRecipe, train

RECIPE = Recipe(
    model=ModelRecipe(name="cifar_resnet8", args={"width": 4}),
    data=DataRecipe(name="digits", limit=64, val_fraction=0.5),
    methods=({"name": "lfm", "p": 1.0}, {"name": "mixup"}),
    train=TrainRecipe(epochs=2, batch_size=32, lr=0.1, ema=0.9, select="best"),
)
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Crash(BaseException):
    """The end of a process, as near as one process can come to it: nothing tidies up behind it."""


class Faults:
    """Counts the file operations behind ``hardy.safefile`` and fails at one of them, before or after it is done.

    A write that fails has written half of its bytes.
    """

    def __init__(self, patch: pytest.MonkeyPatch, at: int, error: BaseException, *, after: bool = False) -> None:
        self.at, self.error, self.after, self.gone = at, error, after, False
        self.seen: list[str] = []
        fsync, replace, open_, unlink = os.fsync, Path.replace, Path.open, Path.unlink

        def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if mode != "xb":
                return open_(path, mode, *args, **kwargs)
            return File(self, self.do("open", lambda: open_(path, mode, *args, **kwargs)))

        patch.setattr(Path, "open", opened)
        patch.setattr(os, "fsync", lambda fd: self.do("fsync", lambda: fsync(fd)))
        patch.setattr(Path, "replace", lambda a, b: self.do("rename", lambda: replace(a, b)))
        patch.setattr(Path, "unlink", lambda p, **given: None if self.gone else unlink(p, **given))

    def do(self, name: str, work: Callable[[], Any]) -> Any:
        self.seen.append(name)
        if len(self.seen) - 1 != self.at:
            return work()
        self.gone = isinstance(self.error, Crash)
        if self.after:
            done = work()
            if name == "open":
                done.close()  # nobody else will
        raise self.error


class File:
    """An open file that asks first."""

    def __init__(self, faults: Faults, file: Any) -> None:
        self.faults, self.file = faults, file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: Any) -> int:
        half = len(data) // 2
        self.file.write(data[:half])
        self.faults.do("write", lambda: self.file.write(data[half:]))
        return len(data)

    def flush(self) -> None:
        self.faults.do("flush", self.file.flush)


def tensors(folder: Path) -> dict[str, Tensor]:
    files = RunFolder(folder)
    found = {**read_tensors(files.model_file)}
    return found | {f"last/{name}": value for name, value in read_tensors(files.checkpoint_file).items()}


def check_whole(folder: Path) -> None:
    files = RunFolder(folder)
    assert len(list(folder.rglob(f".*{PART}"))) <= 1
    for path in (files.model_file, files.checkpoint_file):
        if path.exists():
            read_header(path), read_tensors(path)
    assert all("epoch" in row for row in files.rows())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of a training that nothing happened to, and its file operations."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch, -1, FULL)
        train(RECIPE, out=folder)
    return tensors(folder), faults.seen


def points(every: int) -> list[Any]:
    """Choose among the operations; a training of two epochs has fewer than 60."""
    return [
        pytest.param(
            at, after, marks=() if (2 * at + after) % every == 0 else pytest.mark.slow, id=f"{at} {after=}"
        )
        for at in range(60)
        for after in (False, True)
    ]  # fmt: skip


@pytest.mark.parametrize(("at", "after"), points(29))
def test_a_process_that_ends_at_a_file_operation_resumes_to_the_same_weights(
    at: int, after: bool, whole: tuple[dict[str, Tensor], list[str]], tmp_path: Path
) -> None:
    if at >= len(whole[1]):
        return
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch, at, Crash(), after=after)
        with pytest.raises(Crash):
            train(RECIPE, out=tmp_path / "run")
        assert faults.gone and faults.seen == whole[1][: at + 1]
    check_whole(tmp_path / "run")
    train(RECIPE, out=tmp_path / "run", resume=True)
    again = tensors(tmp_path / "run")
    assert again.keys() == whole[0].keys() and all(torch.equal(again[name], whole[0][name]) for name in again)
    assert not [p.name for p in (tmp_path / "run").rglob(".*")]  # no temporary file, no lock


@pytest.mark.parametrize(("at", "after"), points(29))
def test_a_disk_that_is_full_at_a_file_operation_stops_with_a_clear_error(
    at: int, after: bool, whole: tuple[dict[str, Tensor], list[str]], tmp_path: Path
) -> None:
    if at >= len(whole[1]):
        return
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch, at, FULL, after=after)
        if whole[1][at] == "fsync" and whole[1][at - 1] == "rename":  # of a folder, which not every system can
            train(RECIPE, out=folder)
        else:
            with pytest.raises(DataError, match=rf"^{folder}.*No space left on device.*Free some space there"):
                train(RECIPE, out=folder)
        assert len(faults.seen) > at
    assert not list(tmp_path.rglob(f".*{PART}"))
    check_whole(folder)
    train(RECIPE, out=folder, resume=True)
    again = tensors(folder)
    assert again.keys() == whole[0].keys() and all(torch.equal(again[name], whole[0][name]) for name in again)


def test_what_a_killed_process_left_goes_at_the_start_and_a_log_that_cannot_be_written_stops_nothing(
    tmp_path: Path, whole: tuple[dict[str, Tensor], list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "checkpoints" / f".of_an_older_version.1234abcd{PART}"
    old.parent.mkdir()
    old.write_text("x")
    (tmp_path / f".skipped.txt.1234abcd{PART}").write_text("x")
    (tmp_path / "log.txt").symlink_to("/dev/full")
    train(RECIPE, out=tmp_path)
    assert not list(tmp_path.rglob(f".*{PART}")) and capfd.readouterr().err == ""
    again = tensors(tmp_path)
    assert all(torch.equal(again[name], whole[0][name]) for name in whole[0])


def test_the_operations_are_those_of_every_file(whole: tuple[dict[str, Tensor], list[str]]) -> None:
    one = ["open", "write", "flush", "fsync", "rename", "fsync"]
    trial = one[:4]
    written = "".join(name[0] for name in whole[1]).count("owffrf")
    assert written == 2 + 2 * 2 + 1  # recipe, environment; metrics and checkpoint of two epochs; model
    assert whole[1][:4] == trial and 40 < len(whole[1]) < 60


def result(right: list[bool]) -> Result:
    outcomes = np.array(right)
    clean = Axis(name="clean", question="?", headline="clean", points=(point("clean", outcomes),))
    return Result(
        model="net", num_classes=2, class_names=("a", "b"), data="digits", n=4, threat=Threat("linf", 0.1), seed=0,
        axes=(clean,), checks=(), outcomes_by_point={"clean/clean": outcomes}, arrays={"labels": np.arange(4)},
    )  # fmt: skip


@pytest.mark.parametrize("error", [Crash(), FULL], ids=["end", "full disk"])
def test_a_result_and_its_arrays_are_the_old_ones_or_the_new_ones_or_known_not_to_belong_together(
    error: BaseException, tmp_path: Path
) -> None:
    old, new = result([True, True, False, False]), result([True, False, False, False])
    path, ends = tmp_path / "result.json", set()
    for at in range(1000):
        old.save(path)
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, at, error)
            try:
                new.save(path)
            except (Crash, DataError):
                pass
            else:
                if len(faults.seen) <= at:
                    break
        try:
            read = Result.read(path)
            ends.add("old" if read == old else "new")
            assert read in (old, new)
        except DataError as known:
            ends.add("neither" if "not the arrays of result.json" in str(known) else "damaged")
        for part in tmp_path.glob(f".*{PART}"):
            assert faults.gone
            part.unlink()
    assert at > 10 and ends - {"neither"} == {"old", "new"}


def test_arrays_of_another_result_are_refused(tmp_path: Path) -> None:
    for name, right in (("a", [True] * 4), ("b", [False] * 4)):
        result(right).save(tmp_path / f"{name}.json")
    (tmp_path / "b.npz").replace(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"a.npz: not the arrays of a.json; .* Repeat the evaluation with --overwrite"):
        Result.read(tmp_path / "a.json")
