"""Whole branches go, the deeper the more often, the others are scaled, and each image decides with its own key."""

import math

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from hardy.errors import AttachError, LayerNotFoundError, ParameterError
from hardy.methods.stochastic_depth import CARD, DropPath, StochasticDepth, branch_rates, stochastic_depth
from hardy.seeding import fold, keys, root, uniform
from hardy.surgery import capture, set_keys


def key(n: int) -> Tensor:
    return keys(root(0, "test"), torch.arange(n))


def reference(x: Tensor, p: float, key: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for i, row in enumerate(x):
        if uniform(key[i : i + 1], 0, ())[0] >= p:
            out[i] = row / (1 - p)
    return out


@pytest.mark.parametrize("shape", [(5, 4, 5, 7), (1, 1, 1, 1), (4, 6), (0, 2, 2, 2), (3,)])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1.0])
def test_equals_the_slow_reference(shape: tuple[int, ...], p: float) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    got = stochastic_depth(x, p=p, training=True, key=key(shape[0]))
    torch.testing.assert_close(got, reference(x, p, key(shape[0])))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_rate_is_p_the_mean_stays_and_the_whole_row_goes(p: float) -> None:
    n = 8000
    y = stochastic_depth(torch.ones(n, 2, 3, 3), p=p, training=True, key=key(n)).flatten(1)
    dropped = y == 0
    assert torch.equal(dropped.all(1), dropped.any(1))
    assert abs(dropped[:, 0].float().mean() - p) < 4 * (p * (1 - p) / n) ** 0.5
    assert abs(y.mean() - 1) < 4 * (p / (1 - p) / n) ** 0.5


def test_equals_torchvision_and_timm_in_distribution() -> None:
    torch.manual_seed(0)
    x = torch.ones(8000, 3)
    ours = stochastic_depth(x, p=0.3, training=True, key=key(8000))
    for theirs in (torchvision.ops.stochastic_depth(x, 0.3, "row"), timm.layers.drop_path(x, 0.3, training=True)):
        torch.testing.assert_close(ours.unique(), theirs.unique())
        assert (ours.mean() - theirs.mean()).abs() < 4 * (2 * 0.3 / 0.7 / 8000) ** 0.5


def test_rates_rise_linearly_to_p_as_in_the_paper() -> None:
    assert branch_rates(54, p=0.5, decay="linear")[0] == pytest.approx(0.5 / 54)
    for number in (1, 3, 54):
        rates = branch_rates(number, p=0.5, decay="linear")
        survival = [1 - depth / number * (1 - 0.5) for depth in range(1, number + 1)]  # Equation 4, p_L = 0.5
        assert [1 - rate for rate in rates] == pytest.approx(survival)
    assert sum(1 - rate for rate in branch_rates(54, p=0.5, decay="linear")) == pytest.approx((3 * 54 - 1) / 4)
    assert branch_rates(3, p=0.2, decay="uniform") == (0.2, 0.2, 0.2)


def test_identity_where_there_is_nothing_to_do() -> None:
    x = torch.randn(20, 3, 4, 4)
    assert stochastic_depth(x, p=0.5, training=False, key=key(20)) is x
    assert stochastic_depth(x, p=0.0, training=True, key=key(20)) is x
    layer = DropPath(p=0.9, seed=0)
    assert layer.eval()(x) is x
    assert (layer.train()(x) == 0).any()
    assert not stochastic_depth(x, p=1.0, training=True, key=key(20)).any()


def test_gradient_is_that_of_the_kept_rows() -> None:
    x = torch.randn(9, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    y = stochastic_depth(x, p=0.4, training=True, key=key(9))
    (g,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(g, torch.where(y == 0, 0.0, 1 / 0.6).double())
    assert (g == 0).any() and (g != 0).any()


def test_rows_do_not_depend_on_the_batch() -> None:
    x, k, order = torch.randn(16, 4), key(16), torch.tensor([5, 0, 3, 1, 15])
    whole = stochastic_depth(x, p=0.5, training=True, key=k)
    assert torch.equal(stochastic_depth(x[order], p=0.5, training=True, key=k[order]), whole[order])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_and_memory_format_stay(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, 5).to(dtype, memory_format=torch.channels_last)
    y = stochastic_depth(x, p=0.5, training=True, key=key(2))
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(inputs, 8, 1), nn.Conv2d(8, outputs, 3, stride, 1)
        self.bn = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(self.first(x))) + self.shortcut(x))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [Block(8, 8, 1), Block(8, 8, 1), Block(8, 12, 2), Block(12, 12, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), *blocks, *head)


@pytest.mark.parametrize(
    ("spec", "rates"),
    [
        (StochasticDepth(p=0.8), {"3.bn": 0.2, "4.bn": 0.4, "5.bn": 0.6, "6.bn": 0.8}),
        (StochasticDepth(p=0.8, decay="uniform"), {"3.bn": 0.8, "4.bn": 0.8, "5.bn": 0.8, "6.bn": 0.8}),
        (StochasticDepth(p=0.6, sites=("stage2",)), {"5.bn": 0.3, "6.bn": 0.6}),
        (StochasticDepth(p=0.6, sites=("top", "3.bn")), {"3.bn": 0.6, "5.bn": 0.2, "6.bn": 0.4}),
        (StochasticDepth(p=0.6, sites=("6.bn", "residual")), {"3.bn": 0.15, "4.bn": 0.3, "5.bn": 0.45, "6.bn": 0.6}),
        (StochasticDepth(p=0.6, sites=("[56].bn",)), {"5.bn": 0.3, "6.bn": 0.6}),
    ],
)
def test_attach_drops_the_branches_with_the_rates_and_the_seed_of_the_caller(
    spec: StochasticDepth, rates: dict[str, float]
) -> None:
    model, x = net(), torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    k, names = keys(root(1, "images"), torch.arange(12)), list(model.state_dict())
    before = model.eval()(x)
    model.train()
    a = spec.attach(model, example=x[:2], seed=7)
    assert a.sites == tuple(rates) and list(model.state_dict()) == names and a.notes == ()
    with (
        capture(model, [f"{name.partition('.')[0]}.conv" for name in rates]) as given,
        capture(model, list(rates)) as got,
    ):
        set_keys(model, k)
        model(x)
    for name, p in rates.items():
        branch = nn.functional.batch_norm(given[name.replace("bn", "conv")], None, None, training=True)
        mine = fold(fold(k, root(7, f"stochastic_depth:{name}")), 0)
        torch.testing.assert_close(got[name], stochastic_depth(branch, p=p, training=True, key=mine))
    assert any((got[name] == 0).flatten(1).all(1).any() for name in rates)
    a.detach()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    assert torch.equal(model.eval()(x), before)


