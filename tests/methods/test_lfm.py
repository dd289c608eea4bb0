"""LFM against a slow loop over images that uses the same uniform numbers, and against what the algorithm promises."""

import itertools
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hardy.errors import AttachError, LayerNotFoundError, ParameterError
from hardy.io import load_model
from hardy.methods._boxes import TRIES, boxes, misfit
from hardy.methods.lfm import CARD, PRESETS, LocalFeatureMask2d, LocalFeatureMasking, local_feature_mask
from hardy.objective import Objective
from hardy.seeding import fold, keys, root, uniform
from hardy.surgery import attach, capture, set_keys
from hardy.training import build_methods, load_recipe

AREA, ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)
RECIPES = Path(__file__).parents[2] / "recipes"
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def key(n: int, seed: int = 0) -> Tensor:
    return keys(root(seed, "test"), torch.arange(n))


def run(x: Tensor, key: Tensor, spec: LocalFeatureMasking) -> Tensor:
    return local_feature_mask(
        x,
        p=spec.p,
        num_channels=spec.count(x.shape[1]),
        area=spec.area,
        aspect=spec.aspect,
        fill=spec.fill,
        gate=spec.gate,
        channel_scope=spec.channel_scope,
        region_scope=spec.region_scope,
        shape=spec.shape,
        replacement=spec.replacement,
        training=True,
        key=key,
    )


def mask(x: Tensor, key: Tensor, **knobs: Any) -> Tensor:
    """Mask every channel of every image, unless told otherwise."""
    return run(x, key, LocalFeatureMasking(**{"p": 1.0, "channel_ratio": 1.0, **knobs}))


def reference_box(u: np.ndarray, h: int, w: int, spec: LocalFeatureMasking) -> tuple[int, int, int, int] | None:
    """Algorithm 1 of Random Erasing with the numbers given: u is (4, tries)."""
    one, (low, high), (flat, tall) = np.float32(1), spec.area, spec.aspect
    for s, q, top, left in u.T:
        size = (np.float32(low) + np.float32(high - low) * s) * np.float32(h * w)
        ratio = np.float32(flat) + np.float32(tall - flat) * q
        height, width = max(one, np.rint(np.sqrt(size * ratio))), max(one, np.rint(np.sqrt(size / ratio)))
        if height < h and width < w:
            row, column = int(top * (h - height + 1)), int(left * (w - width + 1))
            return row, column, int(height), int(width)
    return None


def reference_channels(source: Tensor, c: int, count: int, replacement: bool) -> list[int]:
    u = uniform(source, 1, (count if replacement else c,))[0].numpy()
    return [int(value * np.float32(c)) for value in u] if replacement else np.argsort(u, kind="stable")[:count].tolist()


def reference(x: Tensor, key: Tensor, spec: LocalFeatureMasking) -> Tensor:
    """Image by image, draw by draw, in place; ``first`` is what a batch shares."""
    out, c, first = x.clone(), x.shape[1], key[:1]
    h, w = x.shape[2:] if x.ndim == 4 else (1, 1)
    count = spec.count(c)
    slots = count if spec.replacement else c
    for i, image in enumerate(out):
        own = key[i : i + 1]
        if uniform(first if spec.gate == "batch" else own, 0, ())[0] >= spec.p:
            continue
        fills = uniform(own, 2, (slots,))[0] if spec.fill == "uniform" else torch.full((slots,), float(spec.fill))
        each = spec.region_scope == "sample_channel"
        u = uniform(first if spec.region_scope == "batch" else own, 3, (4, TRIES, slots if each else 1))[0].numpy()
        channels = reference_channels(first if spec.channel_scope == "batch" else own, c, count, spec.replacement)
        for draw, channel in enumerate(channels):
            number = draw if spec.replacement else channel
            box = reference_box(u[:, :, number if each else 0], h, w, spec)
            if spec.shape == "channel":
                image[channel] = fills[number]
            elif box is not None:
                row, column, height, width = box
                if spec.shape == "stripe":  # the slip itself: both slices act on rows
                    image[channel][column : column + height][row : row + width] = fills[number]
                else:
                    image[channel, row : row + height, column : column + width] = fills[number]
    return out


