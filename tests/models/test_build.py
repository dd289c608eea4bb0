"""Nets are built from names, equal for equal seeds, with the normalisation that is published for them."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from hardy.errors import CheckpointError, ConfigError, HardyError, ParameterError
from hardy.models import Classifier, Source, build, known, list_models, rebuild
from hardy.models.build import CIFAR10
from hardy.models.registry import BUILTIN

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TIMM, TORCHVISION = "timm:resnet10t", "torchvision:squeezenet1_1"


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("name", ["cifar_resnet8", TIMM, TORCHVISION])
def test_equal_seeds_give_equal_weights_and_the_global_generator_is_left_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(name, num_classes=4, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert equal(first, build(name, num_classes=4, seed=1))
    assert not equal(first, build(name, num_classes=4, seed=2))


@pytest.mark.parametrize(
    ("name", "channels", "stats"),
    [
        ("cifar_resnet8", 3, CIFAR10),
        ("cifar_resnet8", 1, ((0.5,), (0.5,))),
        (TIMM, 3, IMAGENET),
        (TIMM, 1, ((0.449,), (0.226,))),  # the averages over RGB
        (TORCHVISION, 3, ((0.5,) * 3, (0.5,) * 3)),
        (TORCHVISION, 2, ((0.5,) * 2, (0.5,) * 2)),
    ],
)
def test_normalisation_is_the_published_one_for_these_channels(
    name: str, channels: int, stats: tuple[tuple[float, ...], tuple[float, ...]]
) -> None:
    model = build(name, num_classes=3, in_channels=channels).eval()
    assert model.source.mean == pytest.approx(stats[0]) and model.source.std == pytest.approx(stats[1])
    assert model.normalize.mean.flatten().tolist() == pytest.approx(stats[0])
    assert model.normalize.std.flatten().tolist() == pytest.approx(stats[1])
    assert model(torch.rand(2, channels, 64, 64)).shape == (2, 3)


def test_mean_and_std_of_the_caller_win() -> None:
    model = build(TIMM, num_classes=3, mean=[0.0, 0.0, 0.0], std=(1.0, 2.0, 3.0))
    assert model.source.mean == (0.0, 0.0, 0.0) and model.source.std == (1.0, 2.0, 3.0)


def test_without_num_classes_a_net_has_its_own_default() -> None:
    assert build("cifar_resnet8").source.num_classes == 10
    assert build(TIMM).source.num_classes == build(TORCHVISION).source.num_classes == 1000


def test_auxiliary_heads_are_off_so_that_train_mode_returns_logits() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = build("torchvision:googlenet", num_classes=3)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar-resnet20", "'cifar-resnet20': neither .* did you mean 'cifar_resnet20'?"),
        ("resnet18", "did you mean timm:resnet18 or torchvision:resnet18?"),
        ("timm:resnet118", "timm has no net 'resnet118'; did you mean 'resnet18'?"),
        ("timm:resnet18.a1_in", "did you mean 'resnet18.a1_in1k'?"),
        ("timm:hf_hub:someone/net", "timm has no net 'hf_hub:someone/net'"),
        ("timm:local-dir:/tmp", "timm has no net"),
        ("torchvision:resnet17", "did you mean 'resnet1"),
        ("nowhere.py:make", "no such file 'nowhere.py'"),
    ],
)
def test_unknown_names_say_what_was_meant(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        build(name)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("cifar_resnet20", {"widht": 8}, "argument 'widht' is not allowed; did you mean 'width'?"),
        ("cifar_resnet20", {"width": "8"}, "width must be int; got '8'"),
        ("cifar_resnet20", {"width": True}, "width must be int; got True"),
        ("cifar_resnet20", {"width": 10**9}, r"width must be in \[1, 4096\]"),
        ("cifar_resnet20", {"width": 0}, r"width must be in \[1, 4096\]; got 0"),
        ("cifar_resnet20", {"shortcut": "../x"}, "shortcut must be a lower-case word"),
        ("cifar_resnet20", {"shortcut": "none"}, "shortcut"),
        ("cifar_resnet18", {"shortcut": "pad"}, "cannot be built with .*'shortcut': 'pad'"),
        (TIMM, {"pretrained_cfg": "x"}, "'pretrained_cfg' is not allowed"),
        (TIMM, {"drop_rate": float("nan")}, r"drop_rate must be in \[0, 1\]"),
        (TIMM, {"act_layer": "no_such_layer"}, "cannot be built with"),
    ],
)
def test_arguments_outside_the_allow_list_are_refused(name: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        build(name, num_classes=2, args=args)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"num_classes": 0}, {"in_channels": 0}, {"std": (1.0,)}, {"input_size": 0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ParameterError):
        build("cifar_resnet8", **wrong)  # type: ignore[arg-type]


def test_arguments_reach_the_net() -> None:
    wide = build("cifar_resnet8", args={"width": 6, "shortcut": "projection"})
    assert wide.get_submodule("net.layer1.0.conv1.weight".rpartition(".")[0]).out_channels == 6
    assert isinstance(wide.get_submodule("net.layer2.0.downsample"), nn.Sequential)
    assert build(TIMM, num_classes=2, args={"drop_rate": 0.3}).net.drop_rate == 0.3


@pytest.mark.parametrize(
    ("name", "channels", "args"),
    [
        ("cifar_resnet8", 1, {"width": 6}),
        (TIMM, 1, {"drop_rate": 0.1}),
        (TORCHVISION, 3, {"dropout": 0.2}),
        ("torchvision:regnet_y_400mf", 3, {}),  # computes with tensors while it is built
    ],
)
def test_rebuild_gives_the_same_net_and_on_meta_takes_no_memory(
    name: str, channels: int, args: dict[str, float]
) -> None:
    first, before = build(name, num_classes=4, in_channels=channels, args=args), torch.get_rng_state()
    with torch.device("meta"):
        shapes = rebuild(first.source)
    assert all(p.is_meta for p in shapes.parameters())
    assert {k: v.shape for k, v in shapes.state_dict().items()} == {k: v.shape for k, v in first.state_dict().items()}
    again = rebuild(first.source)
    assert torch.equal(torch.get_rng_state(), before)
    again.load_state_dict(first.state_dict())
    x = torch.rand(2, channels, 64, 64)
    assert torch.equal(again.eval()(x), first.eval()(x)) and again.source == first.source


@pytest.mark.parametrize(
    ("builder", "name"),
    [
        ("builtin", "os"),
        ("timm", "hf_hub:a/b"),
        ("timm", "hf-hub:a/b"),
        ("timm", "resnet18.evil"),
        ("torchvision", ".."),
    ],
)
def test_rebuild_refuses_what_is_not_installed(builder: str, name: str) -> None:
    assert not known(builder, name)
    stats = {"num_classes": 2, "in_channels": 1, "mean": (0.5,), "std": (0.5,)}
    with pytest.raises(CheckpointError, match="not among the nets"):
        rebuild(Source(builder=builder, name=name, **stats))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"hardy.load\(path, model=...\)"):
        rebuild(Source(builder="external", name=f"{name}.py:f", **stats))  # type: ignore[arg-type]


def test_known_nets_are_those_of_the_packages() -> None:
    assert known("builtin", "cifar_resnet20") and known("timm", "resnet18") and known("timm", "resnet18.a1_in1k")
    assert known("torchvision", "resnet18")
    assert not known("torchvision", "fasterrcnn_resnet50_fpn")  # no classifier
    assert not known("builtin", "resnet18") and not known("hub", "resnet18")


def test_list_models_takes_globs_with_and_without_prefix() -> None:
    assert list_models("cifar_*18") == ["cifar_resnet18", "cifar_preact_resnet18", "cifar_senet18"]
    assert {"timm:resnet18", "torchvision:resnet18"} <= set(list_models("resnet18"))
    assert list_models("torchvision:resnet18") == ["torchvision:resnet18"]
    assert set(BUILTIN) < set(list_models())
    assert all(name in BUILTIN or known(*name.split(":")) for name in list_models("*net1*"))


def test_pretrained_without_published_weights_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    with pytest.raises(ParameterError, match=r"no published weights. Pass a file: pretrained='weights.safetensors'"):
        build("cifar_resnet20", pretrained=True)

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(HardyError, match=r"cannot be had \(no route to host\). Check the network, or pass a file"):
        build(TIMM, pretrained=True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", "/nonexistent")
    with pytest.raises(HardyError, match="cannot be had"):
        build(TORCHVISION, pretrained=True)


def test_published_torchvision_weights_are_fitted_with_their_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    published = build("torchvision:squeezenet1_1", seed=8).net.state_dict()
    asked: list[dict[str, object]] = []

    def serve(url: str, **options: object) -> dict[str, torch.Tensor]:
        asked.append(options)
        return published

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", serve)
    model = build(TORCHVISION, pretrained=True)
    assert all(torch.equal(v, published[k]) for k, v in model.net.state_dict().items())
    assert (model.source.mean, model.source.std) == IMAGENET and model.source.input_size == 224
    assert asked[0]["weights_only"] is True and asked[0]["check_hash"] is True
    head = build(TORCHVISION, pretrained=True, num_classes=3, in_channels=1)
    torch.testing.assert_close(head.net.features[0].weight, published["features.0.weight"].sum(1, keepdim=True))
    assert head.source.mean == pytest.approx((0.449,)) and head.net.classifier[1].weight.shape[0] == 3


def test_importing_the_models_does_not_import_the_packages() -> None:
    code = "import sys, hardy.models; sys.exit(any(m in sys.modules for m in ('timm', 'torchvision')))"
    env = {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0  # noqa: S603


def test_classifiers_have_an_example_of_every_builder() -> None:
    assert all(isinstance(build(name, num_classes=2), Classifier) for name in ("cifar_resnet14", TIMM))