def test_a_dropped_block_is_its_shortcut() -> None:
    model, x = net(), torch.randn(6, 3, 8, 8)
    StochasticDepth(p=1.0, decay="uniform").attach(model, example=x, seed=0)
    with capture(model, ["2", "3", "4"]) as f:
        model(x)
    assert torch.equal(f["2"], f["3"]) and torch.equal(f["3"], f["4"])


@pytest.mark.parametrize(("name", "count"), [("resnet10t", 4), ("legacy_seresnet18", 8)])
def test_finds_the_branches_of_other_nets_and_of_their_stages(name: str, count: int) -> None:
    model, x = timm.create_model(name, num_classes=2), torch.zeros(1, 3, 33, 64)
    with StochasticDepth().attach(model, example=x, seed=0) as a:
        assert len(a.sites) == count
    with (
        StochasticDepth(sites=("bottom",)).attach(model, example=x, seed=0) as a,
        StochasticDepth(sites=("top",)).attach(model, example=x, seed=0) as b,
    ):
        assert len(a.sites) + len(b.sites) == count and not set(a.sites) & set(b.sites) and a.sites and b.sites


def test_a_net_without_residual_sums_is_an_error_that_says_why() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(AttachError, match=r"must add branches to shortcuts; no such sum of feature maps was found"):
        StochasticDepth().attach(plain, example=x, seed=0)
    with pytest.raises(AttachError, match=r"must add branches to shortcuts; no such sum"):
        StochasticDepth(sites=("top",)).attach(plain, example=x, seed=0)
    with StochasticDepth(sites=("1",)).attach(plain, example=x, seed=0) as a:  # who names a module knows better
        assert a.sites == ("1",)


def test_a_place_that_cannot_be_dropped_is_an_error() -> None:
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(AttachError, match=r"stochastic_depth: 'stem' must have residual branches; it has none"):
        StochasticDepth(sites=("stem",)).attach(net(), example=x, seed=0)
    with pytest.raises(LayerNotFoundError, match=r"the net has no stage 'stage9'"):
        StochasticDepth(sites=("stage9",)).attach(net(), example=x, seed=0)
    with pytest.raises(LayerNotFoundError, match=r"no layer 'nowhere'"):
        StochasticDepth(sites=("nowhere",)).attach(net(), example=x, seed=0)


def test_stochastic_depth_of_the_net_itself_is_named() -> None:
    x = torch.zeros(1, 3, 32, 32)
    model = timm.create_model("resnet10t", num_classes=2, drop_path_rate=0.3)
    with StochasticDepth().attach(model, example=x, seed=0) as a:
        assert len(a.notes) == 1 and a.notes[0].startswith("the net has stochastic depth of its own, and both act: ")
        assert "layer4.0.drop_path (p 0.3)" in a.notes[0] and a.notes[0].endswith("(3 in all)")
    block = nn.Sequential(nn.Conv2d(3, 4, 3), torchvision.ops.StochasticDepth(0.2, "row"))
    with StochasticDepth(sites=("0",)).attach(block, example=x, seed=0) as a:
        assert a.notes == ("the net has stochastic depth of its own, and both act: 1 (p 0.2) (1 in all)",)


def test_a_block_called_twice_has_the_rate_of_its_first_call_and_says_so() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.fc = nn.Conv2d(3, 8, 3), Block(8, 8, 1), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.block(self.block(self.stem(x))).mean((2, 3)))
            return out

    with StochasticDepth(p=0.5).attach(Twice(), example=torch.zeros(1, 3, 8, 8), seed=0) as a:
        assert a.notes == ("a module that serves several branches drops all with the rate of the first",)
        assert a.sites == ("block.bn",) and [tap.layer.p for tap in a.insert.taps] == [0.25]


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_a_probability_out_of_range_is_an_error(p: float) -> None:
    with pytest.raises(ParameterError, match=r"StochasticDepth: p must be in \[0, 1\]; got"):
        StochasticDepth(p=p)


def test_says_what_it_is() -> None:
    assert "p=0.2" in repr(DropPath(p=0.2, seed=0))
    assert CARD.kind == "layer" and not CARD.live and StochasticDepth() == StochasticDepth(p=0.5, decay="linear")


@pytest.mark.parametrize("p", [0.003, 0.05, 0.1])  # rounded, the factors would be off by 0.3, 0.2, 0.16 %
def test_half_precision_keeps_the_mean(p: float) -> None:
    x = torch.rand(64, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    y = stochastic_depth(x, p=p, training=True, key=keys(root(0, "half"), torch.arange(64))).double()
    ratio = y.sum() / x.double()[y != 0].sum()
    assert abs(ratio * (1 - p) - 1) < 1e-3
