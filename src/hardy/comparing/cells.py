"""The cells of a grid: where each lies, what it shall be, and how far it is."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hardy.comparing.recipe import Grid
from hardy.errors import ConfigError, DataError, HardyError
from hardy.safefile import write_json
from hardy.training.folder import RunFolder
from hardy.training.recipe import Recipe

__all__ = ["NOTE", "Cell", "State", "cells_of", "question_of", "state_of"]

NOTE = "cell.json"
State = Literal["new", "started", "trained", "finished"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training and its evaluation.

    Attributes:
        arm: Name of the arm.
        net: Name of the net.
        seed: Of the training.
        folder: Its run folder, ``OUT/<arm>/<net>/seed<k>``.
        recipe: What decides the training.
        passes: Forward and backward passes per training image in one epoch.
        question: What the evaluation is asked, the same in all cells.
    """

    arm: str
    net: str
    seed: int
    folder: Path
    recipe: Recipe
    passes: tuple[int, int]
    question: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name it as its folder does."""
        return "/".join(self.folder.parts[-3:])

    def note(self) -> dict[str, Any]:
        """Give what ``cell.json`` says of it."""
        return {
            "arm": self.arm,
            "net": self.net,
            "seed": self.seed,
            "passes": list(self.passes),
            "question": dict(self.question),
        }

    def write_note(self) -> None:
        """Write ``cell.json``."""
        write_json(self.folder / NOTE, self.note())


def cells_of(grid: Grid, out: Path, passes: Mapping[tuple[str, str], tuple[int, int]]) -> tuple[Cell, ...]:
    """List the cells: seed by seed, so that whole comparisons are finished first, and the baseline before the others.

    Args:
        grid: The comparison.
        out: Below it the cells lie.
        passes: Forward and backward passes per training image in one epoch, by arm and net.

    Raises:
        ConfigError: two nets whose folders would be the same, or a budget that leaves an arm no epoch.
    """
    c, question = grid.compare, question_of(grid)
    folders = {net: re.sub(r"[^A-Za-z0-9._+-]", "-", net).lstrip(".") or "net" for net in c.nets}
    if len({name.lower() for name in folders.values()}) < len(folders):
        raise ConfigError(f"compare.nets: two of {', '.join(c.nets)} would share a folder. Name them differently.")
    arms = sorted(c.arms, key=lambda arm: arm != c.baseline)
    found = []
    for seed in c.seeds:
        for net in c.nets:
            for arm in arms:
                cost = passes[arm, net]
                recipe = _cut(grid.recipe(arm, net, seed), arm, sum(cost), sum(passes[c.baseline, net]), c.budget)
                folder = out / arm / folders[net] / f"seed{seed}"
                found.append(
                    Cell(
                        arm=arm, net=net, seed=seed, folder=folder, recipe=recipe, passes=cost, question=question
                    )
                )  # fmt: skip
    return tuple(found)


def question_of(grid: Grid) -> dict[str, Any]:
    """Write down what every cell is asked after its training."""
    e, c = grid.plain.evaluate, grid.compare
    return {
        "axes": None if e.axes is None else list(e.axes),
        "norm": e.norm,
        "eps": e.eps,
        "limit": e.limit,
        "suite": e.suite,
        "checks": c.checks,
        "sources": list(c.sources),
    }


def state_of(cell: Cell, *, overwrite: bool = False) -> State:
    """Say how far a cell is.

    Args:
        cell: The cell.
        overwrite: Whether what another recipe made counts as not there; else it is an error.

    Raises:
        ConfigError: its folder holds another training or evaluation; the message names the cell.
        DataError: a file there is damaged.
    """
    run = RunFolder(cell.folder)
    if not run.recipe_file.exists():
        return "new"
    try:
        same = run.holds(cell.recipe)
    except HardyError as error:
        raise ConfigError(f"{cell.folder}: its recipe.toml cannot be read ({error}).") from error
    if not same:
        if overwrite:
            return "new"
        raise ConfigError(
            f"{cell.folder}: cell {cell.name} was trained by another recipe. Go on with that one, take another --out, "
            "or begin such cells anew with --overwrite."
        )
    if not run.model_file.exists():
        return "started" if run.checkpoint_file.exists() else "new"
    if not run.result_file.exists():
        return "trained"
    if _note(cell.folder).get("question") != json.loads(json.dumps(cell.question)):
        if overwrite:
            return "trained"
        raise ConfigError(
            f"{cell.folder}: cell {cell.name} was asked another question ([evaluate], checks or sources). "
            "Ask the same, take another --out, or evaluate such cells anew with --overwrite."
        )
    return "finished"


def _note(folder: Path) -> dict[str, Any]:
    """Read ``cell.json``; empty where there is none.

    Raises:
        DataError: it is damaged.
    """
    file = folder / NOTE
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: not readable JSON ({error}). Remove the folder of the cell to begin it anew."
        ) from error
    return found if isinstance(found, dict) else {}


def _cut(recipe: Recipe, arm: str, passes: int, baseline: int, budget: str) -> Recipe:
    """Cut the epochs of an arm whose steps cost more than the baseline's, if that is the budget."""
    if budget == "epochs" or passes <= baseline:
        return recipe
    epochs = recipe.train.epochs * baseline // passes
    if epochs < 1 or recipe.train.warmup_epochs >= epochs:
        need = "at least 1" if epochs < 1 else f"more than warmup_epochs = {recipe.train.warmup_epochs:g}"
        raise ConfigError(
            f'compare.budget: "passes" leaves arm {arm} {epochs} of {recipe.train.epochs} epochs, as it costs '
            f"{passes / baseline:.3g} times the passes of the baseline; {need} must be left. Raise train.epochs."
        )
    return replace(recipe, train=replace(recipe.train, epochs=epochs))