@pytest.mark.parametrize(
    "shape", [(6, 4, 8, 6), (1, 3, 5, 7), (5, 1, 3, 3), (4, 7, 2, 2), (3, 8, 16, 16), (0, 2, 4, 4), (5, 6, 6, 9)]
)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_every_preset_equals_the_slow_reference(preset: str, shape: tuple[int, ...], p: float) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    spec = replace(PRESETS[preset], p=p)
    maps = [x, x.mean((2, 3))] if spec.shape == "channel" else [x]
    for seed, y in itertools.product(range(4), maps):
        k = key(shape[0], seed)
        assert torch.equal(run(y, k, spec), reference(y, k, spec))


PAIRS = st.tuples(st.floats(0.05, 1), st.floats(1, 20))
KNOBS = st.fixed_dictionaries(
    {
        "p": st.floats(0, 1),
        "num_channels": st.integers(1, 5),
        "area": PAIRS.map(lambda pair: (pair[0] / pair[1], pair[0])),
        "aspect": PAIRS,
        "fill": st.sampled_from(["uniform", 0.0, 0.4914, -3.0]),
        "gate": st.sampled_from(["sample", "batch"]),
        "channel_scope": st.sampled_from(["sample", "batch"]),
        "region_scope": st.sampled_from(["sample_channel", "sample", "batch"]),
        "shape": st.sampled_from(["box", "stripe", "channel"]),
        "replacement": st.booleans(),
    }
)
SHAPES = st.tuples(st.integers(0, 4), st.integers(5, 7), st.integers(2, 9), st.integers(2, 9))


@settings(max_examples=150, deadline=None)
@given(knobs=KNOBS, shape=SHAPES, seed=st.integers(0, 10**6))
def test_any_knobs_equal_the_slow_reference(knobs: dict[str, Any], shape: tuple[int, ...], seed: int) -> None:
    spec = LocalFeatureMasking(**knobs)
    x, k = torch.randn(shape, generator=torch.Generator().manual_seed(seed)), key(shape[0], seed)
    state, before = torch.get_rng_state(), x.clone()
    y = run(x, k, spec)
    assert torch.equal(y, reference(x, k, spec)) and torch.equal(x, before)
    assert torch.equal(run(x, k, spec), y) and torch.equal(torch.get_rng_state(), state)


