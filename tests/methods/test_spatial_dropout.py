"""Whole channels go, the others are scaled, and each image decides with its own key."""

import math

import pytest
import timm
import torch
from torch import Tensor, nn

from hardy.errors import AttachError, LayerNotFoundError, ParameterError
from hardy.methods.spatial_dropout import CARD, PRESETS, SpatialDropout, SpatialDropout2d, spatial_dropout
from hardy.seeding import fold, keys, root, uniform
from hardy.surgery import capture, set_keys


def key(n: int) -> Tensor:
    return keys(root(0, "test"), torch.arange(n))


def reference(x: Tensor, p: float, key: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for i, row in enumerate(x):
        u = uniform(key[i : i + 1], 0, (len(row),))[0]
        for c, channel in enumerate(row):
            if u[c] >= p:
                out[i, c] = channel / (1 - p)
    return out


@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (1, 1, 1, 1), (2, 6, 3, 3), (0, 2, 2, 2)])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1.0])
def test_equals_the_slow_reference(shape: tuple[int, ...], p: float) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        spatial_dropout(x, p=p, training=True, key=key(shape[0])), reference(x, p, key(shape[0]))
    )


@pytest.mark.parametrize("size", [1, 2, 4, 7])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_rate_is_p_and_the_mean_stays(size: int, p: float) -> None:
    n, c = 1000, 8
    y = spatial_dropout(torch.ones(n, c, size, size), p=p, training=True, key=key(n))
    dropped = (y == 0).flatten(2)
    assert torch.equal(dropped.all(-1), dropped.any(-1))  # whole channels
    assert abs(dropped.float().mean() - p) < 4 * (p * (1 - p) / (n * c)) ** 0.5
    assert abs(y.mean() - 1) < 4 * (p / (1 - p) / (n * c)) ** 0.5
    both = (dropped[:, 0, 0] & dropped[:, 1, 0]).float().mean()  # channels decide alone
    assert abs(both - p * p) < 4 * (p * p * (1 - p * p) / n) ** 0.5


def test_equals_torch_in_distribution() -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 3, 2, 2)
    ours, theirs = spatial_dropout(x, p=0.3, training=True, key=key(4000)), nn.Dropout2d(0.3)(x)
    assert torch.equal(ours.unique(), theirs.unique())
    assert (ours.mean() - theirs.mean()).abs() < 4 * (2 * 0.3 / 0.7 / 12000) ** 0.5


def test_identity_where_there_is_nothing_to_do() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert spatial_dropout(x, p=0.5, training=False, key=key(2)) is x
    assert spatial_dropout(x, p=0.0, training=True, key=key(2)) is x
    layer = SpatialDropout2d(p=0.9, seed=0)
    assert layer.eval()(x) is x
    assert (layer.train()(x) == 0).any()
    assert not spatial_dropout(x, p=1.0, training=True, key=key(2)).any()


def test_gradient_is_that_of_the_kept_channels() -> None:
    x = torch.randn(5, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    y = spatial_dropout(x, p=0.4, training=True, key=key(5))
    (g,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(g, torch.where(y == 0, 0.0, 1 / 0.6).double())


def test_rows_do_not_depend_on_the_batch() -> None:
    x, k, order = torch.randn(6, 4, 3, 3), key(6), torch.tensor([5, 0, 3, 1, 4, 2])
    whole = spatial_dropout(x, p=0.5, training=True, key=k)
    assert torch.equal(spatial_dropout(x[order], p=0.5, training=True, key=k[order]), whole[order])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_and_memory_format_stay(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, 5).to(dtype, memory_format=torch.channels_last)
    y = spatial_dropout(x, p=0.5, training=True, key=key(2))
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 8, 1), (8, 8, 2), (8, 8, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def test_attach_drops_after_the_norm_with_the_seed_of_the_caller() -> None:
    model, x = net(), torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    k, names = keys(root(1, "images"), torch.arange(6)), list(model.state_dict())
    before = model.eval()(x)
    model.train()
    with capture(model, ["7"]) as plain:
        model(x)
    with SpatialDropout(p=0.3).attach(model, example=x, seed=7) as a, capture(model, ["7"]) as f:
        assert a.sites == ("7",) and list(model.state_dict()) == names  # "top" of two stages is the second
        set_keys(model, k)
        model(x)
        mine = fold(fold(k, root(7, "spatial_dropout:7")), 0)
        assert torch.equal(f["7"], spatial_dropout(plain["7"], p=0.3, training=True, key=mine))
        assert (f["7"] == 0).any() and not (f["7"] == 0).all()
    for norm in (1, 4, 7):
        model[norm].reset_running_stats()
    assert torch.equal(model.eval()(x), before)


def test_the_preset_repo_is_at_the_places_of_the_baseline() -> None:
    assert PRESETS["repo"].p == SpatialDropout().p == 0.1
    model = timm.create_model("resnet18", num_classes=2)
    with PRESETS["repo"].attach(model, example=torch.zeros(1, 3, 32, 32), seed=0) as a:
        assert a.sites == tuple(f"layer{s}.{b}.{m}" for s in (3, 4) for b in (0, 1) for m in ("bn1", "conv2"))


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_a_probability_out_of_range_is_an_error(p: float) -> None:
    with pytest.raises(ParameterError, match=r"SpatialDropout: p must be in \[0, 1\]; got"):
        SpatialDropout(p=p)


def test_a_place_that_cannot_be_dropped_is_an_error() -> None:
    model, x = net(), torch.randn(2, 3, 8, 8)
    with pytest.raises(AttachError, match=r"spatial_dropout: 10 must give \(n, c, h, w\); got \(\d, 8\)"):
        SpatialDropout(sites=("10",)).attach(model, example=x, seed=0)
    shallow = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(LayerNotFoundError, match=r"the net has no stage 'top'; it has stem"):
        SpatialDropout().attach(shallow, example=x, seed=0)


def test_says_what_it_is() -> None:
    assert "p=0.2" in repr(SpatialDropout2d(p=0.2, seed=0))
    assert CARD.kind == "layer" and not CARD.live


@pytest.mark.parametrize("p", [0.05, 0.1, 0.3])
def test_half_precision_keeps_the_mean(p: float) -> None:
    x = torch.rand(64, 8, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    y = spatial_dropout(x, p=p, training=True, key=key(64)).double()
    ratio = y.sum() / x.double()[y != 0].sum()  # a rounded factor would be off by up to 0.2 %
    assert abs(ratio * (1 - p) - 1) < 1e-3
