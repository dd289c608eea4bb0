"""DropBlock against Algorithm 1 written as loops, and its rate against every possible mask of small maps."""

import itertools
import math

import pytest
import timm.layers
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hardy.errors import AttachError, LayerNotFoundError, ParameterError
from hardy.methods.drop_block import CARD, PRESETS, DropBlock, DropBlock2d, drop_block, drop_rate, seed_rate
from hardy.seeding import fold, keys, root, uniform
from hardy.surgery import capture, set_keys

SMALL = [(1, 1), (2, 2), (4, 4), (7, 7), (8, 8), (14, 14), (3, 5), (16, 2), (1, 6)]


def key(n: int) -> Tensor:
    return keys(root(0, "test"), torch.arange(n))


def reference(x: Tensor, gamma: float, k: int, *, shared: bool, scale: float | None, key: Tensor) -> Tensor:
    """Algorithm 1, line by line, each row by itself."""
    n, c, h, w = x.shape
    kh, kw = min(k, h), min(k, w)
    seeds = uniform(key, 0, (1 if shared else c, h - kh + 1, w - kw + 1)) < gamma
    mask = torch.ones_like(x)
    for row, channel, i, j in seeds.nonzero().tolist():
        mask[row, slice(None) if shared else channel, i : i + kh, j : j + kw] = 0
    out = x * mask
    for row in range(n):
        kept = mask[row].sum().item()
        out[row] *= scale if scale is not None else (mask[row].numel() / kept if kept else 0)
    return out


@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (1, 1, 1, 1), (3, 2, 5, 5), (2, 2, 2, 9), (0, 2, 4, 4)])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize(("shared", "scale"), [(False, 1.25), (True, None), (False, None), (True, 0.5)])
def test_equals_algorithm_1(shape: tuple[int, int, int, int], k: int, shared: bool, scale: float | None) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    got = drop_block(x, gamma=0.15, block_size=k, shared=shared, scale=scale, training=True, key=key(shape[0]))
    torch.testing.assert_close(got, reference(x, 0.15, k, shared=shared, scale=scale, key=key(shape[0])))


def enumerated(size: tuple[int, int], gamma: float, k: int) -> float:
    """Expected share of zeros: the mean over every set of blocks, drawn onto the map."""
    (h, w), (kh, kw) = size, (min(k, side) for side in size)
    places = list(itertools.product(range(h - kh + 1), range(w - kw + 1)))
    total = 0.0
    for chosen in itertools.product([False, True], repeat=len(places)):
        mask = torch.zeros(h, w)
        for (i, j), there in zip(places, chosen, strict=True):
            if there:
                mask[i : i + kh, j : j + kw] = 1
        total += gamma ** sum(chosen) * (1 - gamma) ** (len(places) - sum(chosen)) * mask.mean().item()
    return total


@pytest.mark.parametrize(
    ("size", "k"), [((1, 1), 3), ((2, 2), 3), ((4, 4), 2), ((4, 4), 3), ((4, 5), 3), ((3, 3), 1), ((2, 6), 4)]
)
def test_the_rate_is_that_of_all_possible_masks(size: tuple[int, int], k: int) -> None:
    for gamma in (0.02, 0.3, 0.9):
        assert drop_rate(size, gamma=gamma, block_size=k) == pytest.approx(enumerated(size, gamma, k), abs=1e-7)
    gamma = seed_rate(size, p=0.1, block_size=k, rate="exact")
    assert enumerated(size, gamma, k) == pytest.approx(0.1, abs=1e-7)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.floats(0, 1), st.sampled_from(["exact", "paper"]))
@settings(max_examples=200, deadline=None)
def test_exact_drops_p_and_paper_at_most_p(h: int, w: int, k: int, p: float, rate: str) -> None:
    gamma = seed_rate((h, w), p=p, block_size=k, rate=rate)
    dropped = drop_rate((h, w), gamma=gamma, block_size=k)
    assert 0 <= gamma <= 1 + 1e-12
    if rate == "exact":
        assert dropped == pytest.approx(p, abs=1e-10)
    else:
        assert dropped <= p + 1e-10


