"""Which images a verb takes: the same test images for runs of every seed, and the run's own validation part."""

import torch

from hardy.cli.targets import open_data
from hardy.data import load_data
from hardy.training import DataRecipe, ModelRecipe, Recipe


def recipe(seed: int) -> Recipe:
    data = DataRecipe(name="digits", val_fraction=0.2)
    return Recipe(seed=seed, model=ModelRecipe(name="cifar_resnet8"), data=data)


def test_a_limit_takes_the_same_test_images_for_runs_of_every_seed() -> None:
    a, b = (open_data(None, recipe(seed), split="test", limit=50, size=None, seed=0) for seed in (0, 1))
    assert torch.equal(a.index, b.index) and len(a) == 50
    other = open_data(None, recipe(0), split="test", limit=50, size=None, seed=1)
    assert not torch.equal(a.index, other.index)


def test_the_validation_part_is_the_one_of_the_training_however_it_is_named() -> None:
    want = load_data("digits", split="val", seed=1, val_fraction=0.2)
    for spec in (None, "digits"):
        got = open_data(spec, recipe(1), split="val", limit=None, size=None, seed=0)
        assert torch.equal(got.index, want.index)
    trained = load_data("digits", split="train", seed=1, val_fraction=0.2)
    assert not set(want.index.tolist()) & set(trained.index.tolist())
    assert len(open_data("digits", recipe(1), split="val", limit=10, size=None, seed=0)) == 10
