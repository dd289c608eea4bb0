"""What a verb works on: a run folder, a checkpoint or a named net, with the images that belong to it."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import nn

from hardy import io
from hardy.data import ArrayData, Split, load_data
from hardy.errors import ConfigError
from hardy.models import Classifier
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
    spec: str | None, recipe: Recipe | None, *, split: str, limit: int | None, size: int | None, seed: int
) -> ArrayData:
    """Load images by ``--data``, or those of the run's recipe.

    Train and validation images of a run are divided by the seed of its recipe, as in its training. Which images a
    ``limit`` takes depends on ``seed`` alone, so that runs of different seeds are evaluated on the same ones.

    Raises:
        ConfigError: neither says which images.
        DataError: they cannot be read.
    """
    d = recipe.data if recipe is not None else None
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


def open_target(text: str, data: ArrayData, *, device: str, seed: int = 0) -> Target:
    """Open a run folder, a checkpoint, or a named net for these images.

    Raises:
        HardyError: no such thing, or it does not fit the images.
    """
    folder = run_of(text)
    if folder is not None:
        recipe = recipe_of(text)
        header = io.read(folder.model_file)
        own = None
        if header.source.builder == "external" and recipe is not None:
            own = io.load_model(
                recipe.model.name,
                num_classes=len(data.class_names),
                in_channels=data.x.shape[1],
                args=recipe.model.args,
            )
        model = io.load(folder.model_file, model=own)
        return _check(Target(folder.path.name, model.to(device), folder, recipe, header.trained_with), data)
    if Path(text).is_dir():
        raise ConfigError(
            f"{text}: a folder without model.safetensors, so not a finished run. Train it, or --resume it."
        )
    methods = io.read(text).trained_with if text.endswith(io.SUFFIX) else ()
    model = io.load_model(text, num_classes=len(data.class_names), in_channels=data.x.shape[1], seed=seed).eval()
    return _check(Target(Path(text).stem if methods else text, model.to(device), None, None, methods), data)


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
