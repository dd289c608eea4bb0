"""The cells of a grid: where each lies, what it shall be, and how far it is."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hardy.comparing.origins import Origins, file_digest
from hardy.comparing.recipe import Grid
from hardy.errors import ConfigError, DataError, HardyError
from hardy.safefile import write_json
from hardy.training.folder import RunFolder
from hardy.training.recipe import Recipe

__all__ = ["NOTE", "Cell", "State", "cells_of", "made_otherwise", "question_of", "state_of"]

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
        training_files: Digests of the images and files that the training rests on, by what they are.
        question_files: Likewise of the evaluation: test images, sources.
    """

    arm: str
    net: str
    seed: int
    folder: Path
    recipe: Recipe
    passes: tuple[int, int]
    question: Mapping[str, Any]
    training_files: Mapping[str, str] = field(default_factory=dict)
    question_files: Mapping[str, str] = field(default_factory=dict)

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
            "training_files": dict(self.training_files),
            "question_files": dict(self.question_files),
        }

    def write_note(self, *, finished: bool = False) -> None:
        """Write ``cell.json``; of a finished cell it knows its net and its result by their digests."""
        run = RunFolder(self.folder)
        files = {"model": run.model_file, "result": run.result_file} if finished else {}
        write_json(self.folder / NOTE, self.note() | {key: file_digest(file) for key, file in files.items()})


def cells_of(
    grid: Grid,
    out: Path,
    passes: Mapping[tuple[str, str], tuple[int, int]],
    origins: Origins = Origins(),  # noqa: B008  (frozen)
) -> tuple[Cell, ...]:
    """List the cells: seed by seed, so that whole comparisons are finished first, and the baseline before the others.

    Args:
        grid: The comparison.
        out: Below it the cells lie.
        passes: Forward and backward passes per training image in one epoch, by arm and net.
        origins: Digests of the images and files that the cells rest on.

    Raises:
        ConfigError: two nets whose folders would be the same, a budget that leaves an arm no epoch, or
            ``freeze_epochs`` that leave an arm no epoch in which everything trains.
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
                        arm=arm,
                        net=net,
                        seed=seed,
                        folder=folder,
                        recipe=recipe,
                        passes=cost,
                        question=question,
                        training_files=origins.training.get(net, {}),
                        question_files=origins.question,
                    )
                )
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
        overwrite: Whether what was made otherwise (another recipe, question, images or files) counts as not there;
            else it is an error.

    Raises:
        ConfigError: its folder holds another training or evaluation; the message names the cell.
        DataError: a file there is damaged.
    """
    run = RunFolder(cell.folder)
    if not run.recipe_file.exists():
        return "new"
    if why := made_otherwise(cell):
        if overwrite:
            return "new"
        raise ConfigError(
            f"{cell.folder}: cell {cell.name} was trained {why}. Go on with what trained it, take another --out, "
            "or begin such cells anew with --overwrite."
        )
    if not run.model_file.exists():
        return "started" if run.checkpoint_file.exists() else "new"
    if not run.result_file.exists():
        return "trained"
    why = _asked_otherwise(cell)
    if why and not overwrite:
        raise ConfigError(
            f"{cell.folder}: cell {cell.name} {why}. Ask the same, take another --out, or evaluate such cells anew "
            "with --overwrite."
        )
    return "finished" if not why and "result" in _note(cell.folder) else "trained"


def made_otherwise(cell: Cell) -> str:
    """Say by what else the training in the folder of a cell was made; empty where by what makes the cell.

    Raises:
        ConfigError: the recipe there cannot be read.
        DataError: the note there is damaged.
    """
    run = RunFolder(cell.folder)
    try:
        same = run.holds(cell.recipe)
    except HardyError as error:
        raise ConfigError(f"{cell.folder}: its recipe.toml cannot be read ({error}).") from error
    if not same:
        return "by another recipe"
    changed = _changed(_note(cell.folder).get("training_files"), cell.training_files)
    return f"from other files: {changed} changed since" if changed else ""


def _asked_otherwise(cell: Cell) -> str:
    """Say what else the result in the folder of a cell answers; empty where it is the cell's, or nobody finished it."""
    note, run = _note(cell.folder), RunFolder(cell.folder)
    if note.get("question") != json.loads(json.dumps(cell.question)):
        return "was asked another question ([evaluate], checks or sources)"
    if changed := _changed(note.get("question_files"), cell.question_files):
        return f"was asked about other files: {changed} changed since"
    if note.get("result", "") not in ("", file_digest(run.result_file)):
        return "has a result.json that this comparison did not write (hardy evaluate did?)"
    if note.get("model", "") not in ("", file_digest(run.model_file)):
        return "has another net than the one that was evaluated"
    return ""


def _changed(before: object, now: Mapping[str, str]) -> str:
    """List what had another digest before; what was not noted then is not known."""
    old = before if isinstance(before, dict) else {}
    return ", ".join(name for name, digest in now.items() if old.get(name, digest) != digest)


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
    """Cut the epochs of an arm whose steps cost more than the baseline's, if that is the budget.

    What is counted in epochs, warm-up and freezing, is cut alike.
    """
    t = recipe.train
    if budget == "passes" and passes > baseline:
        epochs = t.epochs * baseline // passes
        if epochs < 1:
            raise ConfigError(
                f'compare.budget: "passes" leaves arm {arm} 0 of {t.epochs} epochs, as it costs '
                f"{passes / baseline:.3g} times the passes of the baseline; at least 1 must be left. "
                "Raise train.epochs."
            )
        share = epochs / t.epochs
        frozen = None if t.freeze_epochs is None else max(1, round(t.freeze_epochs * share))
        t = replace(t, epochs=epochs, warmup_epochs=t.warmup_epochs * share, freeze_epochs=frozen)
    if t.freeze_epochs is not None and t.freeze_epochs >= t.epochs:
        raise ConfigError(
            f"train.freeze_epochs: must be below the epochs of every arm; {t.freeze_epochs} of the {t.epochs} epochs "
            f"of arm {arm} leave none in which everything trains. Raise train.epochs, or leave freeze_epochs out."
        )
    return replace(recipe, train=t)
