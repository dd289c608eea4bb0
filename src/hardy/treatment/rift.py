"""RiFT: fine-tune the layer that a net needs least on clean images, and go as far as robustness allows.

Zhu, Hu, Wang, Xie, Yang. "Improving generalization of adversarial training via robust critical fine-tuning".
ICCV 2023, https://arxiv.org/abs/2308.02533. The layer of least criticality (:mod:`hardy.diagnosis.criticality`) is
trained alone; then its weights are interpolated, ``theta(alpha) = (1 - alpha) theta_0 + alpha theta_FT``.

What the released code decides on test images is decided here on images that were held out of the training part: the
layer, and alpha. Further deviations: momentum is Nesterov's; the weights of the last epoch are taken, not the best;
frozen norms keep their statistics, so that alpha = 0 is the patient to the last bit.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from hardy import io, surgery
from hardy.attacks.guards import check_eval
from hardy.data import ArrayData
from hardy.environment import environment
from hardy.errors import DataError, ParameterError, TrainingError
from hardy.perturbed import LAYERS
from hardy.records import Point, point
from hardy.safefile import check_writable, make_folder, write_json
from hardy.sites import BOX, resolve
from hardy.stats import paired_bootstrap
from hardy.threats import Threat
from hardy.training import Progress, TrainRecipe, train
from hardy.training.build import Data
from hardy.treatment.line import Judge, Line, choose

__all__ = ["ALPHAS", "Rift", "rift"]

log = logging.getLogger(__name__)

FORMAT = 1  # of rift.json
ALPHAS = tuple(i / 10 for i in range(11))
DONE = "rift.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Rift:
    """What the treatment found and made.

    Attributes:
        model: The treated net in eval mode, on the CPU; at alpha 0 the patient to the last bit.
        fine_tuned: The net at alpha 1.
        layer: The layer that was trained.
        criticality: Loss rise of every layer in nats, by name; empty if the layer was given.
        alphas: The points between patient (0) and fine-tuned net (1).
        clean: Accuracy on the held-out images at each alpha.
        robust: Accuracy on them under PGD.
        alpha: The one that was chosen.
        gain: Clean accuracy there less that of the patient, and its 95 % paired interval over images. The choice was
            made on the same images, so it is too good: measure the gain on others.
        folder: ``rift.json``, ``model.safetensors`` and the run folder ``training``.
        notes: What to know about the choice.
        passes: "forward" and "backward" passes beside those of the training, summed over images.
    """

    model: nn.Module
    fine_tuned: nn.Module
    layer: str
    criticality: dict[str, float]
    alphas: tuple[float, ...]
    clean: tuple[Point, ...]
    robust: tuple[Point, ...]
    alpha: float
    gain: tuple[float, float, float]
    folder: Path
    notes: tuple[str, ...] = ()
    passes: dict[str, int] = field(default_factory=dict)


def rift(
    model: nn.Module,
    data: Data,
    *,
    held_out: Data,
    out: str | Path,
    layer: str | None = None,
    epochs: int = 10,
    lr: float = 0.001,
    options: TrainRecipe | None = None,
    augment: tuple[str, ...] = ("crop", "flip"),
    threat: Threat | None = None,
    steps: int = 10,
    limit: int | None = 1000,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 128,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Rift:
    """Treat a copy of a net; the patient is left as it is.

    Args:
        model: The patient, in eval mode; methods that live at test time stay.
        data: Training images.
        held_out: Images of the training part that are not in ``data``, and at best none that the patient was trained
            on. The layer and alpha are chosen on them.
        out: A folder without an earlier treatment unless ``resume``.
        layer: The convolution or linear layer to train; None: the least critical one on at most 512 of the held-out
            images, attacked.
        epochs: Of the fine-tuning.
        lr: Its learning rate, a tenth of it in the second half.
        options: How to train, instead of SGD with momentum 0.9, weight decay 5e-4, ``epochs`` and ``lr``; what it
            freezes is replaced.
        augment: As for ``hardy.train``.
        threat: Whose robustness must not suffer; None: linf 8/255.
        steps: Of PGD, which measures it.
        limit: Most held-out images for the choice of alpha; None: all.
        seed: Of everything random.
        device: "auto", "cpu", "cuda".
        batch_size: Images per pass of the measurements.
        resume: Go on with the fine-tuning in ``out``; what is measured is measured again.
        on_progress: As for ``hardy.train``.

    Raises:
        ParameterError: train mode, a layer without parameters, or a bad number.
        LayerNotFoundError: no such layer.
        DataError: held-out images among the training images, or files cannot be written.
        TrainingError: ``out`` holds a treatment.
    """
    _check(model, data, held_out, Path(out), resume=resume)
    options = options or TrainRecipe(epochs=epochs, lr=lr, schedule="step", milestones=(0.5,))
    folder, threat = Path(out), threat or Threat("linf", 8 / 255)
    layer = None if layer is None else _one_layer(model, layer)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    patient = surgery.strip(model).to(device)
    judge = Judge.of(held_out.limit(limit, seed=seed), threat, steps=steps, seed=seed, batch_size=batch_size).to(device)
    passes, criticality = {"forward": 0, "backward": 0}, dict[str, float]()
    if layer is None:
        found = judge.criticality(patient)
        layer, criticality, passes = found.least, found.values, found.passes
    log.info("rift: %s is fine-tuned alone", layer)
    tuned = copy.deepcopy(patient)
    for parameter in getattr(tuned, BOX, nn.Module()).parameters():
        parameter.requires_grad_(False)  # what live methods have learned stays
    train(
        tuned,
        data,
        out=folder / "training",
        options=replace(options, freeze=(f"all_but:{layer}",), freeze_epochs=None),
        augment=augment,
        seed=seed,
        device=device,
        resume=resume and (folder / "training" / "recipe.toml").exists(),
        on_progress=on_progress,
    )
    line = Line(patient, tuned.to(device), layer)
    return _chosen(line, judge, criticality, passes, folder, data=data.name)


def _chosen(
    line: Line, judge: Judge, criticality: dict[str, float], passes: dict[str, int], folder: Path, *, data: str
) -> Rift:
    """Measure the line, choose, and write the files; ``rift.json`` comes last and says that all is done."""
    clean, robust, right = [], [], []
    for alpha in ALPHAS:
        seen = judge.measure(line.at(alpha))
        right.append(seen.clean_correct.cpu().numpy())
        clean.append(point(f"alpha {alpha:g}", right[-1], level=alpha, series="clean", passes={}))
        held = (~seen.success).cpu().numpy()
        robust.append(point(f"alpha {alpha:g}", held, level=alpha, series="robust", passes=seen.passes))
        passes = {name: count + seen.passes[name] for name, count in passes.items()}
    best = choose([p.accuracy for p in clean], [p.accuracy for p in robust])
    made = Rift(
        model=line.at(ALPHAS[best]).cpu(),
        fine_tuned=line.at(1.0).cpu(),
        layer=line.layer,
        criticality=criticality,
        alphas=ALPHAS,
        clean=tuple(clean),
        robust=tuple(robust),
        alpha=ALPHAS[best],
        gain=paired_bootstrap(right[best], right[0]),
        folder=folder,
        notes=_notes(best, robust, judge.threat),
        passes=passes,
    )
    _write(made, judge, data=data)
    return made


def _notes(best: int, robust: Sequence[Point], threat: Threat) -> tuple[str, ...]:
    notes = ["layer and alpha were chosen on the images that the gain is of: measure it on others"]
    if best == 0:
        notes.append("no alpha above 0 has a higher clean accuracy at no loss of robustness: the patient stays")
    if robust[0].accuracy == 0:
        notes.append(
            f"the patient is right on no image at {threat}, so that nothing was to be lost: choose a smaller budget"
        )
    return tuple(notes)


def _write(made: Rift, judge: Judge, *, data: str) -> None:
    facts = {"treatment": f"rift: {made.layer}, alpha {made.alpha:g}", "data": data, "seed": str(judge.seed)}
    make_folder(made.folder)
    io.save(made.model, made.folder / "model.safetensors", provenance=facts)
    values = {
        "format": FORMAT,
        "layer": made.layer,
        "alpha": made.alpha,
        "gain": dict(zip(("value", "low", "high"), made.gain, strict=True)),
        "criticality": made.criticality,
        "curve": [
            {"alpha": alpha, "clean": asdict(c), "robust": asdict(r)}
            for alpha, c, r in zip(made.alphas, made.clean, made.robust, strict=True)
        ],
        "threat": {"norm": judge.threat.norm, "eps": judge.threat.eps, "steps": judge.steps},
        "data": data,
        "held_out_images": len(judge.y),
        "seed": judge.seed,
        "notes": list(made.notes),
        "passes": made.passes,
        "environment": environment(judge.x.device),
    }
    write_json(made.folder / DONE, values)


def _check(model: nn.Module, data: Data, held_out: Data, folder: Path, *, resume: bool) -> None:
    """Find out what cannot work before any work."""
    check_eval(model, "rift")
    if held_out.shape != data.shape or held_out.class_names != data.class_names:
        raise DataError(
            f"rift: held_out must have the size and classes of the training images; got {held_out.shape} and "
            f"{held_out.num_classes} classes for {data.shape} and {data.num_classes}."
        )
    if isinstance(data, ArrayData) and isinstance(held_out, ArrayData) and (twice := shared_images(data, held_out)):
        raise DataError(
            f"rift: held_out must share no image with the training images; {twice} of {len(held_out)} are there too. "
            "Load the parts train and val of the same data."
        )
    if (folder / DONE).exists() and not resume:
        raise TrainingError(f"{folder}: already holds a treatment. Choose another folder, or resume.")
    check_writable(folder / DONE)


def shared_images(data: ArrayData, held_out: ArrayData) -> int:
    """Count the held-out images that have the identity and the pixels of a training image."""
    place = {identity: i for i, identity in enumerate(data.index.tolist())}
    pairs = [(i, place[identity]) for i, identity in enumerate(held_out.index.tolist()) if identity in place]
    return sum(bool(torch.equal(held_out.x[i], data.x[j])) for i, j in pairs)


def _one_layer(model: nn.Module, site: str) -> str:
    """Find the layer that a site means.

    Raises:
        ParameterError: several, or no convolution or linear layer.
    """
    names = list(resolve(model, [site]))
    if len(names) != 1 or {"#", "@"} & {*site} or not isinstance(model.get_submodule(names[0]), LAYERS):
        raise ParameterError(
            f"rift: layer must be one convolution or linear layer; {site!r} is {', '.join(names[:3])}. "
            "`hardy layers` lists the modules of a net."
        )
    return names[0]
