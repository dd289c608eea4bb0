"""What a verb takes: the same test images for runs of every seed, the run's own validation part, and ensembles."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hardy.cli.main import app
from hardy.cli.targets import open_data, open_target, passes_in, recipe_of
from hardy.data import load_data
from hardy.errors import ConfigError
from hardy.models import Ensemble
from hardy.results import Result
from hardy.training import DataRecipe, ModelRecipe, Recipe, load_recipe, train


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


# ------------------------------------------------------------------------------------------------------- ensembles

RECIPE = """
[model]
name = "cifar_resnet8"
args = { width = 4 }
[data]
name = "digits"
limit = 128
augment = ["crop"]
[[methods]]
name = "defective_conv"
[train]
epochs = 1
batch_size = 64
[evaluate]
eps = 0.1
limit = 20
suite = "pgd"
axes = ["clean", "white_box"]
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "recipe.toml").write_text(RECIPE)
    for seed, name in enumerate("ab"):
        train(load_recipe(folder / "recipe.toml", [f"seed={seed}"]), out=folder / name)
    return folder


def test_an_ensemble_is_the_mean_of_its_members_on_the_data_of_the_first(runs: Path) -> None:
    text = f"ensemble:{runs / 'a'},{runs / 'b'}"
    own = recipe_of(text)
    assert own == recipe_of(str(runs / "a")) and own is not None
    images = open_data(None, own, split="test", limit=20, size=None, seed=0, model=text)
    target = open_target(text, images, device="cpu")
    a, b = (open_target(str(runs / name), images, device="cpu") for name in "ab")
    x = images.images()
    assert isinstance(target.model, Ensemble) and not any(m.training for m in target.model.modules())
    torch.testing.assert_close(target.model(x), (a.model(x) + b.model(x)) / 2)
    assert target.name == "ensemble of a, b" and target.folder is None and target.recipe == own
    assert target.methods == a.methods == b.methods and target.methods[0].startswith("DefectiveConv(keep=0.5")
    assert a.passes == {"forward_passes": 1.0, "backward_passes": 1.0} and target.passes["forward_passes"] == 2
    assert passes_in({"epoch": 1.0}) == passes_in({"forward_passes": 3.0}) == {}  # a file of before
    first, second = ([t for n, t in m.named_buffers() if n.endswith(".mask")] for m in target.model.members)
    assert len(first) == 5 and not any(map(torch.equal, first, second))


def test_evaluate_takes_an_ensemble_and_writes_into_no_run(runs: Path, tmp_path: Path) -> None:
    text, out = f"ensemble:{runs / 'a'},{runs / 'b'}", tmp_path / "en.json"
    done = CliRunner().invoke(app, ["evaluate", text, "--source", str(runs / "b"), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.stderr
    result = Result.read(out)
    assert result.model == "ensemble of a, b" and result.n == 20 and "digits" in result.data
    assert [axis.name for axis in result.axes] == ["clean", "white_box"] and result.threat.eps == 0.1
    assert result.training_passes == {"forward_passes": 2.0, "backward_passes": 2.0}  # one epoch of each member
    assert not (runs / "a" / "result.json").exists()


@pytest.mark.parametrize("members", ["", "a,", "a,a"])
def test_members_must_be_named_and_different(members: str) -> None:
    with pytest.raises(ConfigError, match=rf"ensemble:{members}: an ensemble must name different members, as in"):
        recipe_of(f"ensemble:{members}")


def test_a_member_that_is_not_there_is_named(runs: Path) -> None:
    images = open_data("digits", None, split="test", limit=4, size=None, seed=0)
    with pytest.raises(ConfigError, match=r"nothing: no such run folder, file or net"):
        open_target(f"ensemble:{runs / 'a'},nothing", images, device="cpu")
    with pytest.raises(ConfigError, match=r"nothing: no such run folder, file or net"):
        open_data(None, None, split="test", limit=4, size=None, seed=0, model="ensemble:nothing,else")


def test_validation_images_of_one_member_that_trained_another_are_refused(runs: Path) -> None:
    text = f"ensemble:{runs / 'a'},{runs / 'b'}"
    images = open_data(None, recipe_of(text), split="val", limit=4, size=None, seed=0)
    with pytest.raises(ConfigError, match=r"are training images of another.* Use --split test"):
        open_target(text, images, device="cpu")
    assert open_target(f"ensemble:{runs / 'a'}", images, device="cpu").name == "ensemble of a"
