"""What can be found out about a grid in seconds: every arm is attached to every net, and its passes are counted."""

from collections.abc import Mapping

import torch

from hardy import surgery
from hardy.comparing.cells import question_of
from hardy.comparing.recipe import Grid
from hardy.comparing.work import asked, open_source
from hardy.data import open_data
from hardy.errors import ConfigError, HardyError, did_you_mean
from hardy.evaluation import AXES
from hardy.inserts import passes_per_image
from hardy.objective import Objective
from hardy.training.build import build_model, check_data, check_size, load_training_data
from hardy.training.recipe import build_methods

__all__ = ["Passes", "try_out"]

Passes = Mapping[tuple[str, str], tuple[int, int]]


def try_out(grid: Grid) -> Passes:
    """Build every net with every arm once, on the CPU, and look at the images and the question.

    Returns:
        Forward and backward passes per training image in one epoch, by arm and net; (1, 1) for a plain net.

    Raises:
        ConfigError: an arm cannot be trained on a net (the message names both), an unknown axis, a budget above 1.
        HardyError: images, sources or attacks that are not there or do not fit.
    """
    question = question_of(grid)
    asked(question)
    for axis in question["axes"] or ():
        if axis not in AXES:
            raise ConfigError(f"evaluate.axes: no axis {axis!r}; {did_you_mean(axis, AXES)}")
    for source in question["sources"]:
        open_source(source)
    d = grid.plain.data
    data, val_data = load_training_data(grid.plain)
    check_data(grid.plain, data, val_data)
    open_data(d.name, split="test", limit=question["limit"], size=d.size, download=d.download, skip_bad=d.skip_bad)
    example = data.subset(torch.tensor([0])).images()
    found = {}
    for net in grid.compare.nets:
        for arm in grid.compare.arms:
            recipe = grid.recipe(arm, net, grid.compare.seeds[0])
            model = build_model(recipe, data)
            check_size(model, data, torch.device("cpu"))
            try:
                attached = surgery.attach(model, build_methods(recipe.methods), example=example, seed=recipe.seed)
                Objective(model, attached)
            except HardyError as error:
                raise ConfigError(f"compare.arms.{arm}: cannot be trained on {net}: {error}") from error
            found[arm, net] = passes_per_image([attachment.insert for attachment in attached])
    return found
