"""``hardy.treat``: train the treatment and its control from the same patient, and say whether the patient is better."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from hardy import io, surgery
from hardy.attacks.guards import check_eval
from hardy.data import ArrayData, MaskSource, with_background
from hardy.diagnosis.record import Diagnosis
from hardy.errors import DataError, ParameterError, did_you_mean
from hardy.evaluation.axes import AXES as KNOWN
from hardy.evaluation.suite import Suite, check_suite
from hardy.methods import Method, ModelDoctor
from hardy.reporting import GridCell, grid_report
from hardy.safefile import write_json
from hardy.threats import Threat
from hardy.training import TrainRecipe
from hardy.training.build import check_size
from hardy.training.folder import RunFolder
from hardy.treatment.arms import CONTROL, NOISE, Wish, arms_of, fresh, spec_of
from hardy.treatment.question import BEFORE, PATIENT, RELEVANCE, question_of, settle
from hardy.treatment.record import Treatment
from hardy.treatment.relevance import TOP, measure_relevance
from hardy.treatment.rift import shared_images
from hardy.treatment.verdict import gains
from hardy.treatment.work import Exam, Work

__all__ = ["AXES", "BEFORE", "PAGE", "TABLE", "treat"]

log = logging.getLogger(__name__)
PAGE, TABLE = "report.html", "treatment.json"
AXES = ("clean", "calibration", "noise", "white_box")  # what is measured unless the caller says


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
    question = question_of(wish, exam, patient, data, val_data, options=options, augment=augment, top=top)
    question["relevance"] = "measured" if diagnosis is None else f"of a diagnosis of {diagnosis.map_data}"
    question["student"] = "" if student is None else getattr(student, "__qualname__", "given")
    settle(folder, question)
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
