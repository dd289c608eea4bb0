"""From a recipe to a net and its images, and from plain objects to a recipe."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from hardy import io, models, surgery
from hardy.data import ArrayData, StreamData, open_data
from hardy.data.augment import check_augment
from hardy.errors import CheckpointError, ConfigError, DataError, ParameterError
from hardy.methods import Distillation, Method
from hardy.methods.distillation import Teacher
from hardy.training.ranks import TrainingRanks
from hardy.training.recipe import DataRecipe, ModelRecipe, Recipe, TrainRecipe, method_table

__all__ = [
    "Data",
    "build_in_turn",
    "build_model",
    "check_data",
    "check_size",
    "describe",
    "load_training_data",
    "with_teachers",
]

Data = ArrayData | StreamData


def load_training_data(recipe: Recipe) -> tuple[ArrayData | StreamData, ArrayData | StreamData | None]:
    """Open the training and validation images of a recipe, in memory or on the disk.

    Raises:
        DataError: missing or unreadable.
    """
    d = recipe.data
    load = partial(
        open_data,
        d.name,
        size=d.size,
        seed=recipe.seed,
        val_fraction=d.val_fraction,
        stream=d.stream,
        workers=d.workers,
        download=d.download,
        skip_bad=d.skip_bad,
    )
    data = load(split="train", limit=d.limit, augment=d.augment)
    return data, load(split="val") if d.val_fraction > 0 else None


def build_model(recipe: Recipe, data: ArrayData | StreamData) -> models.Classifier:
    """Build the net of a recipe for the classes and channels of the data."""
    m = recipe.model
    model = io.load_model(
        m.name,
        num_classes=len(data.class_names),
        in_channels=data.shape[0],
        pretrained=m.pretrained,
        mean=m.mean,
        std=m.std,
        input_size=data.shape[1],
        args=m.args,
        seed=recipe.seed,
    )
    if not isinstance(model, models.Classifier):
        raise ConfigError(f"model.name: {m.name} was saved from code of its own; give file.py:factory instead.")
    model.class_names = data.class_names
    return model


def with_teachers(methods: Sequence[Method]) -> list[Method]:
    """Load the teacher of each distillation that names a file or a run folder; other methods are as they were.

    Raises:
        CheckpointError: missing, damaged, or saved from code of the user's own.
    """
    return [replace(m, teacher=_teacher(m.teacher)) if isinstance(m, Distillation) else m for m in methods]


def _teacher(named: str | nn.Module) -> nn.Module | Teacher:
    if isinstance(named, nn.Module | Teacher):
        return named
    path = Path(named).expanduser()
    try:
        return Teacher.of(io.load(path / "model.safetensors" if path.is_dir() else path), named)
    except CheckpointError as error:
        raise CheckpointError(
            f"distillation: the teacher must be a checkpoint of Hardy's or a run folder with one. {error}"
        ) from error


def build_in_turn(recipe: Recipe, ranks: TrainingRanks) -> tuple[Data, Data | None, models.Classifier]:
    """Load the images and build the net; the first process of a machine downloads what has to be, before the others.

    Raises:
        HardyError: as :func:`load_training_data` and :func:`build_model`, in any process.
    """
    for turn in (True, False):
        with ranks.agree():
            if ranks.first_here is turn:
                data, val_data = load_training_data(recipe)
                model = build_model(recipe, data)
    return data, val_data, model


def check_data(recipe: Recipe, data: Data, val_data: Data | None) -> None:
    """Check that the images are such that a training can begin.

    Raises:
        ParameterError: the best epoch is wanted, without validation images.
        DataError: fewer than 2 classes or images.
    """
    if recipe.train.select == "best" and val_data is None:
        raise ParameterError(
            'train: select = "best" needs validation images; got none. Set val_fraction or val_data, or "last".'
        )
    if data.num_classes < 2:
        raise DataError(f"train: at least 2 classes are needed; {data.name} has {data.num_classes}.")
    if len(data) < 2:
        raise DataError(f"train: at least 2 training images are needed; got {len(data)}.")


def check_size(model: nn.Module, data: ArrayData | StreamData, device: torch.device) -> None:
    """Run one image through the net, in eval mode and without a trace, before anything is written.

    Raises:
        DataError: the net does not take images of this size, or does not give one logit per class.
    """
    x = data.subset(torch.tensor([0])).images().to(device)
    try:
        with surgery.without_trace(model, x):
            logits = model(x)
    except (RuntimeError, AssertionError, ValueError) as error:
        shape = "x".join(map(str, data.shape))
        raise DataError(
            f"train: the net does not take {shape} images ({error}). Set data.size, or another net."
        ) from error
    if isinstance(logits, Tensor) and logits.shape != (1, data.num_classes):
        raise DataError(
            f"train: the net must give one logit for each of {data.num_classes} classes; "
            f"got {tuple(logits.shape)} for one image. Build it with num_classes={data.num_classes}."
        )


def describe(
    model: nn.Module,
    data: ArrayData | StreamData,
    methods: Sequence[Method],
    options: TrainRecipe,
    *,
    augment: tuple[str, ...],
    seed: int | None,
) -> Recipe:
    """Write down a call with plain objects as a recipe, for the run folder."""
    check_augment(augment)
    name = (
        f"{model.source.builder}:{model.source.name}" if isinstance(model, models.Classifier) else type(model).__name__
    )
    tables = tuple(method_table(m) for m in methods)
    return Recipe(
        seed=seed or 0,
        model=ModelRecipe(name=name),
        data=DataRecipe(name=data.name, val_fraction=0.0, augment=augment),  # type: ignore[arg-type]  # checked above
        methods=tables,
        train=options,
    )
