"""From a recipe to a net and its images, and from plain objects to a recipe."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from hardy import io, models, surgery
from hardy.data import ArrayData, load_data
from hardy.errors import ConfigError, DataError, ParameterError
from hardy.methods import Method
from hardy.training.recipe import DataRecipe, ModelRecipe, Recipe, TrainRecipe, method_table

__all__ = ["build_model", "check_size", "describe", "load_training_data"]


def load_training_data(recipe: Recipe) -> tuple[ArrayData, ArrayData | None]:
    """Load the training and validation images of a recipe.

    Raises:
        DataError: missing or unreadable.
    """
    d = recipe.data
    load = partial(load_data, d.name, size=d.size, seed=recipe.seed, val_fraction=d.val_fraction)
    data = load(split="train", limit=d.limit)
    return data, load(split="val", limit=None) if d.val_fraction > 0 else None


def build_model(recipe: Recipe, data: ArrayData) -> models.Classifier:
    """Build the net of a recipe for the classes and channels of the data."""
    m = recipe.model
    model = io.load_model(
        m.name,
        num_classes=len(data.class_names),
        in_channels=data.x.shape[1],
        pretrained=m.pretrained,
        mean=m.mean,
        std=m.std,
        input_size=data.x.shape[2],
        args=m.args,
        seed=recipe.seed,
    )
    if not isinstance(model, models.Classifier):
        raise ConfigError(f"model.name: {m.name} was saved from code of its own; give file.py:factory instead.")
    model.class_names = data.class_names
    return model


def check_size(model: nn.Module, data: ArrayData, device: torch.device) -> None:
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
    data: ArrayData,
    methods: Sequence[Method],
    options: TrainRecipe,
    *,
    augment: tuple[str, ...],
    seed: int | None,
) -> Recipe:
    """Write down a call with plain objects as a recipe, for the run folder."""
    if unknown := set(augment) - {"crop", "flip"}:
        raise ParameterError(f"train: augment must be of crop, flip; got {min(unknown)!r}.")
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
