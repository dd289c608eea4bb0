"""What decides everything in the folder of a treatment, and whether the folder is free for it."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torch import nn

from hardy.data import ArrayData
from hardy.errors import DataError, TrainingError
from hardy.evaluation.fingerprint import images_digest, weights_digest
from hardy.safefile import check_writable, make_folder, write_json
from hardy.training import TrainRecipe
from hardy.training.state import fingerprint
from hardy.treatment.arms import Wish
from hardy.treatment.work import Exam

__all__ = ["BEFORE", "PATIENT", "RELEVANCE", "question_of", "settle"]

BEFORE, QUESTION = "before", "question.json"
PATIENT, RELEVANCE = "patient.safetensors", "relevance.safetensors"


def question_of(
    wish: Wish,
    exam: Exam,
    patient: nn.Module,
    data: ArrayData,
    val_data: ArrayData | None,
    *,
    options: TrainRecipe,
    augment: tuple[str, ...],
    top: int,
) -> dict[str, Any]:
    """Write down what decides everything in the folder, but for how many trainings there are."""
    return {
        "how": wish.how,
        "method": repr(wish.method),
        "patient": weights_digest(patient),
        "images": fingerprint(data, val_data),
        "test": images_digest(exam.test.images()).hex(),
        "test labels": blake2b(exam.test.y.numpy().tobytes(), digest_size=8).hexdigest(),
        "pixels": blake2b(data.x.numpy().tobytes(), digest_size=8).hexdigest(),
        "classes": list(exam.test.class_names),
        "axes": list(exam.axes),
        "threat": str(exam.threat),
        "suite": exam.suite if isinstance(exam.suite, str) else [str(each) for each in exam.suite],
        "checks": exam.checks,
        "training": json.loads(json.dumps(asdict(options))),
        "augment": list(augment),
        "top": top,
    }


def settle(folder: Path, question: Mapping[str, Any]) -> None:
    """Take the folder, or go on in it.

    Raises:
        TrainingError: it holds another treatment; the message says what is different.
    """
    file = folder / QUESTION
    if (folder / "recipe.toml").exists():
        raise TrainingError(f"{folder}: is the folder of a run. Take another --out.")
    check_writable(file)
    begun = (folder / BEFORE / "result.json").exists() or any(folder.glob("*/seed*/recipe.toml"))
    if file.exists() and not begun:  # a first attempt that failed
        for old in (RELEVANCE, PATIENT, QUESTION):
            (folder / old).unlink(missing_ok=True)
    if file.exists():
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: not readable JSON ({error}). Take another folder.") from error
        if held != question:
            other = [key for key in question if not isinstance(held, dict) or held.get(key) != question[key]]
            raise TrainingError(f"{folder}: holds a treatment with other {', '.join(other)}. Take another --out.")
        return
    make_folder(folder)
    write_json(file, question)
