"""Run folders: what a run writes, whole or not at all, and how it goes on after a crash."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hardy.config import build, read_toml
from hardy.environment import environment
from hardy.errors import DataError, TrainingError
from hardy.safefile import read_header, read_tensors, write_json, write_tensors, write_text
from hardy.training.recipe import EvaluateRecipe, Recipe

__all__ = ["Progress", "Row", "RunFolder", "flatten_optimizer", "restore_optimizer"]

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

    def open(self, recipe: Recipe, *, resume: bool, device: str) -> None:
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
            if _training_part(build(Recipe, read_toml(self.recipe_file))) != _training_part(recipe):
                raise TrainingError(
                    f"{self.path}: its recipe.toml is not the recipe given. Resume with that one or take another --out."
                )
        write_text(self.recipe_file, recipe.to_toml())
        write_json(self.env_file, environment(device))

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Write what the ``hardy`` loggers say in the block to ``log.txt``, appending."""
        logger = logging.getLogger("hardy")
        level = logger.level
        handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(min(level or logging.INFO, logging.INFO))
        try:
            yield
        finally:
            logger.setLevel(level)
            logger.removeHandler(handler)
            handler.close()

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


def _training_part(recipe: Recipe) -> str:
    """Write down what decides the weights; what is evaluated afterwards does not."""
    return replace(recipe, evaluate=EvaluateRecipe()).to_toml()


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
