"""What a verb works on: a run folder, a checkpoint, a named net or an ensemble, with the images that belong to it.

``ensemble:runs/a,runs/b`` answers by the mean of its members' logits; its images and its recipe are those of the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

from torch import nn

from hardy import io
from hardy.data import ArrayData, Split, load_data
from hardy.errors import ConfigError, did_you_mean
from hardy.inserts import PASSES
from hardy.models import BUILTIN, Arg, Classifier, Ensemble, known, list_models
from hardy.training import Recipe, RunFolder, load_recipe

__all__ = ["Target", "open_data", "open_target", "passes_in"]

ENSEMBLE = "ensemble:"


@dataclass(frozen=True)
class Target:
    """A model in eval mode on a device.

    Attributes:
        name: What to call it.
        model: The model.
        folder: Its run folder, if it came from one.
        recipe: Its recipe, likewise.
        methods: ``repr`` of the methods it was trained with; of an ensemble, those of any member.
        passes: ``forward_passes`` and ``backward_passes`` per image of its training, summed over the members of an
            ensemble; empty where the file does not say.
    """

    name: str
    model: nn.Module
    folder: RunFolder | None
    recipe: Recipe | None
    methods: tuple[str, ...]
    passes: dict[str, float] = field(default_factory=dict)


def open_data(
    spec: str | None,
    recipe: Recipe | None,
    *,
    split: str,
    limit: int | None,
    size: int | None,
    seed: int,
    model: str | None = None,
    download: bool = False,
    skip_bad: bool = False,
) -> ArrayData:
    """Load images by ``--data``, or those of the run's recipe.

    Train and validation images of a run are divided by the seed of its recipe, as in its training. Which images a
    ``limit`` takes depends on ``seed`` alone, so that runs of different seeds are evaluated on the same ones. Data of
    the recipe are fetched, and images left out, if it or the caller says so.

    Raises:
        ConfigError: neither says which images.
        DataError: they cannot be read.
    """
    d = recipe.data if recipe is not None else None
    model = None if model is None else members_of(model)[0]
    if spec is None and d is None and model is not None:
        _refuse_folder(model)
        if ".py:" not in model and not model.endswith(io.SUFFIX):
            known_or_error(model)
    if spec is None and (d is None or d.name == "external"):
        raise ConfigError("--data: must be given, as the model does not say which images; for example --data digits.")
    name = spec or (d.name if d else "")
    size = size if size is not None else (d.size if d else None)
    load = partial(load_data, name, split=cast("Split", split), size=size, download=download, skip_bad=skip_bad)
    if recipe is not None and name == recipe.data.name:
        d = recipe.data
        load = partial(load, download=download or d.download, skip_bad=skip_bad or d.skip_bad)
        if split != "test":
            return load(seed=recipe.seed, val_fraction=d.val_fraction).limit(limit, seed=seed)
    return load(limit=limit, seed=seed)


def members_of(text: str) -> tuple[str, ...]:
    """Give the members of ``ensemble:A,B``; of anything else, itself.

    Raises:
        ConfigError: an ensemble without members, or with one of them twice.
    """
    if not text.startswith(ENSEMBLE):
        return (text,)
    members = tuple(name.strip() for name in text.removeprefix(ENSEMBLE).split(","))
    if "" in members or len(set(members)) < len(members):
        raise ConfigError(f"{text}: an ensemble must name different members, as in {ENSEMBLE}runs/a,runs/b.")
    return members


def run_of(text: str) -> RunFolder | None:
    """Give the run folder that ``text`` names, if it does."""
    folder = RunFolder(text)
    return folder if folder.model_file.is_file() else None


def recipe_of(text: str) -> Recipe | None:
    """Read the recipe of the run folder that ``text`` names, if it does; of an ensemble, of its first member."""
    folder = run_of(members_of(text)[0])
    return load_recipe(folder.recipe_file) if folder is not None and folder.recipe_file.is_file() else None


def open_target(text: str, data: ArrayData, *, device: str, weights: str | None = None) -> Target:
    """Open a run folder, a checkpoint, a named net with weights, or an ensemble of them, for these images.

    Args:
        text: What to open.
        data: The images it is for.
        device: Where to put it.
        weights: For a named net: "pretrained" or a weights file. A net without trained weights is an error.

    Raises:
        HardyError: no such thing, no weights, or it does not fit the images.
    """
    if text.startswith(ENSEMBLE):
        return _ensemble([open_target(one, data, device=device, weights=weights) for one in members_of(text)], data)
    folder = run_of(text)
    if folder is not None:
        recipe = recipe_of(text)
        header = io.read(folder.model_file)
        own = None
        if header.source.builder == "external" and recipe is not None:
            own = _build(recipe.model.name, data, args=recipe.model.args)
        model = io.load(folder.model_file, model=own)
        name, methods, passes = folder.path.resolve().name, header.trained_with, passes_in(header.metrics)
        return _check(Target(name, model.to(device), folder, recipe, methods, passes), data)
    _refuse_folder(text)
    if text.endswith(io.SUFFIX):
        header = io.read(text)
        methods, passes = header.trained_with, passes_in(header.metrics)
        return _check(Target(Path(text).stem, io.load(text).to(device), None, None, methods, passes), data)
    factory = ".py:" in text  # code of the user's own brings its own weights
    if weights is None and not factory:
        known_or_error(text)
        raise ConfigError(
            f"{text}: a net without trained weights. Give a run folder, a checkpoint, or --weights pretrained|FILE."
        )
    model = _build(text, data, pretrained=True if weights == "pretrained" else (weights or False))
    return _check(Target(text, model.eval().to(device), None, None, ()), data)


def _ensemble(members: Sequence[Target], data: ArrayData) -> Target:
    """Make one target of several; it has no folder, so that nothing is written into that of a member.

    Raises:
        ConfigError: validation images of the first member that others were trained on.
    """
    name = f"ensemble of {', '.join(member.name for member in members)}"
    splits = {(m.recipe.seed, m.recipe.data.name, m.recipe.data.val_fraction) for m in members if m.recipe is not None}
    if data.split == "val" and len(splits) > 1:
        raise ConfigError(
            f"{name}: validation images of one member are training images of another, as their recipes divide them by "
            "different seeds. Use --split test."
        )
    methods = tuple(dict.fromkeys(method for member in members for method in member.methods))
    known = all(member.passes for member in members)
    passes = {key: sum(member.passes[key] for member in members) for key in PASSES} if known else {}
    return Target(name, Ensemble([member.model for member in members]), None, members[0].recipe, methods, passes)


def passes_in(metrics: Mapping[str, float]) -> dict[str, float]:
    """Take the passes per training image from the metrics of a model's file; empty where one is not there."""
    return {key: metrics[key] for key in PASSES} if all(key in metrics for key in PASSES) else {}


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
