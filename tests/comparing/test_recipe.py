"""The recipe of a grid says what is wrong before anything is computed; cells are what it says."""

from pathlib import Path

import pytest

from hardy.comparing.cells import cells_of
from hardy.comparing.recipe import load_grid
from hardy.comparing.trial import try_out
from hardy.comparing.work import asked
from hardy.errors import ConfigError, HardyError
from hardy.training import load_recipe

TEXT = """
[model]
name = "cifar_resnet8"
[data]
name = "digits"
limit = 64
augment = ["crop"]
[train]
epochs = 6
[evaluate]
axes = ["clean"]
limit = 20
eps = 0.1
[compare]
seeds = [3, 1]
nets = ["cifar_resnet8", "cifar_resnet14"]
baseline = "plain"
[compare.arms.mask]
methods = [{ name = "lfm", p = 0.5 }]
[compare.arms.plain]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "grid.toml"
    file.write_text(TEXT)
    return file


def test_the_grid_is_every_combination_and_the_baseline_comes_first(recipe: Path) -> None:
    grid = load_grid(recipe, ["train.epochs=4"])
    cells = cells_of(grid, Path("out"), {(a, n): (1, 1) for a in grid.compare.arms for n in grid.compare.nets})
    names = [cell.folder.as_posix() for cell in cells]
    assert names == [
        f"out/{arm}/{net}/seed{seed}"
        for seed in (3, 1) for net in ("cifar_resnet8", "cifar_resnet14") for arm in ("plain", "mask")
    ]  # fmt: skip
    for cell in cells:
        assert (cell.recipe.seed, cell.recipe.model.name) == (cell.seed, cell.net)
        assert [m["name"] for m in cell.recipe.methods] == ([] if cell.arm == "plain" else ["lfm"])
        assert cell.recipe.train.epochs == 4 and cell.question == cells[0].question
        assert cell.recipe.data == cells[0].recipe.data and cell.recipe.train == cells[0].recipe.train


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("compare.seeds=[]", "seeds must be different"),
        ("compare.seeds=[1, 1]", "seeds must be different"),
        ("compare.baseline=plian", "did you mean 'plain'"),
        ("compare.arms={}", "at least one arm"),
        ("compare.budget=time", "compare.budget: expected one of 'epochs', 'passes'"),
        ("compare.seed=0", "compare.seed: unknown key"),
        ("compare.arms.plain.method=[]", r"compare.arms.plain.method: unknown key"),
        ('compare.arms.plain.methods=[{name="lmf"}]', r"compare.arms.plain.methods\[0\].name: unknown method 'lmf'"),
        ('compare.arms.plain.methods=[{name="lfm", p=2.0}]', r"compare.arms.plain.methods\[0\]"),
        ('compare.arms={"<script>"={}, plain={}}', "names a folder"),
        ('compare.arms={".."={}, plain={}}', "names a folder"),
        ('compare.arms={Plain={}, plain={}}', "more than case"),
        ("compare.nets=[\"lenet5\", \"lenet5\"]", "once each"),
        ("seed=1", "seed: the grid decides it"),
        ("methods=[]", "methods: the grid decides it"),
        ("train.epoch=1", "train.epoch: unknown key"),
        ("compare=1", "compare: missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(recipe: Path, change: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_grid(recipe, [change])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("evaluate.axes=[\"clear\"]", "did you mean 'clean'"),
        ("evaluate.eps=8", "at most 1"),
        ("evaluate.suite=pdg", "pdg"),
        ("compare.nets=[\"cifar_resnet9\"]", "cifar_resnet9"),
        ("compare.sources=[\"nowhere\"]", "nowhere"),
        ("data.name=npz:nowhere.npz", "nowhere"),
        ('compare.arms.mask.methods=[{name="lfm", sites=["nowhere"]}]', "compare.arms.mask: cannot be trained"),
    ],
)  # fmt: skip
def test_a_trial_finds_what_the_recipe_alone_does_not_tell(recipe: Path, change: str, said: str) -> None:
    with pytest.raises(HardyError, match=said):
        try_out(load_grid(recipe, ['compare.nets=["cifar_resnet8"]', change]))


def test_passes_are_those_of_the_methods_and_cut_the_epochs(recipe: Path) -> None:
    one = ['compare.nets=["cifar_resnet8"]', "compare.budget=passes"]
    grid = load_grid(recipe, one)
    assert try_out(grid) == {("mask", "cifar_resnet8"): (1, 1), ("plain", "cifar_resnet8"): (1, 1)}
    dear = {("mask", "cifar_resnet8"): (3, 2), ("plain", "cifar_resnet8"): (1, 1)}
    epochs = {cell.arm: cell.recipe.train.epochs for cell in cells_of(grid, Path("out"), dear)}
    assert epochs == {"plain": 6, "mask": 2}  # 6 * 2 // 5: 10 passes of at most 12
    equal = load_grid(recipe, one[:1])
    assert {cell.recipe.train.epochs for cell in cells_of(equal, Path("out"), dear)} == {6}
    with pytest.raises(ConfigError, match=r"leaves arm mask 0 of 6 epochs.*Raise train.epochs"):
        cells_of(grid, Path("out"), {**dear, ("mask", "cifar_resnet8"): (8, 8)})
    with pytest.raises(ConfigError, match="warmup_epochs"):
        cells_of(load_grid(recipe, [*one, "train.warmup_epochs=2"]), Path("out"), dear)


def test_two_nets_never_share_a_folder(recipe: Path) -> None:
    grid = load_grid(recipe, ['compare.nets=["timm:resnet18", "timm-resnet18"]'])
    with pytest.raises(ConfigError, match="share a folder"):
        cells_of(grid, Path("out"), {(a, n): (1, 1) for a in grid.compare.arms for n in grid.compare.nets})


def test_attacks_can_be_named_one_by_one() -> None:
    threat, suite = asked({"norm": "l2", "eps": 0.5, "suite": "pgd, square"})
    assert (threat.norm, threat.eps, suite) == ("l2", 0.5, ["pgd", "square"])


def test_training_says_whose_recipe_it_is(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"Run it by: hardy compare .*grid\.toml"):
        load_recipe(recipe)
