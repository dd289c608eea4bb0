"""``hardy.treat``: train the treatment and its control from the same patient, and say whether the patient is better."""

import copy
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hardy import io, surgery
from hardy.attacks.guards import check_eval
from hardy.data import ArrayData, MaskSource, with_background
from hardy.diagnosis.record import Diagnosis
from hardy.errors import DataError, ParameterError, TrainingError, did_you_mean
from hardy.evaluation import evaluate
from hardy.evaluation.axes import AXES as KNOWN
from hardy.evaluation.fingerprint import images_digest, weights_digest
from hardy.evaluation.journal import Journal
from hardy.evaluation.suite import Suite, check_suite
from hardy.inserts import PASSES
from hardy.methods import Method, ModelDoctor
from hardy.reporting import GridCell, grid_report
from hardy.results import Result
from hardy.safefile import check_writable, make_folder, write_json
from hardy.threats import Threat
from hardy.training import TrainRecipe, train
from hardy.training.build import check_size
from hardy.training.folder import RunFolder
from hardy.training.state import fingerprint
from hardy.treatment.arms import CONTROL, NOISE, Arm, Wish, arms_of, fresh, spec_of
from hardy.treatment.record import Treatment
from hardy.treatment.relevance import TOP, measure_relevance
from hardy.treatment.rift import DONE, rift, shared_images
from hardy.treatment.verdict import gains

__all__ = ["AXES", "BEFORE", "PAGE", "TABLE", "treat"]

log = logging.getLogger(__name__)
BEFORE, PAGE, TABLE, QUESTION = "before", "report.html", "treatment.json", "question.json"
PATIENT, RELEVANCE = "patient.safetensors", "relevance.safetensors"
AXES = ("clean", "calibration", "noise", "white_box")  # what is measured unless the caller says


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


