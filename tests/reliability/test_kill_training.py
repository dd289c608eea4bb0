"""``kill -9`` at any moment of a training costs time and nothing else: the weights come out bit for bit the same."""

import json
import random
import signal
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hardy import io
from hardy.safefile import PART, read_header, read_tensors

KILLS = 34  # of trainings, per recipe; the issue asks for 30 in all
NAMES = {"recipe.toml", "env.json", "metrics.jsonl", "checkpoints/last.safetensors", "model.safetensors", "log.txt"}
CHANGES = {
    "SGD, moving average, best epoch, lfm + mixup + learned thresholds": (),
    "AdamW, last epoch, row norms, loggers": (
        'train.optimizer="adamw"', "train.lr=0.01", 'train.select="last"', 'train.loggers=["csv","tensorboard"]',
        'methods=[{name="row_norm"},{name="drop_block"},{name="cutmix"}]', "train.epochs=16",
    ),
}  # fmt: skip


def parts(folder: Path) -> list[Path]:
    return list(folder.rglob(f".*{PART}"))


def check_whole(folder: Path) -> None:
    """Read every file of a run folder; what was being written has another name, and does not pile up."""
    written = [part.name.rsplit(".", 2)[0] for part in parts(folder)]
    assert len(set(written)) == len(written) <= 2  # one of the last process, one of it before that one tidied up
    for path in (p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.startswith("logs/") or name in {"log.txt", ".lock"} or path.suffix == PART:
            continue
        assert name in NAMES, name
        if path.suffix == ".toml":
            tomllib.loads(path.read_text())
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            text = path.read_text()
            assert text.endswith("\n") and [json.loads(line)["epoch"] for line in text.splitlines()]
        else:
            read_header(path), read_tensors(path)
    if (folder / "model.safetensors").exists():
        io.load(folder / "model.safetensors")


@dataclass(frozen=True)
class Ending:
    """What a training leaves, without its times."""

    weights: dict[str, Tensor]
    checkpoint: dict[str, Tensor]
    facts: dict[str, Any]
    rows: list[dict[str, Any]]

    @classmethod
    def of(cls, folder: Path) -> "Ending":
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            row.pop("seconds")
        last = folder / "checkpoints" / "last.safetensors"
        return cls(read_tensors(folder / "model.safetensors"), read_tensors(last), read_header(last)[0], rows)

    def check_same(self, other: "Ending") -> None:
        assert self.rows == other.rows and self.facts == other.facts
        for ours, theirs in ((self.weights, other.weights), (self.checkpoint, other.checkpoint)):
            assert ours.keys() == theirs.keys()
            for name in ours:
                assert torch.equal(ours[name], theirs[name]), name


def progress(folder: Path) -> tuple[float, ...]:
    """Say how far a run is, as something that grows."""
    last = folder / "checkpoints" / "last.safetensors"
    done = read_header(last)[0]["step"] if last.exists() else 0
    return done, (folder / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_training_killed_again_and_again_ends_with_the_same_weights(
    changes: tuple[str, ...], nursery: Any, recipe: Path, tmp_path: Path
) -> None:
    args = ["train", recipe, "--quiet", *(word for change in changes for word in ("--set", change))]
    whole = nursery.run(*args, "--out", tmp_path / "whole")
    assert whole.wait() == 0, whole.said
    want = Ending.of(tmp_path / "whole")
    rng = random.Random(f"kills {len(changes)}")  # noqa: S311
    kills = writing = runs = 0
    while kills < KILLS:
        folder = tmp_path / f"killed-{runs}"
        runs, patience, before = runs + 1, 1.0, progress(folder)
        while True:
            child = nursery.start(*args, "--out", folder, "--resume")
            moment = time.monotonic() + rng.uniform(0, patience)
            while time.monotonic() < moment and child.poll(0.005) is None:
                pass
            if rng.random() < 0.6:  # in the middle of writing, or right after it
                end = time.monotonic() + 5
                while not parts(folder) and child.poll(0) is None and time.monotonic() < end:
                    pass
                time.sleep(rng.choice([0, 0, 0.001, 0.004]))
            if child.poll(0) is not None:
                break
            child.send(signal.SIGKILL)
            if child.wait() != -signal.SIGKILL:
                break  # it was faster
            kills += 1
            writing += bool(parts(folder))
            check_whole(folder)
            now = progress(folder)
            patience, before = (1.0 if now > before else 1.5 * patience), now
        assert child.wait() == 0, child.said
        check_whole(folder)
        assert parts(folder) == [] and not (folder / ".lock").exists()
        want.check_same(Ending.of(folder))
    print(f"{kills} kills in {runs} runs, {writing} in the middle of writing")  # noqa: T201
    assert kills >= 30 and writing >= 3


@pytest.mark.slow
def test_kills_while_everything_is_imported_and_read_cost_nothing(
    cold: Callable[..., Any], nursery: Any, recipe: Path, tmp_path: Path
) -> None:
    args = ["train", recipe, "--quiet", "--epochs", "4"]
    assert nursery.run(*args, "--out", tmp_path / "whole").wait() == 0
    rng = random.Random("cold")  # noqa: S311
    for _ in range(4):
        child = cold(*args, "--out", tmp_path / "run", "--resume")
        child.poll(rng.uniform(0, 4))
        child.send()
        child.wait()
        check_whole(tmp_path / "run")
    assert cold(*args, "--out", tmp_path / "run", "--resume").wait() == 0
    Ending.of(tmp_path / "whole").check_same(Ending.of(tmp_path / "run"))
