"""FPCC is its three parts at once, at the places of the released nets and of the rule."""

from typing import Any, cast

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from hardy import seeding
from hardy.errors import ParameterError
from hardy.io import load_model
from hardy.methods._blocks import places
from hardy.methods.cfs import ChannelFeatureSelection, channel_feature_selection
from hardy.methods.fpcc import FPCC, PRESETS
from hardy.methods.pro import PatternConsistency, PatternTap, feature_pattern, pattern_distances
from hardy.methods.sfm import spatial_feature_modification
from hardy.objective import Objective
from hardy.surgery import attach, attachments, strip
from hardy.taps import After

KEY = seeding.keys(seeding.root(0, "images"), torch.arange(5))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True),
        nn.Conv2d(8, 12, 3, 2, padding=1), nn.BatchNorm2d(12), nn.ReLU(True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 9), nn.ReLU(True), nn.Linear(9, 4),
    )  # fmt: skip


def test_a_step_is_the_released_vgg_written_out() -> None:
    """Noise; convolution, pattern, dropped channels, norm, activation; the last layer as it is."""
    x, y = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 1])
    model = net()
    a = FPCC(weight=0.5, p=0.4).attach(model, example=x, seed=3)
    taps = {tap.name: tap for tap in a.insert.taps if isinstance(tap, PatternTap)}
    assert list(taps) == ["3", "8"] and a.sites == ("0", "3", "8")
    logits, losses = Objective(model)(x, y, KEY)

    def drop(features: Tensor, name: str) -> Tensor:
        key = seeding.fold(seeding.fold(KEY, seeding.root(3, f"fpcc:{name}")), 0)
        return channel_feature_selection(features, p=0.4, rescale=False, training=True, key=key)

    plain = net()
    z = spatial_feature_modification(x, eps=8 / 255, noise="sign", key=seeding.fold(KEY, a.insert.root))
    total = torch.zeros(())
    for i, layer in enumerate(plain):
        z = layer(z)
        name = str(i)
        if name in taps:
            u = feature_pattern(z, normalise="zscore")
            total = total + pattern_distances(u, taps[name].patterns[y], distance="l1").mean()
        z = drop(z, name) if name in a.sites else z
    torch.testing.assert_close(logits, z)
    torch.testing.assert_close(losses["fpcc"], 0.5 * total)
    assert list(losses) == ["task", "fpcc"]


def test_vgg16_gets_the_released_table() -> None:
    model = torchvision.models.vgg16_bn(num_classes=10)
    convs = [f"features.{i}" for i, m in enumerate(model.features) if isinstance(m, nn.Conv2d)]
    with PRESETS["repo-vgg16_bn"].attach(model, example=torch.zeros(1, 3, 32, 32), seed=0) as a:
        assert len(convs) == 13 and a.sites == (*convs, "classifier.0", "classifier.3")
        compared = [tap.name for tap in a.insert.taps if isinstance(tap, PatternTap)]
        assert compared == [*convs[1:], "classifier.0", "classifier.3"]  # 12 + 2 terms


def test_wrn_gets_the_released_table() -> None:
    model = load_model("cifar_wrn28_10", num_classes=10)
    with PRESETS["repo-wrn28_10"].attach(model, example=torch.zeros(1, 3, 32, 32), seed=0) as a:
        blocks = [f"net.layer{g}.{b}" for g in (1, 2, 3) for b in range(4)]
        drops = {tap.name for tap in a.insert.taps if isinstance(tap, After)}
        assert drops == {"net.conv1", *(f"{b}.conv1" for b in blocks), *blocks}
        compared = {tap.name for tap in a.insert.taps if isinstance(tap, PatternTap)}
        short = {f"net.layer{g}.0.downsample" for g in (1, 2, 3)}
        assert compared == {f"{b}.conv{i}" for b in blocks for i in (1, 2)} | short


@pytest.mark.parametrize("name", ["cifar_resnet50", "timm:resnet50", "torchvision:resnet50"])
def test_resnet50_gets_the_released_table(name: str) -> None:
    model = load_model(name, num_classes=10, pretrained=False) if ":" in name else load_model(name, num_classes=10)
    with PRESETS["repo-resnet50"].attach(model, example=torch.zeros(1, 3, 64, 64), seed=0) as a:
        stages = ((1, 3), (2, 4), (3, 6), (4, 3))
        blocks = [f"layer{s}.{b}" for s, n in stages for b in range(n)]
        short = [f"layer{s}.0.downsample.0" for s, _ in stages]
        inner = [tap.name.removeprefix("net.") for tap in a.insert.taps if isinstance(tap, After)]
        assert set(inner) == {f"{b}.conv1@input" for b in blocks} | {f"{s}@input" for s in short}
        compared = {tap.name.removeprefix("net.") for tap in a.insert.taps if isinstance(tap, PatternTap)}
        assert compared == {f"{b}.conv3" for b in blocks} | set(short)