@settings(max_examples=80, deadline=None)
@given(knobs=KNOBS, shape=SHAPES, seed=st.integers(0, 10**6))
def test_other_values_are_bit_equal_and_gradients_inside_are_zero(
    knobs: dict[str, Any], shape: tuple[int, ...], seed: int
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    y = run(x, key(shape[0], seed), LocalFeatureMasking(**{**knobs, "fill": 99.0}))
    inside = y == 99
    assert torch.equal(y[~inside], x[~inside])
    (g,) = torch.autograd.grad((y * 3).sum(), x)
    assert torch.equal(g, torch.where(inside, 0.0, 3.0))


@settings(max_examples=60, deadline=None)
@given(knobs=KNOBS, order=st.permutations(range(5)), seed=st.integers(0, 10**6))
def test_rows_do_not_depend_on_the_batch_unless_the_batch_shares_a_draw(
    knobs: dict[str, Any], order: list[int], seed: int
) -> None:
    spec = LocalFeatureMasking(**knobs)
    x, k = torch.randn(5, 5, 6, 7, generator=torch.Generator().manual_seed(seed)), key(5, seed)
    alone = replace(
        spec, gate="sample", channel_scope="sample", region_scope=spec.region_scope.replace("batch", "sample")
    )
    whole = run(x, k, alone)
    assert torch.equal(run(x[order], k[order], alone), whole[order])
    assert torch.equal(torch.cat([run(x[i : i + 1], k[i : i + 1], alone) for i in range(5)]), whole)
    tail = [0, *(i for i in order if i)]  # what a batch shares is drawn from its first row
    assert torch.equal(run(x[tail], k[tail], spec), run(x, k, spec)[tail])


def box_sides(inside: Tensor) -> tuple[Tensor, Tensor]:
    return inside.any(-1).sum(-1), inside.any(-2).sum(-1)


@settings(max_examples=40, deadline=None)
@given(h=st.integers(2, 40), w=st.integers(2, 40), seed=st.integers(0, 10**6))
def test_boxes_are_rectangles_of_the_promised_size_and_shape(h: int, w: int, seed: int) -> None:
    inside = boxes(key(4, seed), 5, (h, w), area=AREA, aspect=ASPECT)
    height, width = box_sides(inside)
    drawn = inside.any(-1).any(-1)
    assert torch.equal(inside.sum((-1, -2)), height * width)  # one full rectangle
    assert ((height < h) & (width < w)).all()
    # sides are rounded from sqrt(s q) and sqrt(s / q), and are at least 1: undo the rounding
    low, high = AREA[0] * h * w, AREA[1] * h * w
    assert ((height + 0.5) * (width + 0.5) >= low)[drawn].all()
    assert ((height - 0.5).clamp(min=0) * (width - 0.5).clamp(min=0) <= high)[drawn].all()
    largest_ratio = (height - 0.5).clamp(min=0) / (width + 0.5), (width - 0.5).clamp(min=0) / (height + 0.5)
    assert all((ratio <= ASPECT[1] + 1e-5).all() for ratio in largest_ratio)


def expected_area(h: int, w: int) -> tuple[float, float]:
    """Mean share of a map inside its box, and how often there is none: from a fine grid of area and aspect."""
    s = (AREA[0] + (AREA[1] - AREA[0]) * (np.arange(2000) + 0.5) / 2000)[:, None] * h * w
    q = (ASPECT[0] + (ASPECT[1] - ASPECT[0]) * (np.arange(2000) + 0.5) / 2000)[None]
    height, width = np.maximum(1, np.rint(np.sqrt(s * q))), np.maximum(1, np.rint(np.sqrt(s / q)))
    fits = (height < h) & (width < w)
    missing = (1 - fits.mean()) ** TRIES
    return float((1 - missing) * (height * width)[fits].mean() / (h * w)), float(missing)


@pytest.mark.parametrize(("h", "w"), [(2, 2), (2, 5), (3, 3), (4, 4), (7, 7), (8, 16), (32, 32), (128, 64)])
def test_share_of_the_map_is_that_of_the_algorithm(h: int, w: int) -> None:
    n, c = 500, 8
    share = boxes(key(n), c, (h, w), area=AREA, aspect=ASPECT).float().mean((-1, -2))
    error = share.std().item() / (n * c) ** 0.5
    want, missing = expected_area(h, w)
    assert abs(share.mean().item() - want) < 4 * error + 1e-4  # 1e-4: the grid
    if (h, w) == (128, 64):  # a simulation of the intended boxes gave 20.4 %
        assert abs(want - 0.204) < 0.0005 and (share > 0).all()
    if h == w >= 4 or (h, w) == (128, 64):
        assert missing < 1e-8  # so that 10 draws are as good as the 100 of the released code


def test_stripes_are_those_of_the_released_code() -> None:
    n, c = 1000, 40
    stripes = boxes(key(n), c, (128, 64), area=AREA, aspect=ASPECT, stripes=True)
    rows = stripes[..., 0].sum(-1)
    assert torch.equal(stripes.any(-1), stripes.all(-1))  # never of partial width
    edges = stripes[..., 0].int().diff(dim=-1, prepend=torch.zeros(n, c, 1, dtype=torch.int32))
    assert ((edges == 1).sum(-1) <= 1).all()  # one stripe
    # a simulation of 20,000 draws of that code: 12.5 % of the map, 34.3 % empty, 24.3 of 128 rows where not
    assert abs(rows.float().mean() / 128 - 0.125) < 0.005
    assert abs((rows == 0).float().mean() - 0.343) < 0.01
    filled = rows[rows > 0].float()
    assert abs(filled.mean() - 24.3) < 4 * filled.std() * (1 / 20_000 / 0.657 + 1 / len(filled)) ** 0.5 + 0.05


def test_the_bug_compatible_preset_masks_those_stripes() -> None:
    x = torch.full((8, 64, 128, 64), 5.0)
    changed = run(x, key(8), replace(PRESETS["repo-bugcompat"], p=1.0)) != x
    assert torch.equal(changed.any(-1), changed.all(-1))
    hit = changed.flatten(2).any(2)  # images x channels; the drawn channels are the same for all images
    assert hit.any(0).sum() <= 32 and 0.2 < 1 - hit[:, hit.any(0)].float().mean() < 0.5


def test_every_place_is_equally_likely() -> None:
    inside = boxes(key(4000), 1, (6, 6), area=(0.02, 0.02), aspect=(1.0, 1.0))[:, 0]  # one pixel
    assert (inside.sum((1, 2)) == 1).all()
    hits = inside.float().mean(0)
    assert ((hits - 1 / 36).abs() < 4.5 * (1 / 36 * 35 / 36 / 4000) ** 0.5).all()


def test_exactly_k_distinct_channels_of_each_image() -> None:
    x = torch.full((200, 16, 8, 8), 5.0)
    changed = (mask(x, key(200), channel_ratio=0.5) != x).any(-1).any(-1)
    assert (changed.sum(1) == 8).all()
    assert len({tuple(row) for row in changed.tolist()}) > 150  # each image draws its own
    rate = changed.float().mean(0)
    assert ((rate - 0.5).abs() < 4.5 * (0.25 / 200) ** 0.5).all()  # no channel is preferred


@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_with_replacement_fewer_distinct_channels_are_masked(scope: Literal["sample", "batch"]) -> None:
    n, batches = (1200, 1) if scope == "sample" else (2, 150)
    x, distinct = torch.full((n, 64, 1, 1), 5.0), []
    for seed in range(batches):
        y = mask(x, key(n, seed), channel_ratio=0.5, shape="channel", replacement=True, channel_scope=scope)
        distinct += (y != x).flatten(1).sum(1).tolist()
    want, draws = 64 * (1 - (1 - 1 / 64) ** 32), n if scope == "sample" else batches
    assert abs(want - 25.33) < 0.005
    assert abs(np.mean(distinct) - want) < 4 * np.std(distinct) / draws**0.5


@pytest.mark.parametrize(("ratio", "want"), [(0.0, 0), (0.001, 1), (0.3, 3), (0.5, 5), (1.0, 10)])
def test_number_of_channels(ratio: float, want: int) -> None:
    x = torch.full((20, 10, 8, 8), 5.0)
    changed = (mask(x, key(20), channel_ratio=ratio) != x).any(-1).any(-1)
    assert (changed.sum(1) == want).all()
    if want:
        same = mask(x, key(20), channel_ratio=0.5, num_channels=want)
        assert torch.equal(same, mask(x, key(20), channel_ratio=ratio))


def test_channels_are_shared_by_scope() -> None:
    x = torch.full((40, 12, 6, 6), 5.0)
    for replacement in (False, True):
        knobs = {"num_channels": 6, "channel_ratio": 0.5, "shape": "channel", "replacement": replacement}
        own, shared = (
            (mask(x, key(40), **knobs, channel_scope=scope) != x)[..., 0, 0] for scope in ("sample", "batch")
        )
        assert (shared == shared[:1]).all() and 0 < shared[0].sum() <= 6
        assert len({tuple(row) for row in own.tolist()}) > 30


def test_regions_are_shared_by_scope() -> None:
    x = torch.full((30, 6, 12, 12), 5.0)
    own, sample, batch = (
        (mask(x, key(30), region_scope=scope) != x).flatten(2) for scope in ("sample_channel", "sample", "batch")
    )
    assert (batch == batch[0, 0]).all() and batch.any()
    assert (sample == sample[:, :1]).all() and len(sample[:, 0].unique(dim=0)) > 25
    assert len(own.flatten(0, 1).unique(dim=0)) > 150  # of 180


@pytest.mark.parametrize("shape", [(300, 8, 2, 2), (300, 8, 3, 3), (300, 8, 4, 7), (300, 8, 8, 8), (1, 4, 5, 9)])
@pytest.mark.parametrize("knobs", [{}, {"gate": "batch", "replacement": True}, {"shape": "channel", "num_channels": 1}])
def test_p_1_masks_every_image(shape: tuple[int, ...], knobs: dict[str, Any]) -> None:
    x = torch.full(shape, 5.0)
    y = mask(x, key(len(x)), **{"channel_ratio": 0.5} if "num_channels" in knobs else {}, **knobs)
    assert (y != x).flatten(1).any(1).all()


@pytest.mark.parametrize("p", [0.05, 0.15, 0.5, 0.9])
def test_share_of_masked_images_is_p_and_images_decide_alone(p: float) -> None:
    n = 4000
    x = torch.full((n, 2, 4, 4), 5.0)
    hit = (mask(x, key(n), p=p) != x).flatten(1).any(1)
    assert abs(hit.float().mean() - p) < 4 * (p * (1 - p) / n) ** 0.5
    both = (hit[:-1] & hit[1:]).float().mean()  # neighbours, which a gate per batch would tie together
    assert abs(both - p * p) < 4 * (p * p * (1 - p * p) / n) ** 0.5 * 2


def test_a_gate_for_the_batch_masks_all_or_none() -> None:
    x, batches, p = torch.full((3, 2, 4, 4), 5.0), 400, 0.3
    hits = [(mask(x, key(3, seed), p=p, gate="batch") != x).flatten(1).any(1) for seed in range(batches)]
    assert all(hit.all() or not hit.any() for hit in hits)
    assert abs(sum(hit.all().item() for hit in hits) / batches - p) < 4 * (p * (1 - p) / batches) ** 0.5


def test_identity_where_there_is_nothing_to_do() -> None:
    x = torch.randn(3, 4, 5, 5)
    for preset in PRESETS.values():
        assert run(x, key(3), replace(preset, p=0.0)) is x
        layer = LocalFeatureMask2d(replace(preset, p=1.0), seed=0)
        assert layer.eval()(x) is x
        assert not torch.equal(layer.train()(x), x)
    assert mask(x, key(3), channel_ratio=0.0) is x
    assert mask(x[:0], key(0)).shape == (0, 4, 5, 5)


def test_fills() -> None:
    x = torch.full((50, 6, 8, 8), 5.0)
    assert set(mask(x, key(50), fill=0.0).unique().tolist()) == {0.0, 5.0}
    for scope in ("sample_channel", "sample"):
        y = mask(x, key(50), region_scope=scope)
        values = [channel[channel != 5].unique() for channel in y.flatten(0, 1)]
        assert all(len(v) == 1 for v in values)  # one number for each region of each channel
        drawn = torch.cat(values)
        assert drawn.min() >= 0 and drawn.max() < 1 and len(drawn.unique()) > 290
        assert abs(drawn.mean() - 0.5) < 4 * (1 / 12 / 300) ** 0.5


def test_of_two_regions_on_a_channel_the_later_lies_on_top() -> None:
    x = torch.full((100, 1, 16, 16), 5.0)
    y = mask(x, key(100), num_channels=2, channel_ratio=0.5, replacement=True)
    fills = uniform(key(100), 2, (2,))
    inside = boxes(key(100), 2, (16, 16), area=AREA, aspect=ASPECT)
    assert (inside[:, 0] & inside[:, 1]).flatten(1).any(1).sum() > 20  # they overlap
    want = torch.where(inside[:, 0], fills[:, 0, None, None], 5.0)
    assert torch.equal(y[:, 0], torch.where(inside[:, 1], fills[:, 1, None, None], want))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("preset", PRESETS)
def test_dtype_and_memory_format_stay(dtype: torch.dtype, preset: str) -> None:
    x = torch.randn(8, 6, 8, 8).to(dtype, memory_format=torch.channels_last)
    for p in (1.0, 0.5):
        y = run(x, key(8), replace(PRESETS[preset], p=p, gate="sample"))
        assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last) and not torch.equal(x, y)


