"""Run folders: what a run writes, whole or not at all, and how it goes on after a crash."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hardy.config import build, read_toml
from hardy.environment import environment
from hardy.errors import DataError, TrainingError
from hardy.locks import locked
from hardy.safefile import (
    check_writable,
    make_folder,
    read_header,
    read_tensors,
    sweep,
    write_json,
    write_tensors,
    write_text,
)
from hardy.training.recipe import EvaluateRecipe, Recipe

__all__ = ["Progress", "Row", "RunFolder", "flatten_optimizer", "restore_optimizer"]

log = logging.getLogger(__name__)

Row = dict[str, int | float]  # what metrics.jsonl holds for an epoch

RUN_FORMAT = 1


@dataclass(frozen=True)
class Progress:
    """How far a training is; what ``on_progress`` gets.

    Attributes:
        epoch: Current epoch, from 1.
        epochs: Number of epochs.
        step: Steps done in the whole run.
        steps: Steps of the whole run.
        losses: Named losses of the step.
        row: What was logged, after the last step of an epoch; else None.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    losses: dict[str, float]
    row: Row | None = None


class RunFolder:
    """``recipe.toml env.json metrics.jsonl checkpoints/ model.safetensors log.txt`` below one path."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.toml"
        self.env_file = self.path / "env.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoint_file = self.path / "checkpoints" / "last.safetensors"
        self.model_file = self.path / "model.safetensors"
        self.result_file = self.path / "result.json"
        self.early = _Early()

    def check_writable(self) -> None:
        """Find out before any work whether files can be written here; nothing is left behind.

        Raises:
            DataError: they cannot.
        """
        check_writable(self.recipe_file)

    @contextmanager
    def at_work(self, recipe: Recipe, *, resume: bool, device: str, job: str | None = None) -> Iterator[None]:
        """Start or continue a run here, keep other processes out, and write the log.

        Args:
            recipe: What decides the run.
            resume: Whether a run may be here.
            device: For ``env.json``.
            job: Likewise: the job of several processes that writes here, for :meth:`belongs_to`.

        Raises:
            TrainingError: as :meth:`open`, or another process works here.
            DataError: it cannot be written.
        """
        make_folder(self.path)
        with locked(self.path, TrainingError):
            for folder in (self.path, self.checkpoint_file.parent):
                sweep(folder)
            self.open(recipe, resume=resume, device=device, job=job)
            try:
                with self.logging():
                    yield
            except DataError as error:
                kept = "The last checkpoint is kept" if self.checkpoint_file.exists() else "No epoch is finished yet"
                raise DataError(f"{error} {kept}: go on with --resume.") from error

    def open(self, recipe: Recipe, *, resume: bool, device: str, job: str | None = None) -> None:
        """Start or continue a run here.

        Raises:
            TrainingError: the folder holds a run and ``resume`` is off, or its recipe is another one.
            DataError: it cannot be written.
        """
        if self.recipe_file.exists():
            if not resume:
                raise TrainingError(
                    f"{self.path}: already holds a run. Choose another --out, or go on with it by --resume."
                )
            if not self.holds(recipe):
                raise TrainingError(
                    f"{self.path}: its recipe.toml is not the recipe given. Resume with that one or take another --out."
                )
        facts = environment(device)
        more = {} if job is None else {"job": job, "process": str(os.getpid())}
        write_json(self.env_file, facts | more)  # before the recipe: a run without knows its job
        write_text(self.recipe_file, recipe.to_toml())

    def holds(self, recipe: Recipe) -> bool:
        """Tell whether the run that is here was made by this recipe, as far as it decides the weights.

        Raises:
            ConfigError: its recipe cannot be read.
        """
        return _training_part(build(Recipe, read_toml(self.recipe_file))) == _training_part(recipe)

    def belongs_to(self, job: str | None) -> bool:
        """Tell whether another process of this job wrote here: one that has died, as this one is in its place."""
        if job is None or not self.env_file.exists():
            return False
        try:
            facts = json.loads(self.env_file.read_text(encoding="utf-8"))
            return bool(facts.get("job") == job and facts.get("process") != str(os.getpid()))
        except ValueError as error:
            raise DataError(f"{self.env_file}: not JSON ({error}).") from error

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what the ``hardy`` loggers say in the block, before there is a folder, for ``log.txt``."""
        logger = logging.getLogger("hardy")
        logger.addHandler(self.early)
        try:
            yield
        finally:
            logger.removeHandler(self.early)

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Write what the ``hardy`` loggers say in the block to ``log.txt``, appending; what does not fit is lost."""
        logger = logging.getLogger("hardy")
        level = logger.level
        handler = _Log(self.path / "log.txt", encoding="utf-8", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(min(level or logging.INFO, logging.INFO))
        while self.early.records:
            handler.handle(self.early.records.pop(0))
        try:
            yield
        finally:
            logger.setLevel(level)
            logger.removeHandler(handler)
            with suppress(OSError):  # of a full disk, again
                handler.close()

    def note_skipped(self, lines: Sequence[str], *, resume: bool) -> None:
        """Write ``skipped.txt``: a line about every image that was left out, if any was.

        Raises:
            TrainingError: the run that is resumed left out others, so that it would go on with other images.
        """
        file = self.path / "skipped.txt"
        before = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        now = [line if line.isprintable() else repr(line) for line in lines]
        if resume and self.checkpoint_file.exists() and list(map(_path, before)) != list(map(_path, now)):
            raise TrainingError(
                f"{file}: a resumed run must have the same images; {len(before)} were left out then, {len(now)} now, "
                "or others. Put the files back as they were, or take another --out."
            )
        if before and not now:
            file.unlink()  # of a run that ended before its first checkpoint
        if now:
            write_text(file, "".join(f"{line}\n" for line in now))
            log.warning("left out %d images that cannot be read: see %s", len(now), file.name)

    def rows(self) -> list[Row]:
        """Read the metrics, one row an epoch.

        Raises:
            DataError: the file is damaged.
        """
        if not self.metrics_file.exists():
            return []
        try:
            return [json.loads(line) for line in self.metrics_file.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise DataError(f"{self.metrics_file}: not one JSON object a line ({error}).") from error

    def write_rows(self, rows: list[Row]) -> None:
        """Write all rows anew: a file of a few kilobytes, never half a line."""
        write_text(self.metrics_file, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def write_checkpoint(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write what :meth:`read_checkpoint` needs to go on."""
        write_tensors(self.checkpoint_file, tensors, {"format": RUN_FORMAT, "kind": "training", **facts})

    def read_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read the last checkpoint; None if there is none yet.

        Raises:
            CheckpointError: it is damaged.
            TrainingError: it is not a training checkpoint.
        """
        if not self.checkpoint_file.exists():
            return None
        facts, _ = read_header(self.checkpoint_file)
        if facts.get("kind") != "training" or facts.get("format") != RUN_FORMAT:
            raise TrainingError(f"{self.checkpoint_file}: not a training checkpoint of this version.")
        return read_tensors(self.checkpoint_file), facts


class _Early(logging.Handler):
    """Keeps records, and shows warnings where they would have been shown without it."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        others = {*logging.getLogger("hardy").handlers, *logging.root.handlers} - {self}
        if not others and logging.lastResort is not None and record.levelno >= logging.lastResort.level:
            logging.lastResort.handle(record)


class _Log(logging.FileHandler):
    """Stays silent where it cannot write: a full disk stops the run where it writes what counts, and says so there."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (a name of logging's)
        pass


def _path(line: str) -> str:
    """Give the path in a line of ``skipped.txt``; the reason behind it is worded by the decoder."""
    return line.partition(" cannot be read ")[0]


def _training_part(recipe: Recipe) -> str:
    """Write down what decides the weights: not evaluation, worker processes, downloads, or when it is saved."""
    data = replace(recipe.data, workers="auto", download=False)
    return replace(recipe, evaluate=EvaluateRecipe(), data=data, train=replace(recipe.train, save_every=None)).to_toml()


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name the tensors of an optimizer's state ``<parameter>.<name>``; learning rates follow from the step."""
    state = optimizer.state_dict()["state"]
    return {
        f"{i}.{name}": torch.as_tensor(value)
        for i, held in state.items()
        for name, value in held.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Undo :func:`flatten_optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
