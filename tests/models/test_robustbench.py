"""The table names nets that can be built, with the facts that RobustBench has in its code."""

import warnings
from pathlib import Path

import pytest
import torch

import hardy
from hardy.errors import CheckpointError, ConfigError, ParameterError
from hardy.models import Classifier, build, known, list_models
from hardy.models.registry import check_args
from hardy.models.registry import known as installed
from hardy.models.robustbench import NORMS, TABLE, VARIANTS, ZOO, entry

FAST = "robustbench:cifar10/Linf/Wong2020Fast"


@pytest.mark.parametrize("name", ZOO)
def test_every_model_has_a_net_that_takes_its_arguments(name: str) -> None:
    found = ZOO[name]
    builder, _, short = found.net.rpartition(":")
    assert installed(builder or "builtin", short)
    check_args(builder or "builtin", found.args)
    assert found.num_classes == {"cifar10": 10, "cifar100": 100, "imagenet": 1000}[name.split("/", maxsplit=1)[0]]
    assert name.split("/")[1] in {"Linf", "L2", "corruptions"} and len(name.split("/")) == 3
    assert len(found.mean) == len(found.std) == 3 and min(found.std) > 0
    assert (found.input_size is None) == name.startswith("cifar")


def test_no_model_is_in_the_table_twice_and_nothing_in_it_is_unused() -> None:
    rows = [f"{folder}/{model}" for (folder, *_), models in TABLE.items() for model in models.split()]
    assert len(rows) == len(set(rows)) == len(ZOO)
    assert {norm for *_, norm in TABLE} == set(NORMS) and {variant for _, _, variant, _ in TABLE} == set(VARIANTS)


@pytest.mark.parametrize(
    ("name", "net", "args", "mean"),
    [
        ("cifar10/Linf/Carmon2019Unlabeled", "cifar_wrn28_10", {}, 0.0),
        ("cifar10/Linf/Hendrycks2019Using", "cifar_wrn28_10", {}, 0.5),  # its code computes 2 x - 1
        ("cifar10/Linf/Rice2020Overfitting", "cifar_wrn34_20", {}, 0.4914),
        ("cifar10/L2/Rice2020Overfitting", "cifar_preact_resnet18", {}, 0.4914),
        ("cifar100/Linf/Rice2020Overfitting", "cifar_preact_resnet18", {}, 0.5070751592371323),
        ("cifar10/Linf/Sehwag2021Proxy_R18", "cifar_resnet18", {}, 0.0),
        ("cifar10/Linf/Wang2023Better_WRN-28-10", "cifar_wrn28_10", {"activation": "silu", "padding": "same"}, 0.4914),
        ("imagenet/Linf/Salman2020Do_R18", "torchvision:resnet18", {}, 0.485),
        ("imagenet/Linf/Chen2024Data_WRN_50_2", "torchvision:wide_resnet50_2", {}, 0.0),
    ],
)
def test_facts_of_some_models(name: str, net: str, args: dict[str, object], mean: float) -> None:
    found = entry(name)
    assert (found.net, dict(found.args), found.mean[0]) == (net, args, mean)


def test_a_file_without_normalisation_gets_that_of_the_code(tmp_path: Path) -> None:
    net = build("cifar_preact_resnet18", args={"shortcut": "raw", "final_norm": False}, seed=4).net
    torch.save(net.state_dict(), tmp_path / "Wong2020Fast.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = hardy.load_model(FAST, pretrained=tmp_path / "Wong2020Fast.pt")
    assert isinstance(model, Classifier) and model.source.builder == "builtin"
    assert model.source.name == "cifar_preact_resnet18" and model.source.num_classes == 10
    assert model.source.mean == (0.4914, 0.4822, 0.4465) and model.source.std == (0.2471, 0.2435, 0.2616)
    assert model.source.args == {"shortcut": "raw", "final_norm": False}
    torch.save({**net.state_dict(), "mu": torch.full((3,), 0.25), "sigma": torch.ones(3)}, tmp_path / "more.pt")
    assert build(FAST, pretrained=tmp_path / "more.pt").source.mean == (0.25, 0.25, 0.25)  # the file's own word
    assert build(FAST, pretrained=tmp_path / "more.pt", mean=(0.5,) * 3).source.mean == (0.5, 0.5, 0.5)


def test_the_number_of_classes_is_that_of_the_data(tmp_path: Path) -> None:
    torch.save(build("cifar_resnet18", num_classes=100).net.state_dict(), tmp_path / "w.pt")
    model = build("robustbench:cifar100/Linf/Addepalli2022Efficient_RN18", pretrained=tmp_path / "w.pt")
    assert model.source.num_classes == 100 and model.source.mean == (0, 0, 0)


def test_a_file_of_another_net_or_number_of_classes_is_an_error(tmp_path: Path) -> None:
    args = {"shortcut": "raw", "final_norm": False}
    torch.save(build("cifar_preact_resnet18", num_classes=7, args=args).net.state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="for 7 classes, the net has 10"):
        build(FAST, pretrained=tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"do not fit the net; missing bn1\.weight"):
        build("robustbench:cifar10/L2/Rice2020Overfitting", pretrained=tmp_path / "w.pt")


@pytest.mark.parametrize("pretrained", [False, True])
def test_weights_must_be_given(pretrained: bool) -> None:
    with pytest.raises(ParameterError, match=r"pretrained='models/cifar10/Linf/Wong2020Fast.pt'"):
        build(FAST, pretrained=pretrained)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Wong2020Fast", "did you mean cifar10/Linf/Wong2020Fast or imagenet/Linf/Wong2020Fast?"),
        ("cifar10/Linf/Wong2020Fats", "did you mean 'cifar10/Linf/Wong2020Fast'?"),
        ("zzz", "names are such as cifar10/Linf/Carmon2019Unlabeled"),
        ("cifar10/Linf/Ding2020MMA", "build the net with the package robustbench, and pass the module"),
    ],
)
def test_unknown_models_say_what_was_meant_or_what_to_do(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        build(f"robustbench:{name}", pretrained="w.pt")


def test_they_are_listed() -> None:
    assert FAST in list_models("robustbench:*") and FAST in list_models("*Wong2020Fast")
    assert known("robustbench", "cifar10/Linf/Wong2020Fast") and not known("robustbench", "../etc")
