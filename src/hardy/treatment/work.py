"""One net after the other: trained, evaluated, and only read where that is done already."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from hardy import io
from hardy.data import ArrayData
from hardy.evaluation import evaluate
from hardy.evaluation.fingerprint import weights_digest
from hardy.evaluation.journal import Journal
from hardy.evaluation.suite import Suite
from hardy.inserts import PASSES
from hardy.methods import Method
from hardy.results import Result
from hardy.safefile import make_folder
from hardy.threats import Threat
from hardy.training import TrainRecipe, train
from hardy.training.folder import RunFolder
from hardy.treatment.arms import Arm
from hardy.treatment.rift import DONE, rift

__all__ = ["Exam", "Work"]


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What every net is asked: before, control, treated.

    Attributes:
        test: Images that nothing was trained on or chosen by.
        axes: Of the evaluation.
        threat: Of ``white_box``.
        suite: Its attacks.
        checks: "derived" or "full".
        device: Where.
        batch_size: Images per pass.
        name: Name of the patient.
    """

    test: ArrayData
    axes: tuple[str, ...]
    threat: Threat
    suite: Suite
    checks: Literal["derived", "full"]
    device: str
    batch_size: int
    name: str

    def sit(self, net: nn.Module, folder: RunFolder, *, name: str, methods: Sequence[Method] = ()) -> Result:
        """Evaluate a net, unless its result is there; finished parts of a stopped evaluation are kept."""
        if folder.result_file.exists():
            found = Result.read(folder.result_file)
            if found.arrays["model_weights"].tobytes().hex() == weights_digest(net):
                return found
        journal = Journal(folder.result_file.with_suffix(".partial"))
        metrics = io.read(folder.model_file).metrics if folder.model_file.exists() else {}
        make_folder(folder.path)
        result = evaluate(
            net.to(self.device).eval(),
            self.test.images().to(self.device),
            self.test.y.to(self.device),
            threat=self.threat,
            axes=self.axes,
            suite=self.suite,
            rows=self.test.index.to(self.device),
            batch_size=self.batch_size,
            checks=self.checks,
            journal=journal.folder,
            model_name=f"{self.name}, {name}",
            data_name=f"{self.test.name} {self.test.split}",
            class_names=self.test.class_names,
            methods=tuple(map(repr, methods)),
            training_passes={key: metrics[key] for key in PASSES} if all(key in metrics for key in PASSES) else {},
        )
        result.save(folder.result_file)
        journal.clear()
        net.cpu()
        return result


@dataclass(frozen=True)
class Work:
    """Trains and evaluates one net after the other below a folder; what is finished is read."""

    folder: Path
    data: ArrayData
    val_data: ArrayData | None
    options: TrainRecipe
    augment: tuple[str, ...]
    exam: Exam
    say: Callable[[str], None]

    def through(self, arm: Arm, seed: int) -> tuple[nn.Module, Result]:
        """Train an arm from a seed and evaluate it."""
        run = RunFolder(self.folder / arm.name / f"seed{seed}")
        net = arm.start(seed)
        if not run.model_file.exists():
            self.say(f"{arm.name}, seed {seed}: training for {self.options.epochs} epochs")
        train(
            net,
            self.data,
            methods=arm.methods,
            options=self.options,
            augment=self.augment,
            val_data=self.val_data,
            out=run.path,
            seed=seed,
            device=self.exam.device,
            resume=True,  # a finished one is read
        )
        return net, self._judged(net, run, arm.name, seed, arm.methods)

    def rift(self, patient: nn.Module, seed: int) -> tuple[nn.Module, Result, str]:
        """Treat by RiFT and evaluate; say what was chosen."""
        run = RunFolder(self.folder / "rift" / f"seed{seed}")
        if run.result_file.exists():  # all that comes before it is there
            net = io.load(run.model_file, model=copy.deepcopy(patient))
        else:
            self.say(f"rift, seed {seed}: choosing a layer, training it, choosing how far to go")
            assert self.val_data is not None  # noqa: S101  (checked at the beginning)
            net = rift(
                patient,
                self.data,
                held_out=self.val_data,
                out=run.path,
                options=self.options,
                augment=self.augment,
                threat=self.exam.threat,
                seed=seed,
                device=self.exam.device,
                batch_size=self.exam.batch_size,
                resume=True,
            ).model
        facts = json.loads((run.path / DONE).read_text(encoding="utf-8"))
        said = f"layer {facts['layer']}, alpha {facts['alpha']:g}" + (
            ": the patient stays." if not facts["alpha"] else "."
        )
        return net, self._judged(net, run, "rift", seed, ()), said

    def _judged(self, net: nn.Module, run: RunFolder, name: str, seed: int, methods: Sequence[Method]) -> Result:
        self.say(f"{name}, seed {seed}: evaluating")
        return self.exam.sit(net, run, name=f"{name}, seed {seed}", methods=methods)
