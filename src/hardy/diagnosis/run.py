"""One diagnosis: the input checked, the parts measured, the record."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from hardy.attacks.guards import check_eval, check_labels, check_precision, check_range
from hardy.attacks.passes import sealed_rng
from hardy.attacks.precision import full_precision
from hardy.diagnosis import attention, background, channels, criticality, isolation, predictions, separability
from hardy.diagnosis.case import Case, Sign
from hardy.diagnosis.correlation import conv_sites
from hardy.diagnosis.grad_cam import available
from hardy.diagnosis.record import Diagnosis, Part
from hardy.environment import environment
from hardy.errors import DataError, HardyError, ParameterError, ShapeError, did_you_mean
from hardy.evaluation.fingerprint import weights_digest
from hardy.evaluation.inputs import Batches, device_of, identities, images
from hardy.threats import Threat

__all__ = ["DEFAULT", "NEEDS_MASKS", "PARTS", "diagnose"]

PARTS: dict[str, Callable[[Case], Part]] = {
    "channels": channels.measure,
    "predictions": predictions.measure,
    "isolation": isolation.measure,
    "attention": attention.measure,
    "background": background.measure,
    "criticality": criticality.measure,
    "separability": separability.measure,
}
DEFAULT = ("channels", "predictions")
NEEDS_MASKS = ("background",)
COMPARED = 16  # images that are asked about twice


def diagnose(
    model: nn.Module,
    x: Tensor | Batches,
    y: Tensor | None = None,
    *,
    parts: Literal["default", "all"] | Sequence[str] = "default",
    layers: Sequence[str] | None = None,
    class_names: Sequence[str] = (),
    masks: Bool[Tensor, "n h w"] | None = None,
    map_x: Tensor | Batches | None = None,
    map_y: Tensor | None = None,
    map_rows: Int[Tensor, "m"] | None = None,
    top: int = 100,
    sign: Sign = "absolute",
    draws: int = 0,
    sigma: float = 1.0,
    joint: bool = False,
    threat: Threat = Threat("linf", 8 / 255),  # noqa: B008  (frozen)
    rows: Int[Tensor, "n"] | None = None,
    seed: int = 0,
    batch_size: int = 128,
    model_name: str = "model",
    data_name: str = "data",
    map_data_name: str = "",
    command: str = "",
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Diagnosis:
    """Find out what is wrong with a trained CNN: what it confuses, and which channels and layers that comes from.

    The model is left as it was: weights, buffers, gradients, modes, hooks; so is the global random state.

    Args:
        model: The plain net: returns logits (n, k) for pixels in [0, 1]; in eval mode, which is not switched here.
        x: Images (n, c, h, w), float in [0, 1], which it was not trained on; or a loader of (x, y) batches.
        y: True classes (n,); None with a loader.
        parts: "default" (channels and predictions), "all", or names of ``hardy.diagnosis.PARTS``.
        layers: Names or globs of layers to look at; None: all convolutions.
        class_names: Names of all classes; default "0", "1", ...
        masks: True where the object is, in the size of the images; all False in an image whose object is not known.
        map_x: Images behind the maps of class and channel, such as training images, which the paper takes; or a loader;
            None: ``x``.
        map_y: Their classes; None with a loader.
        map_rows: Identity of each of them.
        top: Images of each class behind its map, at most: those right of which the net is surest.
        sign: "absolute" gradients (the paper), or their "positive" parts (the code of 2022).
        draws: Draws of noise of the maps, J of Eq. 4, which takes J passes for each layer; 0: Eq. 3, one for all.
        sigma: Standard deviation of that noise.
        joint: Noise on all layers at once, J passes in all: a deviation from the paper.
        threat: Norm and budget of the parts that attack.
        rows: Identity of each image (n,), such as its place in the data set; default: its place in ``x``.
        seed: Seed of everything random.
        batch_size: Images per pass, at least 1; does not change results but for rounding.
        model_name: For the record.
        data_name: For the record.
        map_data_name: For the record.
        command: For the record.
        on_progress: Called with the name of a part, how many are done, and of how many.

    Returns:
        The record. With "all", a part that lacks its inputs, or cannot work on this net, is named in its notes.

    Raises:
        ParameterError: train mode, an unknown part or layer, a part that lacks its inputs, a number out of range, the
            wrong number of class names.
        LayerNotFoundError, CallError: a layer that is not there, or not called.
        AttachError: the model is compiled or wrapped.
        DataError: pixels outside [0, 1], labels outside the outputs, no images, weights in half precision.
        ShapeError: images, labels, masks or logits of the wrong shape.
    """
    began = time.perf_counter()
    names, notes = _part_names(parts, masks)
    if not isinstance(threat, Threat):
        raise ParameterError(f'diagnose: threat must be a Threat, such as Threat("linf", 8 / 255); got {threat!r}.')
    _check_numbers(top, draws, sigma, sign, batch_size)
    check_eval(model, "diagnose")
    check_precision(model, "diagnose")
    device = device_of(model)
    x, y = images(x, y, device, who="diagnose")
    rows = identities(rows, y, who="diagnose")
    own = map_x is None
    if own and (map_y is not None or map_rows is not None):
        raise ParameterError("diagnose: map_y and map_rows belong to map_x; got no map_x. Pass it, or leave them out.")
    others = (x, y) if map_x is None else images(map_x, map_y, device, who="diagnose (map_x)")
    num_classes, fixed = _answers(model, x, y, others, seed)
    if class_names and len(class_names) != num_classes:
        raise ParameterError(f"diagnose: class_names must name all {num_classes} outputs; got {len(class_names)}.")
    case = Case(
        model=model,
        x=x,
        y=y,
        rows=rows,
        class_names=tuple(class_names) or tuple(str(i) for i in range(num_classes)),
        num_classes=num_classes,
        layers=conv_sites(model, x, layers),
        masks=None if masks is None else _checked_masks(masks, x),
        map_x=None if own else others[0],
        map_y=None if own else others[1],
        map_rows=None if own else identities(map_rows, others[1], who="diagnose (map_x)"),
        threat=threat,
        seed=seed,
        batch_size=batch_size,
        top=top,
        sign=sign,
        draws=draws,
        sigma=float(sigma),
        joint=joint,
    )
    if not fixed:
        notes = (*notes, "The net answers at random: numbers are of single answers.")
    measured, lacking = _measure(case, names, on_progress, lenient=parts == "all")
    return Diagnosis(
        model=model_name,
        class_names=case.class_names,
        data=data_name,
        n=len(x),
        seed=seed,
        layers=case.layers,
        parts=measured,
        map_data="" if own else map_data_name or "other images",
        map_n=0 if own else len(others[1]),
        options={
            "top": top,
            "sign": sign,
            "draws": draws,
            "sigma": case.sigma,
            "joint": joint,
            "threat": str(threat),
            "weights": weights_digest(model),
        },
        notes=(*notes, *lacking),
        command=command,
        environment=environment(device),
        seconds=time.perf_counter() - began,
    )


def _measure(
    case: Case, names: Sequence[str], on_progress: Callable[[str, int, int], None] | None, *, lenient: bool
) -> tuple[tuple[Part, ...], tuple[str, ...]]:
    """Measure the parts, and say which cannot be; what a net draws at random does not depend on which are asked for."""
    with sealed_rng(case.x.device, case.seed):
        case.context()
    made, lacking = [], []
    for done, name in enumerate(names):
        if on_progress is not None:
            on_progress(name, done, len(names))
        began = time.perf_counter()
        try:
            with sealed_rng(case.x.device, case.seed):
                part = PARTS[name](case)
        except HardyError as error:
            if not lenient or name in DEFAULT:
                raise
            lacking.append(f"Not measured: {name}. {error}")
        else:
            made.append(dataclasses.replace(part, seconds=time.perf_counter() - began))
    return tuple(made), tuple(lacking)


def _part_names(parts: str | Sequence[str], masks: Tensor | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give the parts in the order of the table, and say which of "all" lack their inputs.

    Raises:
        ParameterError: an unknown part, none, or one that lacks its inputs.
    """
    if isinstance(parts, str) and parts not in {"default", "all"}:
        raise ParameterError(f'diagnose: parts must be "default", "all" or a list of names; got {parts!r}.')
    asked = DEFAULT if parts == "default" else tuple(PARTS) if parts == "all" else tuple(parts)
    for name in asked:
        if name not in PARTS:
            raise ParameterError(f"diagnose: unknown part {name!r}; {did_you_mean(name, PARTS)}")
    if not asked:
        raise ParameterError("diagnose: parts must name at least one part; got none. Leave it out for the default.")
    lacking = {name: "masks of the objects: pass masks" for name in NEEDS_MASKS if masks is None}
    if not available():
        lacking["attention"] = "the package captum: pip install 'hardy[attention]'"
    lacking = {name: what for name, what in lacking.items() if name in asked}
    if lacking and parts != "all":
        raise ParameterError("diagnose: " + "; ".join(f"{name} needs {what}" for name, what in lacking.items()) + ".")
    notes = tuple(f"Not measured: {name}, as it needs {what}." for name, what in lacking.items())
    return tuple(name for name in PARTS if name in asked and name not in lacking), notes


