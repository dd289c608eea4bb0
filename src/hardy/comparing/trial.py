"""What can be found out about a grid in seconds: every arm is attached to every net, and its passes are counted."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hardy import surgery
from hardy.comparing.cells import question_of
from hardy.comparing.origins import Origins, data_digest, file_digest, net_files, source_file, source_names
from hardy.comparing.recipe import Grid
from hardy.comparing.work import asked, open_source
from hardy.data import ArrayData, StreamData, open_data
from hardy.errors import ConfigError, HardyError, did_you_mean
from hardy.evaluation import AXES
from hardy.inserts import passes_per_image
from hardy.objective import Objective
from hardy.training.build import build_model, check_data, check_size, load_training_data, with_teachers
from hardy.training.recipe import build_methods

__all__ = ["Trial", "try_out"]


@dataclass(frozen=True)
class Trial:
    """What a trial of a grid found out.

    Attributes:
        passes: Forward and backward passes per training image in one epoch, by arm and net; (1, 1) for a plain net.
        origins: Digests of the images and files that the cells rest on.
    """

    passes: Mapping[tuple[str, str], tuple[int, int]]
    origins: Origins


def try_out(grid: Grid) -> Trial:
    """Build every net with every arm once, on the CPU, and look at the images and the question.

    Raises:
        ConfigError: an arm cannot be trained on a net (the message names both), an unknown axis, a budget above 1, a
            source twice or of other images or classes.
        HardyError: images, sources or attacks that are not there or do not fit.
    """
    question = question_of(grid)
    asked(question)
    for axis in question["axes"] or ():
        if axis not in AXES:
            raise ConfigError(f"evaluate.axes: no axis {axis!r}; {did_you_mean(axis, AXES)}")
    source_names(question["sources"])
    d = grid.plain.data
    data, val_data = load_training_data(grid.plain)
    check_data(grid.plain, data, val_data)
    test = open_data(
        d.name, split="test", limit=question["limit"], size=d.size, download=d.download, skip_bad=d.skip_bad
    )
    for source in question["sources"]:
        _check_source(source, test)
    example = data.subset(torch.tensor([0])).images()
    found = {}
    for net in grid.compare.nets:
        for arm in grid.compare.arms:
            recipe = grid.recipe(arm, net, grid.compare.seeds[0])
            model = build_model(recipe, data)
            check_size(model, data, torch.device("cpu"))
            try:
                methods = with_teachers(build_methods(recipe.methods))
                attached = surgery.attach(model, methods, example=example, seed=recipe.seed)
                Objective(model, attached)
            except HardyError as error:
                raise ConfigError(f"compare.arms.{arm}: cannot be trained on {net}: {error}") from error
            found[arm, net] = passes_per_image([attachment.insert for attachment in attached])
    return Trial(found, _origins(grid, data, test))


def _check_source(text: str, images: ArrayData | StreamData) -> None:
    """Ask a source about one image.

    Raises:
        ConfigError: it does not take it, or has other classes.
    """
    net = open_source(text)
    try:
        with torch.no_grad():
            z = net(images.subset(torch.tensor([0])).images())
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(f"compare.sources: {text} does not take the test images ({error}).") from error
    got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
    if got != (1, images.num_classes):
        raise ConfigError(
            f"compare.sources: {text} must have the {images.num_classes} classes of {images.name}; it gives {got} for "
            "one image. Leave it out."
        )


def _origins(grid: Grid, data: ArrayData | StreamData, test: ArrayData | StreamData) -> Origins:
    """Take the digests of everything that is read; of streamed training images, of labels and identities alone."""
    images = {"training labels": data_digest(data, pixels=False)}
    if isinstance(data, ArrayData):
        images["training images"] = data_digest(data)
    some = next(iter(grid.compare.arms))
    training = {net: images | net_files(grid.recipe(some, net, 0)) for net in grid.compare.nets}
    sources = {f"source {text}": file_digest(source_file(text)) for text in grid.compare.sources}
    return Origins(training, {"test images": data_digest(test)} | sources)