@pytest.mark.parametrize(
    ("name", "drop", "compare"),
    [
        ("resnet18", "layer2.0.conv1@input", ["layer2.0.conv2", "layer2.0.downsample.0"]),
        (
            "seresnet50",
            "layer1.0.downsample@input",
            ["layer1.0.conv3", "layer1.0.downsample.0"],
        ),  # no SE, which is pooled
        ("regnety_002", "s2.b1.conv1@input", ["s2.b1.conv3.conv", "s2.b1.downsample.conv"]),
        ("efficientnet_b0", "blocks.1.1.conv_pw@input", ["blocks.1.1.conv_pwl"]),  # no depthwise convolution
        ("convnext_atto", "stages.0.blocks.0.conv_dw@input", ["stages.0.blocks.0.mlp.fc2"]),
    ],
)
def test_the_rule_on_nets_that_people_use(name: str, drop: str, compare: list[str]) -> None:
    model = timm.create_model(name, num_classes=10)
    found = places(model, torch.zeros(1, 3, 64, 64), ("blocks",))
    assert drop in found.drop and set(compare) <= set(found.compare) and not found.notes
    modules = [model.get_submodule(site.partition("#")[0]) for site in found.compare]
    assert all(
        isinstance(m, nn.Conv2d) and m.out_channels >= 8 and (m.groups == 1 or m.groups < m.in_channels)
        for m in modules
    )
    assert not any("se." in site or "classifier" in site or site == "fc" for site in (*found.drop, *found.compare))


def test_places_with_few_channels_are_left_out_and_said() -> None:
    thin = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 9))
    found = places(thin, torch.zeros(1, 3, 8, 8), ("blocks",))
    assert (found.drop, found.compare) == (("1",), ("1",))
    assert found.notes == (
        "no residual blocks: all convolutions of the main path count",
        "left out, as they have fewer than 8 channels: 0 (1 in all)",
    )
    assert places(thin, torch.zeros(1, 3, 8, 8), ("0",)).drop == ()  # nothing asked for


def test_zero_knobs_leave_the_plain_step() -> None:
    x, y = torch.rand(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 1])
    model, plain = net(), net()
    FPCC(eps=0.0, p=0.0, weight=0.0).attach(model, example=x, seed=3)
    logits, losses = Objective(model)(x, y, KEY)
    assert torch.equal(logits, Objective(plain)(x, y, KEY)[0]) and losses["fpcc"] == 0


def test_options_reach_the_parts() -> None:
    spec = FPCC(eps=0.1, noise="uniform", p=0.3, rescale=True, weight=2.0, distance="l2", patterns="ema", momentum=0.5)
    assert (spec.sfm.eps, spec.sfm.noise) == (0.1, "uniform") and (spec.cfs.p, spec.cfs.rescale) == (0.3, True)
    assert (spec.pro.weight, spec.pro.distance, spec.pro.patterns, spec.pro.momentum) == (2.0, "l2", "ema", 0.5)
    model, x = net(), torch.rand(5, 3, 8, 8)
    a = spec.attach(model, example=x, seed=0)
    tap = cast("Any", a.insert.taps[0])
    assert tap.spec == spec.pro and not list(tap.parameters())
    assert FPCC(weight_decay=False).pro == PatternConsistency(weight_decay=False) and FPCC().pro == PatternConsistency()
    assert attachments(strip(model)) == []
    for fields, says in (
        ({"eps": 2.0}, "FPCC: eps must"),
        ({"p": -1.0}, "FPCC: p must"),
        ({"weight": -1.0}, "FPCC: weight must"),
    ):
        with pytest.raises(ParameterError, match=says):
            FPCC(**fields)  # type: ignore[arg-type]  # on purpose


def test_a_part_beside_it_drops_other_channels() -> None:
    x, y = torch.rand(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 1])
    losses = []
    for methods in ([FPCC()], [FPCC(), ChannelFeatureSelection()]):
        model = net()
        attach(model, methods, example=x, seed=0)
        losses.append(Objective(model)(x, y, KEY)[1]["task"])
    assert losses[0] != losses[1]