def _check_numbers(top: int, draws: int, sigma: float, sign: str, batch_size: int) -> None:
    for name, value, least in (("top", top, 1), ("draws", draws, 0), ("batch_size", batch_size, 1)):
        if value < least:
            raise ParameterError(f"diagnose: {name} must be at least {least}; got {value}.")
    if not 0 <= sigma < float("inf"):
        raise ParameterError(f"diagnose: sigma must be at least 0; got {sigma}.")
    if sign not in get_args(Sign):
        raise ParameterError(f"diagnose: sign must be one of {', '.join(get_args(Sign))}; got {sign!r}.")


def _answers(model: nn.Module, x: Tensor, y: Tensor, others: tuple[Tensor, Tensor], seed: int) -> tuple[int, bool]:
    """Ask the net about a few images; give its number of outputs, and whether it answers the same twice."""
    check_range(x, "diagnose")
    check_range(others[0], "diagnose (map_x)")
    if others[0].shape[1:] != x.shape[1:]:
        raise ShapeError(
            f"diagnose: map_x must be images like x, {tuple(x.shape[1:])}; got {tuple(others[0].shape[1:])}. Resize."
        )
    few = x[:COMPARED]
    with torch.no_grad(), full_precision(x.device), sealed_rng(x.device, seed):
        answers = [model(few.clone()) for _ in range(2)]
    z = answers[0]
    if not isinstance(z, Tensor) or z.ndim != 2 or len(z) != len(few):
        got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ShapeError(f"diagnose: model(x) must return logits (n, k), n = {len(few)}; got {got}. Wrap it.")
    check_labels(z, y, "diagnose")
    check_labels(z, others[1], "diagnose (map_y)")
    same = torch.equal(z.nan_to_num(0), answers[1].nan_to_num(0)) or torch.allclose(z, answers[1], equal_nan=True)
    return z.shape[1], same


def _checked_masks(masks: Tensor, x: Tensor) -> Tensor:
    """Demand a mask per image, in its size, that shows some object."""
    if masks.dtype != torch.bool or masks.shape != (len(x), *x.shape[2:]):
        raise ShapeError(
            f"diagnose: masks must be bool {(len(x), *x.shape[2:])}, True on the object; got {masks.dtype} "
            f"{tuple(masks.shape)}. Resize them to the images."
        )
    if not masks.any():
        raise DataError("diagnose: masks must be True where the object is; got False everywhere. Invert them?")
    return masks.to(x.device)