ATTACHED = {  # each knob away from its default at least once
    "box": LocalFeatureMasking(p=0.6, channel_ratio=0.4, area=(0.1, 0.3), aspect=(0.5, 2.0), fill=0.25),
    "number": LocalFeatureMasking(p=0.9, num_channels=3, gate="batch", channel_scope="batch", region_scope="batch"),
    "stripe": LocalFeatureMasking(p=0.6, shape="stripe", area=(0.3, 0.4), replacement=True, region_scope="sample"),
    "channel": LocalFeatureMasking(p=0.6, shape="channel", replacement=True, channel_scope="batch"),
}


@pytest.mark.parametrize("name", ATTACHED)
def test_attach_masks_the_first_convolution_before_its_norm_with_the_seed_of_the_caller(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3), nn.Flatten()
    )
    x, names = torch.rand(12, 3, 10, 10), list(model.state_dict())
    k, method = keys(root(1, "images"), torch.arange(12)), ATTACHED[name]
    before = model.eval()(x)
    model.train()
    with method.attach(model, example=x, seed=7) as a, capture(model, ["0"]) as f:
        assert a.sites == ("0",) and list(model.state_dict()) == names
        set_keys(model, k)
        model(x)
        conv = nn.functional.conv2d(x, model[0].weight, model[0].bias)
        want = run(conv, fold(fold(k, root(7, "lfm:0")), 0), method)
        assert torch.equal(f["0"], want) and not torch.equal(want, conv)
        # masked values take part in the batch statistics
        torch.testing.assert_close(model[1].running_mean, 0.1 * want.mean((0, 2, 3)))
        torch.testing.assert_close(model[1].running_var, 0.9 + 0.1 * want.transpose(0, 1).flatten(1).var(1))
    model[1].reset_running_stats()
    assert torch.equal(model.eval()(x), before)


