"""What ``hardy evaluate`` gives to axes that need more than the model and its images."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from hardy.data import ArrayData, load_data
from hardy.data.cue_conflict import CueConflict
from hardy.errors import ConfigError, DataError, HardyError, did_you_mean
from hardy.evaluation import Budget, Material
from hardy.evaluation.budget import SEVERITIES
from hardy.threats import parse_budget

if TYPE_CHECKING:
    from hardy.results import Result
    from hardy.training import Recipe

__all__ = ["budget_of", "material_of", "reference_of"]

TEXTS = ("corruptions",)  # settings whose empty default does not tell that they are names
KINDS: Mapping[object, str] = {int: "a whole number", str: "a name"}
TRAIN = 2000  # training images for the scores of ``ood``
ALEXNET = "alexnet"


def material_of(
    images: ArrayData,
    recipe: "Recipe | None",
    *,
    data: str | None,
    cue_conflict: str | None = None,
    corrupted: str | None = None,
    reference: str | None = None,
    other: Sequence[str] = (),
    device: str = "cpu",
    download: bool = False,
    skip_bad: bool = False,
) -> Material:
    """Open what the options name.

    Args:
        images: The evaluated images, whose size and channels the others get.
        recipe: Of the run, if the model is one.
        data: ``--data``, if given: which training images belong to the evaluated ones.
        cue_conflict: ``shapes[:...]``, a ``.npz`` file or a folder.
        corrupted: ``cifar-c:DIR`` or ``imagenet-c:DIR``.
        reference: ``alexnet``, or a result (its file or run folder) with the axis ``corruptions``.
        other: Further data, as ``--data`` names them.
        device: Where to put images.
        download: Let torchvision fetch published data that are not there.
        skip_bad: Leave out images of a folder that cannot be read.

    Raises:
        HardyError: not there, damaged, or not in the format.
    """
    from hardy.data.corrupted import corrupted as open_corrupted

    size = images.shape[-1]
    load = partial(load_data, size=size, download=download, skip_bad=skip_bad)
    errors, name = reference_of(reference) if reference else (None, "")
    return Material(
        cue_conflict=None if cue_conflict is None else _cues(cue_conflict, images, device),
        corrupted=None if corrupted is None else open_corrupted(corrupted, size=size),
        reference_errors=errors,
        reference_name=name,
        train=_train(images, recipe, data, device, load) if other else None,
        other={spec: _channels(load(spec, limit=len(images)).images(), images).to(device) for spec in other},
    )


def reference_of(text: str) -> tuple[Mapping[str, float], str]:
    """Give errors per corruption, and "clean", of the net that the mCE is relative to, and what it is called.

    Raises:
        ConfigError: a result without the axis ``corruptions``.
        DataError: the result cannot be read.
    """
    if text == ALEXNET:
        from hardy.corruptions import ALEXNET_ERRORS

        return ALEXNET_ERRORS, "AlexNet, as published for ImageNet-C"
    from hardy.results import Result

    path = Path(text)
    result = Result.read(path / "result.json" if path.is_dir() else path)
    return _errors(result, text), result.model


def budget_of(texts: Sequence[str], *, quick: bool = False) -> Budget:
    """Read ``NAME=VALUE`` settings; several values are divided by commas. The rest is as usual, or ``quick``.

    Raises:
        ConfigError: no such setting, or a value that it cannot have.
        ParameterError: a value out of range.
    """
    kinds = {field.name: field for field in fields(Budget)}
    given: dict[str, object] = {}
    for text in texts:
        name, sep, value = text.partition("=")
        if not sep or name not in kinds:
            raise ConfigError(f"--budget: must be NAME=VALUE; got {text!r}; {did_you_mean(name, kinds)}")
        default = kinds[name].default
        parts = [part.strip() for part in value.split(",") if part.strip()] if isinstance(default, tuple) else [value]
        made = [_value(name, part, default) for part in parts]
        given[name] = tuple(made) if isinstance(default, tuple) else made[0]
    return replace(Budget.quick() if quick else Budget(), **given)  # type: ignore[arg-type]  # of the kind of its default


def _value(name: str, text: str, default: object) -> object:
    """Read one value of the kind of the default."""
    one = default[0] if isinstance(default, tuple) and default else default
    kind = str if isinstance(one, str) or name in TEXTS else type(one) if isinstance(one, int) else parse_budget
    try:
        return kind(text)
    except (ValueError, HardyError) as error:
        raise ConfigError(f"--budget: {name} must be {KINDS.get(kind, 'numbers')}; got {text!r}.") from error


def _errors(result: "Result", text: str) -> dict[str, float]:
    axes = {axis.name: axis for axis in result.axes}
    if "corruptions" not in axes:
        raise ConfigError(f"--mce-reference: {text} has no axis corruptions. Evaluate that net with it first.")
    found: dict[str, list[float]] = defaultdict(list)
    for point in axes["corruptions"].points:
        found[point.series].append(1 - point.accuracy)
    if few := [name for name, values in found.items() if len(values) != len(SEVERITIES)]:
        raise ConfigError(
            f"--mce-reference: {text} must have all five severities; got {len(found[few[0]])} of {few[0]}. Evaluate "
            "that net with --budget severities=1,2,3,4,5."
        )
    errors = {name: sum(values) / len(values) for name, values in found.items()}
    return errors | ({"clean": 1 - result.accuracy("clean")} if "clean" in axes else {})


def _cues(text: str, images: ArrayData, device: str) -> CueConflict:
    from hardy.data.cue_conflict import cue_conflict, shapes_conflict

    size = images.shape[-1]
    if text.partition(":")[0] == "shapes":
        found = shapes_conflict(text, size=size)
    else:
        found = cue_conflict(text, class_names=images.class_names, size=size)
    x = _channels(found.x, images)
    return replace(found, x=x.to(device), shape=found.shape.to(device), texture=found.texture.to(device))


def _channels(x: Tensor, images: ArrayData) -> Tensor:
    """Repeat gray to colour, or average colour to gray; fit the height to images that are no squares."""
    c, h, w = images.shape
    x = x if x.shape[1] == c else x.mean(dim=1, keepdim=True).expand(-1, c, -1, -1)
    return x if x.shape[2:] == (h, w) else F.interpolate(x, size=(h, w), mode="bilinear", antialias=True)


def _train(
    images: ArrayData, recipe: "Recipe | None", data: str | None, device: str, load: Callable[..., ArrayData]
) -> tuple[Tensor, Tensor] | None:
    """Load training images of the same data; None where they have none."""
    name = data or (recipe.data.name if recipe is not None else None)
    if name is None or name == "external":
        return None
    own = recipe is not None and name == recipe.data.name
    seed, fraction = (recipe.seed, recipe.data.val_fraction) if own and recipe is not None else (0, 0.1)
    try:
        found = load(name, split="train", limit=TRAIN, seed=seed, val_fraction=fraction)
    except DataError:
        return None
    return _channels(found.images(), images).to(device), found.y.to(device)