def treat(
    model: nn.Module,
    data: ArrayData,
    diagnosis: Diagnosis | None = None,
    *,
    test: ArrayData,
    out: str | Path,
    how: str | Method = "channel",
    preset: str | None = None,
    val_data: ArrayData | None = None,
    masks: MaskSource | None = None,
    epochs: int | None = None,
    options: TrainRecipe | None = None,
    augment: tuple[str, ...] = ("crop", "flip"),
    seeds: Sequence[int] = (0,),
    noise_control: bool = False,
    top: int | None = None,
    student: Callable[[int], nn.Module] | None = None,
    threat: Threat = Threat("linf", 8 / 255),  # noqa: B008  (frozen)
    axes: Sequence[str] = AXES,
    suite: Suite = "quick",
    checks: Literal["derived", "full"] = "derived",
    model_name: str = "patient",
    device: str = "auto",
    batch_size: int = 128,
    on_event: Callable[[str], None] | None = None,
) -> Treatment:
    """Train a treatment and its control from the same net, evaluate all on the same images, and compare.

    The control has the same further training, images, order and random numbers, without the treatment: what a net gains
    by more training alone is no merit of it. Everything is written to ``out``; the same call again goes on where one
    was stopped, and leaves finished parts alone. The patient is left as it is.

    Treatments: "channel", "space", "both" (Model Doctor, :mod:`hardy.methods.model_doctor`), "rift" (train the least
    critical layer alone, :mod:`hardy.treatment.rift`), "distill" (a fresh student,
    :mod:`hardy.methods.distillation`), or any method by its name or with its fields.

    Args:
        model: The patient: a trained plain net in eval mode; methods that live at test time stay.
        data: Training images, those that the patient was trained on.
        diagnosis: Its maps of training images are used, if it has that of the layer, instead of measuring them again.
        test: Images for the verdict, which nothing else sees.
        out: Folder for everything.
        how: The treatment.
        preset: Of its method; of Model Doctor "paper" (the default without one is equal to it at batches of 128) or
            "repo".
        val_data: Held-out images of the training part, which "rift" chooses by; otherwise for validation, if given.
        masks: Which pixels of the training images are the object (:func:`hardy.data.object_masks`), for "space" and
            "both".
        epochs: Overrides ``options.epochs``.
        options: How to train; by default SGD with learning rate 0.01 (the paper's), 0.1 for a fresh student.
        augment: Of "crop", "resized_crop", "flip".
        seeds: Of the trainings; with 3 or more, intervals are over trainings.
        noise_control: Also train with the noise of Model Doctor alone.
        top: Images of each class behind the relevance of its channels: the surest right ones; None: 100, with preset
            "repo" 50.
        student: Builds a student from a seed; None: the patient's net with new weights.
        threat: Of the axis ``white_box``, and of "rift".
        axes: What is measured.
        suite: Attacks of ``white_box``.
        checks: "derived", or "full".
        model_name: Name of the patient on the page.
        device: "auto", "cpu", "cuda".
        batch_size: Images per pass of evaluations.
        on_event: Told what is begun, in words.

    Returns:
        The treated net of the first seed, and the comparison.

    Raises:
        ParameterError: train mode, no such treatment, masks or validation images are missing, no seeds, or a bad value.
        DataError: images that do not fit the net or each other, or files that cannot be written.
        TrainingError: ``out`` holds another treatment.
    """
    check_eval(model, "treat")
    wish = spec_of(how, preset)
    if noise_control and not (isinstance(wish.method, ModelDoctor) and wish.method.noise):
        raise ParameterError("treat: noise_control must be of Model Doctor with noise; leave it out.")
    data = _material(wish, data, test, val_data, masks)
    _check_lists(seeds, axes)
    check_suite(suite, threat)
    folder, say = Path(out), on_event or log.info
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    exam = Exam(
        test=test, axes=tuple(axes), threat=threat, suite=suite, checks=checks, device=device, batch_size=batch_size,
        name=model_name,
    )  # fmt: skip
    patient = surgery.strip(model).cpu()
    options = options or wish.options
    options = options if epochs is None else replace(options, epochs=epochs)
    top = top if top is not None else TOP.get(preset or "", TOP["paper"])
    check_size(patient, data, torch.device("cpu"))
    question = _question(wish, exam, patient, data, val_data, options=options, augment=augment, top=top)
    question["relevance"] = "measured" if diagnosis is None else f"of a diagnosis of {diagnosis.map_data}"
    question["student"] = "" if student is None else getattr(student, "__qualname__", "given")
    _settle(folder, question)
    method = wish.method
    if isinstance(method, ModelDoctor) and method.channel and not method.relevance:
        where = f"on the {top} surest images of each" if diagnosis is None else "out of the diagnosis"
        say(f"which channels each class uses: {where}")
        file = (folder / RELEVANCE).resolve()  # recipes name it
        measure_relevance(patient, data, method, file, diagnosis=diagnosis, top=top, device=device)
        method = replace(method, relevance=str(file))
    elif wish.how == "distill":
        file = (folder / PATIENT).resolve()
        io.save(patient, file)
        method = _student_of(file, patient)
    arms = arms_of(
        wish,
        method,
        patient,
        noise_control=noise_control,
        student=student or (lambda seed: fresh(patient, seed)),
    )
    say("evaluating the patient")
    results = {BEFORE: [exam.sit(patient, RunFolder(folder / BEFORE), name=BEFORE)]}
    trained: dict[tuple[str, int], nn.Module] = {}
    notes = _notes(wish, data)
    work = Work(folder, data, val_data, options, augment, exam, say)
    for seed in seeds:
        for arm in arms:
            net, result = work.through(arm, seed)
            trained[arm.name, seed] = net
            results.setdefault(arm.name, []).append(result)
        if wish.how == "rift":
            net, result, said = work.rift(patient, seed)
            notes.append(f"Seed {seed}: {said}")
            trained[wish.how, seed] = net
            results.setdefault(wish.how, []).append(result)
    made = Treatment(
        model=trained[wish.how, seeds[0]],
        how=wish.how,
        methods=() if method is None else (repr(method),),
        seeds=tuple(seeds),
        gains=gains(results[BEFORE][0], results[CONTROL], results[wish.how]),
        over_noise=gains(results[BEFORE][0], results[NOISE], results[wish.how]) if noise_control else (),
        folder=folder,
        notes=tuple(notes),
    )
    _publish(made, [arm for arm in results if arm != BEFORE], {arm.name: arm.methods for arm in arms}, model_name)
    return made


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