def test_stages_and_modules_are_sites() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Flatten())
    x = torch.rand(1, 3, 8, 8)
    with LocalFeatureMasking(sites=("stem", "stage1", "3")).attach(model, example=x, seed=0) as a:
        assert a.sites == ("0", "2", "3")


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 8), (8, 8)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(True), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "resnet": (
        lambda: torchvision.models.resnet18(num_classes=4),
        {"stem": "conv1", "before_stage1": "layer1@input", "pooled": "fc@input", "maxpool": "maxpool"},
    ),
    "densenet": (
        lambda: torchvision.models.DenseNet(8, (2, 2), 16, num_classes=4),
        {"stem": "features.conv0", "pooled": "classifier@input", "features.pool0": "features.pool0"},
    ),
    "vgg": (vgg, {"stem": "0", "before_stage1": "4@input", "pooled": "14@input", "3": "3"}),
}


@pytest.mark.parametrize(("net", "site"), [(net, site) for net in NETS for site in NETS[net][1]])
def test_every_position_masks_that_tensor_on_any_net(net: str, site: str) -> None:
    torch.manual_seed(0)
    make, places = NETS[net]
    model, x, k = make(), torch.rand(6, 3, 64, 64), keys(root(1, "images"), torch.arange(6))
    spec = LocalFeatureMasking(p=0.6, sites=(site,), fill=-50.0, shape="channel" if site == "pooled" else "box")
    with capture(model, [places[site]]) as f:
        model.train()(x)
        plain = f[f"{places[site]}#0"]
    with spec.attach(model, example=x, seed=3) as a, capture(model, [places[site]]) as f:
        assert a.sites == (places[site],)
        set_keys(model, k)
        logits = model(x)
        want = run(plain, fold(fold(k, root(3, f"lfm:{places[site]}")), 0), spec)
        assert torch.equal(f[f"{places[site]}#0"], want) and (want == -50).any()
        logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_trains_through_an_objective_with_in_place_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 36, 2))
    x = torch.rand(6, 3, 8, 8)
    LocalFeatureMasking(p=1.0).attach(model, example=x, seed=0)
    _, losses = Objective(model)(x, torch.zeros(6, dtype=torch.int64))
    losses["task"].backward()
    assert model[0].weight.grad is not None and model[0].weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": 1.5}, r"LocalFeatureMasking: p must be in \[0, 1\]; got 1.5"),
        ({"p": math.nan}, r"p must be in \[0, 1\]; got nan"),
        ({"channel_ratio": -0.1}, r"channel_ratio must be in \[0, 1\]; got -0.1"),
        ({"area": (0.0, 0.4)}, r"area must be 0 < low <= high <= 1; got \(0.0, 0.4\)"),
        ({"area": (0.5, 0.4)}, r"area must be"),
        ({"area": (0.5, 1.1)}, r"area must be"),
        ({"aspect": (2.0, 1.0)}, r"aspect must be 0 < low <= high"),
        ({"aspect": (0.5, math.inf)}, r"aspect must be"),
        ({"aspect": (math.nan, 1.0)}, r"aspect must be"),
        ({"num_channels": 0}, r"LocalFeatureMasking: num_channels must be at least 1; got 0"),
        (
            {"num_channels": 8, "channel_ratio": 0.3},
            r"channel_ratio and num_channels say the same thing; got 0.3 and 8",
        ),
        ({"fill": math.nan}, r"fill must be a finite number or 'uniform'; got nan"),
        ({"sites": ("stem", "pooled")}, r"pooled features have no rows .* shape must be 'channel' there; got 'box'"),
        ({"sites": ("pooled",), "shape": "stripe"}, r"shape must be 'channel' there; got 'stripe'"),
    ],
)
def test_values_out_of_range_are_errors(change: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        LocalFeatureMasking(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["fill", "gate", "channel_scope", "region_scope", "shape"])
def test_words_out_of_the_list_are_errors(field: str) -> None:
    spec = LocalFeatureMasking()
    object.__setattr__(spec, field, "zero")  # beartype, in tests only, would refuse it before
    with pytest.raises(ParameterError, match=rf"LocalFeatureMasking: {field} must be .*; got 'zero'\."):
        spec.__post_init__()


def test_a_place_that_cannot_be_masked_is_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.rand(1, 3, 8, 8)
    for site in ("1", "2"):
        with pytest.raises(
            AttachError, match=rf"lfm: {site} must give \(n, c, h, w\) with h, w > 1 for shape='box'; got"
        ):
            LocalFeatureMasking(sites=(site,)).attach(model, example=x, seed=0)
    for site in ("1", "2"):
        LocalFeatureMasking(sites=(site,), shape="channel").attach(model, example=x, seed=0).detach()
    with pytest.raises(AttachError, match=r"lfm: num_channels must be at most the channels of 0, 4; got 5\. Lower it"):
        LocalFeatureMasking(num_channels=5).attach(model, example=x, seed=0)
    with pytest.raises(LayerNotFoundError, match=r"no layer 'nope'"):
        LocalFeatureMasking(sites=("nope",)).attach(model, example=x, seed=0)
    with pytest.raises(LayerNotFoundError, match=r"no stage 'stage9'"):
        LocalFeatureMasking(sites=("stage9",)).attach(model, example=x, seed=0)
    assert [name for name, _ in model.named_children()] == ["0", "1", "2"]


def test_says_what_it_is() -> None:
    layer = LocalFeatureMask2d(LocalFeatureMasking(p=0.3), seed=0)
    assert "p=0.3" in repr(layer)
    assert CARD.kind == "layer" and not CARD.live and any("stripes" in text for text in CARD.deviations)


def test_presets_say_what_they_are() -> None:
    assert PRESETS["paper"] == LocalFeatureMasking()
    repo = PRESETS["repo"]
    assert (repo.p, repo.count(64), repo.gate, repo.channel_scope, repo.region_scope, repo.shape, repo.replacement) == (
        0.15, 32, "batch", "batch", "sample_channel", "box", True,
    )  # fmt: skip
    assert PRESETS["repo-bugcompat"] == replace(repo, shape="stripe")
    assert PRESETS["repo-before-stage1"] == replace(repo, sites=("before_stage1",))
    everything, deep = PRESETS["repo-all-channels"], PRESETS["repo-deep"]
    assert (everything.p, everything.count(64), everything.replacement) == (0.05, 64, False)
    assert (deep.p, deep.count(2048), deep.fill, deep.shape, deep.sites) == (0.5, 512, 0.0, "channel", ("pooled",))


COMPILE = """
import sys, torch
from dataclasses import replace
from hardy.methods.lfm import PRESETS, LocalFeatureMask2d
from hardy.seeding import keys, root

for name in sys.argv[1:]:
    torch._dynamo.reset()
    layer = LocalFeatureMask2d(replace(PRESETS[name], p=0.5), seed=0)

    def call(x, key):
        layer.key = key
        return layer(x)

    compiled, changed = torch.compile(call, backend="aot_eager", fullgraph=True), 0
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(6):
            x, key = torch.randn(6, 8, 8, 6), keys(root(step, "images"), torch.arange(6))
            assert torch.equal(compiled(x, key), call(x, key))
            changed += not torch.equal(x, call(x, key))
    print(name, 1 <= changed)
"""


@pytest.mark.slow
def test_compiled_presets_compute_the_same_without_recompiling() -> None:
    # in a process of its own, because the compiler cannot read functions that beartype has wrapped
    command = [sys.executable, "-c", COMPILE, *PRESETS]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [word for name in PRESETS for word in (name, "True")]


def commands(recipe: Path) -> list[list[str]]:
    """Let a shell read the lines in the head of a recipe, with a ``hardy`` that prints its arguments."""
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("needs bash")
    head = [line.removeprefix("#") for line in recipe.read_text().splitlines() if line.startswith("#   ")]
    script = "\n".join(["hardy() { printf '%s\\n' \"$@\" ---; }", *head])
    done = subprocess.run([shell, "-euc", script], capture_output=True, text=True, check=True)  # noqa: S603
    return [list(group) for end, group in itertools.groupby(done.stdout.splitlines(), lambda a: a == "---") if not end]


def test_every_line_of_the_ablation_recipe_is_a_cell_of_its_own() -> None:
    lines = commands(RECIPES / "lfm_ablation.toml")
    assert len(lines) == 2 + 5 + 9 + 108 + 18
    cells, folders = [], set()
    for verb, file, out, folder, *sets in lines:
        assert (verb, file, out, sets[::2]) == (
            "train",
            "recipes/lfm_ablation.toml",
            "--out",
            ["--set"] * (len(sets) // 2),
        )
        recipe = load_recipe(RECIPES / "lfm_ablation.toml", sets[1::2])
        cells.append(tuple(build_methods(recipe.methods)))
        folders.add(folder)
    assert len(folders) == len(lines)
    assert cells[0] == (LocalFeatureMasking(),) and cells[1] == ()
    names = ["repo", "repo-bugcompat", "repo-before-stage1", "repo-all-channels", "repo-deep"]
    assert cells[2:7] == [(PRESETS[name],) for name in names]
    assert len(set(cells[7:16])) == 9 and len(set(cells[16:])) == 126
    assert set(cells[7:16]) < set(cells[16:]) | {cells[8]} and cells[0] in cells[16:]
    model, x = load_model("cifar_resnet8", num_classes=10), torch.rand(1, 3, 16, 16)
    for methods in cells[:16]:
        attach(model, methods, example=x, seed=0).detach()


def test_the_recipe_for_cifar10_is_the_paper_preset() -> None:
    (method,) = build_methods(load_recipe(RECIPES / "cifar10_lfm.toml").methods)
    assert method == PRESETS["paper"]


@pytest.mark.parametrize(("size", "noted"), [((16, 16), False), ((128, 64), False), ((8, 64), True), ((2, 64), True)])
def test_maps_that_boxes_do_not_fit_are_noted(size: tuple[int, int], noted: bool) -> None:
    area, aspect = (0.02, 0.4), (0.3, 1 / 0.3)
    share = misfit(size, area=area, aspect=aspect)
    empty = ~boxes(keys(root(0, "misfit"), torch.arange(200)), 20, size, area=area, aspect=aspect).flatten(2).any(-1)
    assert abs(empty.double().mean() - share) < 4 * (share * (1 - share) / 4000) ** 0.5 + 0.002
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    notes = LocalFeatureMasking().attach(net, example=torch.rand(1, 3, *size), seed=0).notes
    assert [f"boxes often do not fit 0 ({size[0]}x{size[1]})" in note for note in notes] == [True] * noted
