"""A recipe is strict, has its defaults once, and is written back as it was read."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardy.config import build, dump
from hardy.errors import ConfigError
from hardy.methods import DefectiveConv, LocalFeatureMasking
from hardy.training import Recipe, build_methods, load_recipe
from hardy.training.recipe import DataRecipe, ModelRecipe, TrainRecipe, method_table

SMALL: dict[str, Any] = {"model": {"name": "cifar_resnet8"}, "data": {"name": "digits"}}

TEXT = """
seed = 3
[model]
name = "timm:resnet18"
args = { drop_path_rate = 0.1 }
[data]
name = 'folder:C:\\photos "x"'
size = 64
augment = ["flip"]
[[methods]]
name = "lfm"
area = [0.1, 0.2]
fill = 0.5
[[methods]]
name = "defective_conv"
keep = "3/10"
[train]
epochs = 5
lr = 1
ema = 0.999
[evaluate]
eps = "8/255"
axes = ["clean"]
"""


def test_a_recipe_is_read_and_written_back_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(TEXT)
    recipe = load_recipe(tmp_path / "a.toml", ["train.epochs=7", "data.limit=100"])
    assert recipe.train.epochs == 7 and recipe.data.limit == 100 and recipe.train.lr == 1.0
    assert recipe.evaluate.eps == 8 / 255 and recipe.model.args == {"drop_path_rate": 0.1}
    assert build_methods(recipe.methods) == [
        LocalFeatureMasking(area=(0.1, 0.2), fill=0.5),
        DefectiveConv(keep=0.3),
    ]
    (tmp_path / "b.toml").write_text(recipe.to_toml())
    assert load_recipe(tmp_path / "b.toml") == recipe


@given(
    st.floats(1e-6, 10),
    st.sampled_from(["cosine", "step", "one_cycle", "constant"]),
    st.text(max_size=20),
    st.one_of(st.none(), st.floats(0, 0.999)),
    st.lists(st.sampled_from([LocalFeatureMasking(), DefectiveConv(keep=0.1)]), max_size=2),
)
def test_any_recipe_survives_its_own_toml(
    lr: float, schedule: Any, name: str, ema: float | None, methods: list[Any]
) -> None:
    import tomllib

    recipe = Recipe(
        model=ModelRecipe(name=name),
        data=DataRecipe(name=name),
        methods=tuple(map(method_table, methods)),
        train=TrainRecipe(lr=lr, schedule=schedule, ema=ema),
    )
    again = build(Recipe, tomllib.loads(recipe.to_toml()))
    assert build_methods(again.methods) == methods
    assert again.train == recipe.train and again.model == recipe.model and again.data == recipe.data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trian": {}}, r"trian: unknown key; did you mean 'train'\?"),
        ({"train": {"epoch": 1}}, r"train.epoch: unknown key; did you mean 'epochs'\?"),
        ({"train": {"epochs": 0}}, r"train: epochs must be above 0; got 0"),
        ({"train": {"epochs": 2.5}}, r"train.epochs: expected int; got float 2.5"),
        ({"train": {"schedule": "cos"}}, r"train.schedule: expected one of 'cosine'"),
        ({"train": {"milestones": [0.7, 0.5]}}, r"milestones must rise within \(0, 1\)"),
        ({"train": {"momentum": 1.0}}, r"momentum must be in \[0, 1\)"),
        ({"train": {"loggers": ["wand"]}}, r"train.loggers\[0\]: expected one of"),
        ({"data": {"name": "digits", "val_fraction": 1.0}}, r"data: val_fraction must be in \[0, 1\)"),
        ({"data": {"name": "digits", "augment": ["crop", "rotate"]}}, r"data.augment\[1\]: expected one of"),
        ({"data": {}}, r"data.name: missing"),
        ({"methods": [{"name": "lmf"}]}, r"methods\[0\].name: unknown method 'lmf'; did you mean 'lfm'\?"),
        ({"methods": [{"name": "lfm", "q": 1}]}, r"methods\[0\].q: unknown key"),
        ({"methods": [{"name": "lfm", "p": 2}]}, r"methods\[0\]: LocalFeatureMasking: p must be in \[0, 1\]; got 2"),
        ({"methods": [{"p": 2}]}, r"methods\[0\].name: unknown method None"),
        ({"evaluate": {"eps": "8/0"}}, r"evaluate.eps: expected a number or a fraction"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(dump({**SMALL, **change}))
    with pytest.raises(ConfigError, match=message):
        load_recipe(tmp_path / "a.toml")