def _check_lists(seeds: Sequence[int], axes: Sequence[str]) -> None:
    """Demand lists of different seeds and of known axes."""
    if isinstance(seeds, str | int) or not seeds or len(set(seeds)) < len(seeds):
        raise ParameterError(f"treat: seeds must be one or more different numbers; got {seeds!r}.")
    if isinstance(axes, str) or not axes or (unknown := [name for name in axes if name not in KNOWN]):
        near = did_you_mean(unknown[0], KNOWN) if not isinstance(axes, str) and axes else "Write a list of names."
        raise ParameterError(f"treat: axes must be names of axes; got {axes!r}; {near}")


def _material(
    wish: Wish, data: ArrayData, test: ArrayData, val_data: ArrayData | None, masks: MaskSource | None
) -> ArrayData:
    """Check that the images are there that a treatment needs, and give the training images with their background."""
    for name, other in (("test", test), ("val_data", val_data)):
        if other is not None and (other.shape != data.shape or other.class_names != data.class_names):
            raise DataError(f"treat: {name} must have the size and the classes of the training images.")
    if twice := shared_images(data, test):
        raise DataError(
            f"treat: test must share no image with the training images; {twice} of {len(test)} are there too."
        )
    if wish.how == "rift" and val_data is None:
        raise ParameterError("treat: rift chooses by held-out images of the training part: pass val_data.")
    if masks is not None:
        if not wish.masks:
            raise ParameterError(f"treat: {wish.how} uses no masks. Leave them out, or treat by space or both.")
        return with_background(data, masks)
    if wish.masks and data.background is None:
        raise ParameterError(
            f"treat: {wish.how} needs to know the objects in the training images: pass masks (--masks)."
        )
    return data


def _notes(wish: Wish, data: ArrayData) -> list[str]:
    """Say how much of the training images is background, where that matters."""
    if not wish.masks or data.background is None:
        return []
    known = (data.background > 0).flatten(1).any(1)
    share = float((data.background[known] > 0).float().mean()) if known.any() else 0.0
    return [
        f"Objects are known in {int(known.sum())} of {len(data)} training images; {share:.0%} of these is background."
    ]


def _student_of(file: Path, patient: nn.Module) -> Method:
    """Make the method by which a student learns from the patient, which its run folders name as a file if they can."""
    from hardy.methods import Distillation

    external = io.read(file).source.builder == "external"
    return Distillation(teacher=patient if external else str(file))


def _question(
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


def _settle(folder: Path, question: Mapping[str, Any]) -> None:
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


def _publish(made: Treatment, arms: Sequence[str], methods: Mapping[str, Sequence[Method]], name: str) -> None:
    """Write the table and the page."""
    write_json(made.folder / TABLE, made.to_json())
    order = [CONTROL, *(arm for arm in arms if arm != CONTROL)]
    places = [(arm, seed, made.folder / arm / f"seed{seed}") for seed in made.seeds for arm in order]
    places.append((BEFORE, made.seeds[0], made.folder / BEFORE))  # one net, whatever the seeds
    cells = [
        GridCell(name=place.relative_to(made.folder).as_posix(), arm=arm, net=name, seed=seed, folder=place)
        for arm, seed, place in places
    ]
    described = {arm: tuple(map(repr, methods.get(arm, ()))) for arm in (*arms, BEFORE)}
    grid_report(
        cells,
        made.folder / PAGE,
        arms=described,
        baseline=CONTROL,
        budget="epochs",
        title=f"Did {made.how} make {name} better?",
        lead=made.verdict,
        single=(BEFORE,),
    )
