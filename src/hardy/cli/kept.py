"""Where ``hardy evaluate`` keeps finished images until the evaluation is written."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hardy.cli.common import console
from hardy.cli.stops import settle
from hardy.errors import ConfigError
from hardy.evaluation.journal import Journal
from hardy.locks import locked
from hardy.safefile import make_folder, sweep, write_json

__all__ = ["kept"]


@contextmanager
def kept(folder: Path, question: dict[str, Any], *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """Keep finished images in a folder until the evaluation is written; other processes are kept out.

    Raises:
        ConfigError: it holds those of a stopped evaluation, and neither --resume nor --overwrite is given, or the
            stopped one asked something else, or another process is at work there.
    """
    note = folder / "question.json"
    make_folder(folder)
    with locked(folder, ConfigError):
        sweep(folder)
        begun = any(folder.glob("*.npz"))
        if begun and (resume or not overwrite):
            _same_question(note, question, resume=resume)
        if overwrite and not resume:
            for file in folder.glob("*.npz"):
                file.unlink()
        try:
            write_json(note, question)
            yield folder
        except BaseException as error:
            settle(error)
            if not any(folder.glob("*.npz")):
                Journal(folder).clear()
            else:
                console().print(f"Finished images are kept in {folder}: go on with --resume.", highlight=False)
            raise
        Journal(folder).clear()


def _same_question(note: Path, question: dict[str, Any], *, resume: bool) -> None:
    """Demand that a stopped evaluation is gone on with on purpose, and with the same question."""
    if not resume:
        raise ConfigError(
            f"{note.parent}: an evaluation was stopped here. Go on with --resume, or begin anew with --overwrite."
        )
    before = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    if before and (other := [key for key in question if before.get(key) != question[key]]):
        raise ConfigError(
            f"{note.parent}: the stopped evaluation had another {', '.join(other)} ({before.get(other[0])!r}). "
            "Go on with the same, write elsewhere with --out, or begin anew with --overwrite."
        )
