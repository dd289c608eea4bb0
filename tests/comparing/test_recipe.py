"""The recipe of a grid says what is wrong before anything is computed; cells are what it says."""

from pathlib import Path

import pytest

import hardy
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
        ('compare.arms={"Report.html"={}, plain={}}', "written beside the arms"),
        ('compare.arms={"comparison.JSON"={}, plain={}}', "written beside the arms"),
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
        ("compare.sources=[\"nowhere\", \"./nowhere\"]", "once; got nowhere twice"),
        ("data.name=npz:nowhere.npz", "nowhere"),
        ('compare.arms.mask.methods=[{name="lfm", sites=["nowhere"]}]', "compare.arms.mask: cannot be trained"),
        ('compare.arms.mask.methods=[{name="distillation", teacher="nowhere"}]', "arms.mask: .* teacher must be"),
    ],
)  # fmt: skip
def test_a_trial_finds_what_the_recipe_alone_does_not_tell(recipe: Path, change: str, said: str) -> None:
    with pytest.raises(HardyError, match=said):
        try_out(load_grid(recipe, ['compare.nets=["cifar_resnet8"]', change]))


def test_passes_are_those_of_the_methods_and_cut_the_epochs(recipe: Path) -> None:
    one = ['compare.nets=["cifar_resnet8"]', "compare.budget=passes"]
    grid = load_grid(recipe, one)
    assert try_out(grid).passes == {("mask", "cifar_resnet8"): (1, 1), ("plain", "cifar_resnet8"): (1, 1)}
    dear = {("mask", "cifar_resnet8"): (3, 2), ("plain", "cifar_resnet8"): (1, 1)}
    epochs = {cell.arm: cell.recipe.train.epochs for cell in cells_of(grid, Path("out"), dear)}
    assert epochs == {"plain": 6, "mask": 2}  # 6 * 2 // 5: 10 passes of at most 12
    equal = load_grid(recipe, one[:1])
    assert {cell.recipe.train.epochs for cell in cells_of(equal, Path("out"), dear)} == {6}
    with pytest.raises(ConfigError, match=r"leaves arm mask 0 of 6 epochs.*Raise train.epochs"):
        cells_of(grid, Path("out"), {**dear, ("mask", "cifar_resnet8"): (8, 8)})


def test_what_is_counted_in_epochs_is_cut_with_them(recipe: Path) -> None:
    one = ['compare.nets=["cifar_resnet8"]', "compare.budget=passes", "train.epochs=12", 'train.freeze=["stem"]']
    dear = {("mask", "cifar_resnet8"): (3, 2), ("plain", "cifar_resnet8"): (1, 1)}
    grid = load_grid(recipe, [*one, "train.warmup_epochs=3", "train.freeze_epochs=6"])
    found = {cell.arm: cell.recipe.train for cell in cells_of(grid, Path("out"), dear)}
    assert [(t.epochs, t.warmup_epochs, t.freeze_epochs) for t in (found["plain"], found["mask"])] == [
        (12, 3.0, 6), (4, 1.0, 2),
    ]  # fmt: skip
    short = load_grid(recipe, [*one, "train.epochs=3", "train.freeze_epochs=2"])  # 1 epoch of the dear arm
    with pytest.raises(ConfigError, match="1 of the 1 epochs of arm mask leave none"):
        cells_of(short, Path("out"), dear)
    always = load_grid(recipe, [*one[:1], *one[3:], "train.freeze_epochs=6"])
    with pytest.raises(ConfigError, match=r"train.freeze_epochs: must be below .* 6 of the 6 epochs of arm plain"):
        cells_of(always, Path("out"), dict.fromkeys(dear, (1, 1)))


def test_a_source_of_other_images_or_classes_is_refused_before_any_training(recipe: Path, tmp_path: Path) -> None:
    one = 'compare.nets=["cifar_resnet8"]'
    for name, options in {"many": {"num_classes": 7}, "color": {"in_channels": 3}, "good": {}}.items():
        net = hardy.load_model("cifar_resnet8", **{"num_classes": 10, "in_channels": 1, **options})
        hardy.save(net, tmp_path / f"{name}.safetensors")
    for name, said in {"many": "must have the 10 classes", "color": "does not take the test images"}.items():
        with pytest.raises(ConfigError, match=said):
            try_out(load_grid(recipe, [one, f'compare.sources=["{tmp_path / name}.safetensors"]']))
    found = try_out(load_grid(recipe, [one, f'compare.sources=["{tmp_path}/good.safetensors"]']))
    assert f"source {tmp_path}/good.safetensors" in found.origins.question


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
