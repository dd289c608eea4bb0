"""What a verb works on: a run folder, a checkpoint or a named net, with the images that belong to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import nn

from hardy import io
from hardy.data import ArrayData, Split, load_data
from hardy.errors import ConfigError, did_you_mean
from hardy.models import BUILTIN, Arg, Classifier, known, list_models
from hardy.training import Recipe, RunFolder, load_recipe

__all__ = ["Target", "open_data", "open_target"]


@dataclass(frozen=True)
class Target:
    """A model in eval mode on a device.

    Attributes:
        name: What to call it.
        model: The model.
        folder: Its run folder, if it came from one.
        recipe: Its recipe, likewise.
        methods: ``repr`` of the methods it was trained with.
    """

    name: str
    model: nn.Module
    folder: RunFolder | None
    recipe: Recipe | None
    methods: tuple[str, ...]


def open_data(
    spec: str | None,
    recipe: Recipe | None,
    *,
    split: str,
    limit: int | None,
    size: int | None,
    seed: int,
    model: str | None = None,
) -> ArrayData:
    """Load images by ``--data``, or those of the run's recipe.

    Train and validation images of a run are divided by the seed of its recipe, as in its training. Which images a
    ``limit`` takes depends on ``seed`` alone, so that runs of different seeds are evaluated on the same ones.

    Raises:
        ConfigError: neither says which images.
        DataError: they cannot be read.
    """
    d = recipe.data if recipe is not None else None
    if spec is None and d is None and model is not None:
        _refuse_folder(model)
        if ".py:" not in model and not model.endswith(io.SUFFIX):
            known_or_error(model)
    if spec is None and (d is None or d.name == "external"):
        raise ConfigError("--data: must be given, as the model does not say which images; for example --data digits.")
    name = spec or (d.name if d else "")
    size = size if size is not None else (d.size if d else None)
    if recipe is not None and name == recipe.data.name and split != "test":
        whole = load_data(
            name, split=cast("Split", split), size=size, seed=recipe.seed, val_fraction=recipe.data.val_fraction
        )
        return whole.limit(limit, seed=seed)
    return load_data(name, split=cast("Split", split), limit=limit, size=size, seed=seed)


def run_of(text: str) -> RunFolder | None:
    """Give the run folder that ``text`` names, if it does."""
    folder = RunFolder(text)
    return folder if folder.model_file.is_file() else None


def recipe_of(text: str) -> Recipe | None:
    """Read the recipe of the run folder that ``text`` names, if it does."""
    folder = run_of(text)
    return load_recipe(folder.recipe_file) if folder is not None and folder.recipe_file.is_file() else None


def open_target(text: str, data: ArrayData, *, device: str, weights: str | None = None) -> Target:
    """Open a run folder, a checkpoint, or a named net with weights, for these images.

    Args:
        text: What to open.
        data: The images it is for.
        device: Where to put it.
        weights: For a named net: "pretrained" or a weights file. A net without trained weights is an error.

    Raises:
        HardyError: no such thing, no weights, or it does not fit the images.
    """
    folder = run_of(text)
    if folder is not None:
        recipe = recipe_of(text)
        header = io.read(folder.model_file)
        own = None
        if header.source.builder == "external" and recipe is not None:
            own = _build(recipe.model.name, data, args=recipe.model.args)
        model = io.load(folder.model_file, model=own)
        return _check(Target(folder.path.resolve().name, model.to(device), folder, recipe, header.trained_with), data)
    _refuse_folder(text)
    if text.endswith(io.SUFFIX):
        return _check(Target(Path(text).stem, io.load(text).to(device), None, None, io.read(text).trained_with), data)
    factory = ".py:" in text  # code of the user's own brings its own weights
    if weights is None and not factory:
        known_or_error(text)
        raise ConfigError(
            f"{text}: a net without trained weights. Give a run folder, a checkpoint, or --weights pretrained|FILE."
        )
    model = _build(text, data, pretrained=True if weights == "pretrained" else (weights or False))
    return _check(Target(text, model.eval().to(device), None, None, ()), data)


def known_or_error(name: str) -> None:
    """Raise, with the nearest name, unless a net of that name can be built."""
    builder, _, short = name.rpartition(":")
    if not known(builder or "builtin", short):
        near = did_you_mean(name, list_models("*") if builder else [*BUILTIN, "timm:NAME", "torchvision:NAME"])
        raise ConfigError(f"{name}: no such run folder, file or net; {near}")


def _build(
    name: str, data: ArrayData, *, args: Mapping[str, Arg] | None = None, pretrained: bool | str = False
) -> nn.Module:
    return io.load_model(
        name, num_classes=len(data.class_names), in_channels=data.x.shape[1], pretrained=pretrained, args=args
    )


def _refuse_folder(text: str) -> None:
    """Say what a path is that holds no finished run."""
    path = Path(text)
    if (path / "recipe.toml").is_file():
        raise ConfigError(
            f"{text}: its training was stopped. Go on: hardy train {text}/recipe.toml --out {text} --resume"
        )
    if path.exists() and not text.endswith(io.SUFFIX) and ".py:" not in text:
        raise ConfigError(f"{text}: neither a run folder nor a {io.SUFFIX} checkpoint.")


def _check(target: Target, data: ArrayData) -> Target:
    model = target.model
    if isinstance(model, Classifier):
        s = model.source
        if s.in_channels != data.x.shape[1] or s.num_classes < len(data.class_names):
            raise ConfigError(
                f"{target.name}: takes {s.in_channels} channels and {s.num_classes} classes; the images have "
                f"{data.x.shape[1]} and {len(data.class_names)}. Choose other --data."
            )
    return target
