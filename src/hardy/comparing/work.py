"""One cell from where it is to its end: train, or go on with it, then evaluate, or go on with that."""

import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from hardy import io
from hardy.attacks import SUITES
from hardy.comparing.cells import Cell, made_otherwise, state_of
from hardy.comparing.origins import source_file, source_names
from hardy.data import ArrayData, load_data
from hardy.errors import ConfigError
from hardy.evaluation import evaluate
from hardy.evaluation.journal import Journal
from hardy.evaluation.suite import Suite, check_suite
from hardy.inserts import PASSES
from hardy.results import Result
from hardy.safefile import make_folder, sweep, write_text
from hardy.threats import Threat
from hardy.training import train
from hardy.training.folder import RunFolder
from hardy.training.recipe import build_methods, load_recipe

__all__ = ["asked", "images_of", "open_source", "run_cell"]


def run_cell(cell: Cell, *, device: str, overwrite: bool = False, say: Callable[[str], None] = lambda _: None) -> None:
    """Bring a cell to its end: a run folder with ``cell.json`` and ``result.json``.

    Args:
        cell: What shall be there.
        device: "cpu", "cuda".
        overwrite: Begin anew what another recipe or question made.
        say: Called with what is begun, in words.

    Raises:
        HardyError: as training and evaluation say; what is finished is kept.
    """
    state = state_of(cell, overwrite=overwrite)
    folder = RunFolder(cell.folder)
    if state == "finished":
        return
    if state == "new" and folder.recipe_file.exists() and made_otherwise(cell):
        shutil.rmtree(cell.folder)  # --overwrite, else state_of would not have come here
    make_folder(cell.folder)
    if state == "trained":
        sweep(cell.folder)
    for old in (folder.result_file, folder.result_file.with_suffix(".npz")):
        old.unlink(missing_ok=True)  # of another question or net: gone before the note says that it is of this one
    if state == "trained":
        _write_question(cell)
    cell.write_note()
    if state != "trained":
        say("training" if state == "new" else "training, from its checkpoint")
        train(cell.recipe, out=cell.folder, device=device, resume=True)
    say("evaluating")
    measure(cell, device=device)


def measure(cell: Cell, *, device: str) -> Result:
    """Evaluate the trained net of a cell; finished parts of a stopped evaluation are not computed again."""
    folder = RunFolder(cell.folder)
    images = images_of(cell)
    threat, suite = asked(cell.question)
    texts = cell.question["sources"]
    metrics = io.read(folder.model_file).metrics
    journal = Journal(folder.result_file.with_suffix(".partial"))
    result = evaluate(
        _trained(cell, images).to(device),
        images.images().to(device),
        images.y.to(device),
        threat=threat,
        axes=cell.question["axes"],
        suite=suite,
        sources=[(name, open_source(text).to(device)) for name, text in zip(source_names(texts), texts, strict=True)],
        rows=images.index.to(device),
        checks=cell.question["checks"],
        journal=journal.folder,
        model_name=cell.name,
        data_name=f"{images.name} {images.split}",
        class_names=images.class_names,
        methods=tuple(map(repr, build_methods(cell.recipe.methods))),
        training_passes={key: metrics[key] for key in PASSES} if all(key in metrics for key in PASSES) else {},
        command=_command(cell),
    )
    result.save(folder.result_file)
    cell.write_note(finished=True)
    journal.clear()
    return result


def asked(question: Mapping[str, Any]) -> tuple[Threat, Suite]:
    """Read threat and suite of a question.

    Raises:
        ConfigError: a Linf budget above 1.
        ParameterError: no such suite or attack, or one that is not defined for the norm.
    """
    threat = Threat(question["norm"], question["eps"])
    if threat.norm == "linf" and threat.eps > 1:
        raise ConfigError(f"evaluate.eps: pixels are in [0, 1], so a linf budget is at most 1; got {threat.eps:g}.")
    text = question["suite"]
    suite: Suite = text if text in SUITES else [name.strip() for name in text.split(",") if name.strip()]
    check_suite(suite, threat)
    return threat, suite


def images_of(cell: Cell) -> ArrayData:
    """Load the test images: which ones depends on the question alone, so that all cells answer for the same."""
    d = cell.recipe.data
    return load_data(
        d.name, split="test", limit=cell.question["limit"], size=d.size, download=d.download, skip_bad=d.skip_bad
    )


def open_source(text: str) -> nn.Module:
    """Open a net to transfer from: a run folder or a checkpoint.

    Raises:
        CheckpointError: it is neither.
    """
    return io.load(source_file(text))


def _write_question(cell: Cell) -> None:
    """Let the recipe of a trained net ask what the cell asks, so that its command repeats this evaluation."""
    file = RunFolder(cell.folder).recipe_file
    held = load_recipe(file)
    if held.evaluate != cell.recipe.evaluate:
        write_text(file, replace(held, evaluate=cell.recipe.evaluate).to_toml())


def _trained(cell: Cell, images: ArrayData) -> nn.Module:
    """Read the trained net from its file, as anybody else will."""
    file, model = RunFolder(cell.folder).model_file, cell.recipe.model
    own = None
    if io.read(file).source.builder == "external":
        own = io.load_model(
            model.name, num_classes=len(images.class_names), in_channels=images.shape[0], args=model.args
        )
    return io.load(file, model=own)


def _command(cell: Cell) -> str:
    """Give the command that repeats the evaluation of this cell alone; the rest is in its recipe."""
    words = ["hardy", "evaluate", str(cell.folder), "--checks", str(cell.question["checks"])]
    for source in cell.question["sources"]:
        words += ["--source", source]
    return shlex.join(words)