def test_the_rate_of_the_paper_is_equation_1() -> None:
    assert seed_rate((14, 10), p=0.1, block_size=7, rate="paper") == pytest.approx(0.1 / 49 * 140 / (8 * 4))
    assert seed_rate((2, 9), p=0.1, block_size=3, rate="paper") == pytest.approx(0.1 / 6 * 18 / 7)  # block cut to 2x3


@pytest.mark.parametrize("size", SMALL)
@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_measured_rate_is_p_on_small_maps(size: tuple[int, int], k: int, p: float) -> None:
    n, c = max(20, 40_000 // math.prod(size) // 4), 4
    layer = DropBlock2d(DropBlock(p=p, block_size=k), size=size, seed=0)
    y = layer(torch.ones(n, c, *size))
    share = (y == 0).float().mean((2, 3)).flatten()
    assert abs(share.mean() - p) < 4 * share.std() / (n * c) ** 0.5
    assert abs(y.mean() - 1) < 4 * share.std() / (n * c) ** 0.5 / (1 - p)  # and so the mean stays


@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("size", [7, 8, 14])
def test_torchvision_and_timm_drop_another_share(size: int, k: int) -> None:
    torch.manual_seed(0)
    x, p = torch.ones(200, 50, size, size), 0.3
    gamma = seed_rate((size, size), p=p, block_size=k, rate="paper")
    ours = drop_block(x, gamma=gamma, block_size=k, shared=False, scale=1.0, training=True, key=key(200))
    theirs = torchvision.ops.drop_block2d(x, p, k)
    # torchvision is our rate="paper": less than p, by what its formula leaves out
    want = drop_rate((size, size), gamma=gamma, block_size=k)
    for y in (ours, theirs):
        share = (y == 0).float().mean((2, 3)).flatten()
        assert abs(share.mean() - want) < 4 * share.std() / len(share) ** 0.5
    assert want < 0.28 or size <= k
    # timm takes the rate of blocks inside the map for blocks around any pixel
    timms = timm.layers.drop_block_2d(x, drop_prob=p, block_size=k, couple_channels=False)
    near = [min(i + k // 2, size - 1) - max(i - k // 2, 0) + 1 for i in range(size)]
    formula = 1 - sum((1 - gamma) ** (a * b) for a in near for b in near) / size**2
    share = (timms == 0).float().mean((2, 3)).flatten()
    assert abs(share.mean() - formula) < 4 * share.std() / len(share) ** 0.5 + 1e-6
    assert formula > p


def test_torchvision_refuses_the_even_blocks_that_small_maps_leave() -> None:
    with pytest.raises(ValueError, match="block size should be odd"):
        torchvision.ops.drop_block2d(torch.ones(1, 1, 4, 4), 0.1, 5)
    layer = DropBlock2d(DropBlock(p=0.5, block_size=5), size=(4, 4), seed=0)
    assert set(layer(torch.ones(20, 5, 4, 4)).mean((2, 3)).flatten().tolist()) == {0.0, 2.0}  # whole channels


def test_is_dropout_for_blocks_of_one_and_spatial_dropout_for_blocks_of_the_map() -> None:
    assert seed_rate((6, 9), p=0.3, block_size=1, rate="exact") == pytest.approx(0.3)
    assert seed_rate((6, 9), p=0.3, block_size=9, rate="exact") == pytest.approx(0.3)  # the paper's two limits
    y = drop_block(
        torch.ones(50, 4, 6, 9), gamma=0.3, block_size=9, shared=False, scale=1.0, training=True, key=key(50)
    )
    assert torch.equal((y == 0).flatten(2).any(2), (y == 0).flatten(2).all(2)) and (y == 0).any()


def test_channels_share_their_blocks_only_on_request() -> None:
    x = torch.ones(50, 3, 8, 8)
    for shared in (True, False):
        y = drop_block(x, gamma=0.05, block_size=3, shared=shared, scale=1.0, training=True, key=key(50))
        assert torch.equal(y[:, 0], y[:, 1]) is shared and (y == 0).any()


def test_the_scale_of_a_row_is_that_of_its_own_mask() -> None:
    layer = DropBlock2d(DropBlock(p=0.4, scale="row", shared=True), size=(6, 6), seed=0)
    y = layer(torch.ones(200, 3, 6, 6))
    means = y.mean((1, 2, 3))
    some = (y != 0).flatten(1).any(1)
    torch.testing.assert_close(means[some], torch.ones_like(means[some]))
    assert not y[~some].any() and some.any()
    expected = DropBlock2d(DropBlock(p=0.4), size=(6, 6), seed=0)(torch.ones(9, 3, 6, 6))
    torch.testing.assert_close(expected.max(), torch.tensor(1 / 0.6))
    paper = DropBlock2d(DropBlock(p=0.4, rate="paper"), size=(6, 6), seed=0)(torch.ones(9, 3, 6, 6))
    gamma = seed_rate((6, 6), p=0.4, block_size=3, rate="paper")
    torch.testing.assert_close(paper.max(), torch.tensor(1 / (1 - drop_rate((6, 6), gamma=gamma, block_size=3))))


def test_identity_where_there_is_nothing_to_do_and_zeros_for_p_1() -> None:
    x = torch.randn(2, 3, 4, 4)
    given_ = {"block_size": 3, "shared": False, "scale": 2.0, "key": key(2)}
    assert drop_block(x, gamma=0.5, training=False, **given_) is x
    assert drop_block(x, gamma=0.0, training=True, **given_) is x
    layer = DropBlock2d(DropBlock(p=0.9), size=(4, 4), seed=0)
    assert layer.eval()(x) is x
    assert (layer.train()(x) == 0).any()
    for spec in (DropBlock(p=1.0), DropBlock(p=1.0, scale="row"), DropBlock(p=1.0, shared=True, scale="row")):
        for dtype in (torch.float32, torch.float16):
            assert (DropBlock2d(spec, size=(4, 4), seed=0)(x.to(dtype)) == 0).all()
    assert DropBlock2d(DropBlock(p=0.0), size=(4, 4), seed=0)(x) is x


@pytest.mark.parametrize("scale", [2.0, None])
def test_gradient_is_that_of_the_kept_values(scale: float | None) -> None:
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64).add(1).requires_grad_()
    y = drop_block(x, gamma=0.05, block_size=3, shared=False, scale=scale, training=True, key=key(4))
    (g,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(g == 0, y == 0) and (g == 0).any()
    torch.testing.assert_close(g, y / x)


@pytest.mark.parametrize("scale", [2.0, None])
def test_rows_do_not_depend_on_the_batch(scale: float | None) -> None:
    x, k, order = torch.randn(6, 4, 7, 7), key(6), torch.tensor([5, 0, 3, 1])
    args = {"gamma": 0.1, "block_size": 3, "shared": False, "scale": scale, "training": True}
    assert torch.equal(drop_block(x[order], key=k[order], **args), drop_block(x, key=k, **args)[order])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("scale", [1.5, None])
def test_dtype_and_memory_format_stay(dtype: torch.dtype, shared: bool, scale: float | None) -> None:
    x = torch.randn(2, 3, 8, 5).to(dtype, memory_format=torch.channels_last)
    args = {"gamma": 0.1, "block_size": 3, "shared": shared, "scale": scale, "training": True, "key": key(2)}
    y = drop_block(x, **args)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, drop_block(x.contiguous(), **args))


def test_half_precision_keeps_the_scale_of_a_large_map() -> None:
    spec = DropBlock(block_size=7, scale="row")
    y = DropBlock2d(spec, size=(300, 300), seed=0)(torch.ones(1, 1, 300, 300).half())
    assert abs(y.float().mean() - 1) < 1e-3  # 90 000 values: a sum in half precision is infinite
    gone = DropBlock2d(DropBlock(p=1.0, scale="row"), size=(300, 300), seed=0)(torch.ones(1, 1, 300, 300).half())
    assert (gone == 0).all()  # 0 times infinity is not a number


def test_another_size_of_map_has_its_own_rate() -> None:
    layer = DropBlock2d(DropBlock(p=0.5, block_size=3), size=(8, 8), seed=0)
    share = (layer(torch.ones(2000, 4, 4, 3)) == 0).float().mean((2, 3)).flatten()
    assert abs(share.mean() - 0.5) < 4 * share.std() / len(share) ** 0.5


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 8, 1), (8, 8, 2), (8, 8, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


@pytest.mark.parametrize(
    "spec",
    [
        DropBlock(p=0.3),
        DropBlock(p=0.3, block_size=2),
        DropBlock(p=0.3, rate="paper"),
        DropBlock(p=0.3, shared=True),
        DropBlock(p=0.3, scale="row"),
    ],
    ids=["p", "block_size", "rate", "shared", "scale"],
)
def test_attach_drops_after_the_norm_with_the_numbers_and_the_seed_of_the_caller(spec: DropBlock) -> None:
    model, x = net(), torch.randn(6, 3, 20, 16, generator=torch.Generator().manual_seed(0))
    k, names = keys(root(1, "images"), torch.arange(6)), list(model.state_dict())
    before = model.eval()(x)
    model.train()
    with capture(model, ["7"]) as plain:
        model(x)
    with spec.attach(model, example=x, seed=7) as a, capture(model, ["7"]) as f:
        assert a.sites == ("7",) and list(model.state_dict()) == names and a.notes == ()
        set_keys(model, k)
        model(x)
        mine = fold(fold(k, root(7, "drop_block:7")), 0)
        gamma = seed_rate((5, 4), p=0.3, block_size=spec.block_size, rate=spec.rate)
        scale = None
        if spec.scale == "expected":
            scale = 1 / (1 - drop_rate((5, 4), gamma=gamma, block_size=spec.block_size))
        args = {"gamma": gamma, "block_size": spec.block_size, "shared": spec.shared, "scale": scale}
        assert torch.equal(f["7"], drop_block(plain["7"], training=True, key=mine, **args))
        assert (f["7"] == 0).any() and not (f["7"] == 0).all()
    for norm in (1, 4, 7):
        model[norm].reset_running_stats()
    assert torch.equal(model.eval()(x), before)


def test_maps_not_larger_than_the_block_are_named() -> None:
    with DropBlock().attach(net(), example=torch.zeros(2, 3, 9, 9), seed=0) as a:
        assert a.notes == ("whole channels go where the map is not larger than the block: 7 (3x3) (1 in all)",)
    with DropBlock().attach(net(), example=torch.zeros(2, 3, 9, 16), seed=0) as a:
        assert a.notes == ()


def test_the_preset_repo_is_at_the_places_of_the_baseline() -> None:
    spec = PRESETS["repo"]
    assert (spec.p, spec.block_size, spec.rate, spec.shared) == (0.1, 3, "paper", False)
    model = timm.create_model("resnet18", num_classes=2)
    with spec.attach(model, example=torch.zeros(1, 3, 32, 32), seed=0) as a:
        assert a.sites == tuple(f"layer{s}.{b}.{m}" for s in (3, 4) for b in (0, 1) for m in ("bn1", "conv2"))


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_a_share_out_of_range_is_an_error(p: float) -> None:
    with pytest.raises(ParameterError, match=r"DropBlock: p must be in \[0, 1\]; got"):
        DropBlock(p=p)


def test_other_bad_numbers_and_places_are_errors() -> None:
    with pytest.raises(ParameterError, match="DropBlock: block_size must be at least 1; got 0"):
        DropBlock(block_size=0)
    with pytest.raises(AttachError, match=r"drop_block: 10 must give \(n, c, h, w\); got \(\d, 8\)"):
        DropBlock(sites=("10",)).attach(net(), example=torch.zeros(2, 3, 8, 8), seed=0)
    with pytest.raises(LayerNotFoundError, match="no layer 'layer3"):
        PRESETS["repo"].attach(net(), example=torch.zeros(2, 3, 8, 8), seed=0)


def test_says_what_it_is() -> None:
    assert "p=0.2" in repr(DropBlock2d(DropBlock(p=0.2), size=(4, 4), seed=0))
    assert CARD.kind == "layer" and not CARD.live
