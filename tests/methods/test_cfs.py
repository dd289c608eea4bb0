"""Whole channels of single images go, nothing is scaled up, at the places of the rule."""

import math

import pytest
import timm
import torch
from torch import Tensor, nn

from hardy.errors import AttachError, ParameterError
from hardy.methods.cfs import ChannelFeatureSelection, ChannelSelection, channel_feature_selection
from hardy.methods.spatial_dropout import spatial_dropout
from hardy.models import cifar_resnet
from hardy.seeding import fold, keys, root, uniform
from hardy.surgery import capture, set_keys


def key(n: int) -> Tensor:
    return keys(root(0, "test"), torch.arange(n))


@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (2, 6), (1, 1, 1, 1), (0, 2, 2, 2)])
@pytest.mark.parametrize(("p", "rescale"), [(0.2, False), (0.5, True), (1.0, True), (1.0, False)])
def test_equals_the_slow_reference(shape: tuple[int, ...], p: float, rescale: bool) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    want = torch.zeros_like(x)
    for i, row in enumerate(x):
        u = uniform(key(len(x))[i : i + 1], 0, (len(row),))[0]
        for c, channel in enumerate(row):
            if u[c] >= p:
                want[i, c] = channel / (1 - p) if rescale else channel
    got = channel_feature_selection(x, p=p, rescale=rescale, training=True, key=key(len(x)))
    torch.testing.assert_close(got, want)


def test_the_share_is_p_and_the_mean_falls_by_it_unless_rescaled() -> None:
    n, c, p = 2000, 8, 0.2
    x = torch.ones(n, c, 2, 2)
    y = channel_feature_selection(x, p=p, rescale=False, training=True, key=key(n))
    sigma = (p * (1 - p) / (n * c)) ** 0.5
    assert abs((y == 0).float().mean() - p) < 4 * sigma and abs(y.mean() - (1 - p)) < 4 * sigma
    assert torch.equal((y == 0).flatten(2).all(-1), (y == 0).flatten(2).any(-1))  # whole channels
    assert set(y.unique().tolist()) == {0.0, 1.0}  # kept values are the very same
    scaled = channel_feature_selection(x, p=p, rescale=True, training=True, key=key(n))
    torch.testing.assert_close(scaled, spatial_dropout(x, p=p, training=True, key=key(n)))


def test_identity_where_there_is_nothing_to_do() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert channel_feature_selection(x, p=0.5, rescale=False, training=False, key=key(2)) is x
    assert channel_feature_selection(x, p=0.0, rescale=False, training=True, key=key(2)) is x
    layer = ChannelSelection(p=0.9, rescale=False, seed=0)
    assert layer.eval()(x) is x and (layer.train()(x) == 0).any() and "p=0.9" in repr(layer)


def test_drops_from_what_enters_each_branch_of_a_residual_net() -> None:
    torch.manual_seed(0)
    model, x = cifar_resnet.cifar_resnet_6n2(in_channels=3, depth=8, num_classes=4), torch.rand(6, 3, 16, 16)
    names = list(model.state_dict())
    with ChannelFeatureSelection(p=0.5).attach(model, example=x, seed=7) as a:
        assert a.sites == tuple(
            f"layer{stage}.0.conv1@input" for stage in (1, 2, 3)
        )  # identity shortcuts are left alone
        assert list(model.state_dict()) == names
        k = keys(root(1, "images"), torch.arange(6))
        with capture(model, ["relu#0", "layer1.0.conv1", "layer1.0.conv2", "layer1.0"]) as seen:
            set_keys(model.train(), k)
            model(x)
        mine = fold(fold(k, root(7, "cfs:layer1.0.conv1@input")), 0)
        entered = seen["relu#0"]
        want = channel_feature_selection(entered, p=0.5, rescale=False, training=True, key=mine)
        block = model.get_submodule("layer1.0")
        torch.testing.assert_close(seen["layer1.0.conv1"], block.conv1(want))  # type: ignore[operator]  # a convolution
        assert (want == 0).any() and not torch.equal(want, entered)


def test_a_net_without_blocks_gets_it_at_every_convolution() -> None:
    model = timm.create_model("vgg11_bn", num_classes=4)
    with ChannelFeatureSelection().attach(model, example=torch.zeros(1, 3, 64, 64), seed=0) as a:
        convs = [name for name, m in model.features.named_children() if isinstance(m, nn.Conv2d)]
        assert a.sites[: len(convs)] == tuple(f"features.{name}" for name in convs)


def test_what_cannot_be_is_an_error() -> None:
    with pytest.raises(ParameterError, match=r"ChannelFeatureSelection: p must be in \[0, 1\]; got nan"):
        ChannelFeatureSelection(p=math.nan)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    x = torch.rand(1, 3, 8, 8)
    with pytest.raises(
        AttachError, match=r"cfs: the net must have layers of at least 8 channels.* Name modules in sites"
    ):
        ChannelFeatureSelection().attach(net, example=x, seed=0)
    with ChannelFeatureSelection(sites=("0",)).attach(net, example=x, seed=0) as a:
        assert a.sites == ("0",)

    class Lines(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(2)

    odd = nn.Sequential(nn.Conv2d(3, 8, 1), Lines(), nn.Flatten(), nn.Linear(512, 2))
    with pytest.raises(AttachError, match=r"cfs: 1 must give \(n, c, h, w\) or \(n, c\); got \(1, 8, 64\)"):
        ChannelFeatureSelection(sites=("1",)).attach(odd, example=x, seed=0)
