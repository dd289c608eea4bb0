"""A folder has one owner at a time, and none once its process is gone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hardy.errors import ConfigError, TrainingError
from hardy.locks import LOCK, locked, take


def test_a_folder_is_locked_against_everybody_and_free_afterwards(tmp_path: Path) -> None:
    with locked(tmp_path, TrainingError):
        for error in (ConfigError, TrainingError):
            owner = rf"{tmp_path}: process {os.getpid()} on .* is at work in this folder"
            with pytest.raises(error, match=owner), locked(tmp_path, error):
                pass
        assert (tmp_path / LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / LOCK).write_text("process 1 of long ago")  # left by a kill
    with locked(tmp_path, TrainingError):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    with pytest.raises(ZeroDivisionError), locked(tmp_path, TrainingError):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_lock_survives_the_removal_of_its_folder_and_takes_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    with locked(folder, TrainingError):
        (folder / LOCK).unlink()
        with locked(folder, TrainingError):
            pass
        (folder / LOCK).write_text("another's")
    assert (folder / LOCK).read_text() == "another's"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_worker_that_outlives_its_parent_does_not_hold_the_lock(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys, time
from pathlib import Path
from hardy.errors import TrainingError
from hardy.locks import locked
with locked(Path({str(tmp_path)!r}), TrainingError):
    if os.fork() == 0:
        sys.stdout.write("ready")
        sys.stdout.close()
        time.sleep(20)
        os._exit(0)
    time.sleep(20)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, start_new_session=True) as parent:  # noqa: S603
        assert parent.stdout is not None and parent.stdout.read(5) == b"ready"
        with pytest.raises(TrainingError, match=f"process {parent.pid} on"), locked(tmp_path, TrainingError):
            pass
        parent.kill()
        parent.wait()
        with locked(tmp_path, TrainingError):
            pass
        os.killpg(parent.pid, signal.SIGKILL)


def test_where_nothing_can_be_locked_nobody_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with (tmp_path / "file").open("w") as file:
        assert take(file.fileno()) is None
    with locked(tmp_path, TrainingError), locked(tmp_path, TrainingError):
        pass


def test_a_folder_that_is_not_there_is_an_error_of_the_class_asked_for(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"cannot write here \(No such file or directory\)"),
        locked(tmp_path / "a", ConfigError),
    ):
        pass
