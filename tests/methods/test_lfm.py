"""LFM against a slow loop over images that uses the same uniform numbers, and against what the algorithm promises."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hardy.errors import AttachError, LayerNotFoundError, ParameterError
from hardy.methods import lfm
from hardy.methods.lfm import CARD, LocalFeatureMask2d, LocalFeatureMasking, boxes, local_feature_mask
from hardy.objective import Objective
from hardy.seeding import fold, keys, root, uniform
from hardy.surgery import capture, set_keys

AREA, ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)


def key(n: int, seed: int = 0) -> Tensor:
    return keys(root(seed, "test"), torch.arange(n))


def mask(
    x: Tensor,
    key: Tensor,
    *,
    p: float = 1.0,
    channel_ratio: float = 1.0,
    area: tuple[float, float] = AREA,
    fill: float | Literal["uniform"] = "uniform",
) -> Tensor:
    return local_feature_mask(
        x, p=p, channel_ratio=channel_ratio, area=area, aspect=ASPECT, fill=fill, training=True, key=key
    )


def reference_box(u: np.ndarray, h: int, w: int) -> tuple[int, int, int, int] | None:
    """Algorithm 1 of Random Erasing with the numbers given: u is (4, tries)."""
    one = np.float32(1)
    for s, q, top, left in u.T:
        size = (np.float32(AREA[0]) + np.float32(AREA[1] - AREA[0]) * s) * np.float32(h * w)
        ratio = np.float32(ASPECT[0]) + np.float32(ASPECT[1] - ASPECT[0]) * q
        height, width = max(one, np.rint(np.sqrt(size * ratio))), max(one, np.rint(np.sqrt(size / ratio)))
        if height < h and width < w:
            row, column = int(top * (h - height + 1)), int(left * (w - width + 1))
            return row, column, int(height), int(width)
    return None


def reference(x: Tensor, key: Tensor, *, p: float, channel_ratio: float) -> Tensor:
    """Image by image, channel by channel."""
    out, (n, c, h, w) = x.clone(), x.shape
    for i in range(n):
        own = key[i : i + 1]
        if uniform(own, 0, ())[0] >= p:
            continue
        order = sorted(range(c), key=uniform(own, 1, (c,))[0].tolist().__getitem__)
        fills, u = uniform(own, 2, (c,))[0], uniform(own, 3, (4, lfm.TRIES, c))[0].numpy()
        for channel in order[: max(1, round(channel_ratio * c))]:
            box = reference_box(u[:, :, channel], h, w)
            if box is not None:
                row, column, height, width = box
                out[i, channel, row : row + height, column : column + width] = fills[channel]
    return out


@pytest.mark.parametrize(
    "shape", [(6, 4, 8, 6), (1, 3, 5, 7), (5, 1, 3, 3), (4, 7, 2, 2), (3, 8, 16, 16), (0, 2, 4, 4)]
)
@pytest.mark.parametrize(("p", "channel_ratio"), [(0.5, 0.5), (1.0, 1.0), (0.7, 0.01)])
def test_equals_the_slow_reference(shape: tuple[int, ...], p: float, channel_ratio: float) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for seed in range(3):
        k = key(shape[0], seed)
        assert torch.equal(
            mask(x, k, p=p, channel_ratio=channel_ratio), reference(x, k, p=p, channel_ratio=channel_ratio)
        )


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


def expected_area(h: int, w: int) -> float:
    """Mean share of a map inside its box, by integrating over a fine grid of area and aspect."""
    s = (AREA[0] + (AREA[1] - AREA[0]) * (np.arange(2000) + 0.5) / 2000)[:, None] * h * w
    q = (ASPECT[0] + (ASPECT[1] - ASPECT[0]) * (np.arange(2000) + 0.5) / 2000)[None]
    height, width = np.maximum(1, np.rint(np.sqrt(s * q))), np.maximum(1, np.rint(np.sqrt(s / q)))
    fits = (height < h) & (width < w)
    some = 1 - (1 - fits.mean()) ** lfm.TRIES
    return float(some * (height * width)[fits].mean() / (h * w))


@pytest.mark.parametrize(("h", "w"), [(2, 2), (2, 5), (3, 3), (4, 4), (7, 7), (8, 16), (32, 32), (64, 32)])
def test_share_of_the_map_is_that_of_the_algorithm(h: int, w: int) -> None:
    n, c = 500, 8
    share = boxes(key(n), c, (h, w), area=AREA, aspect=ASPECT).float().mean((-1, -2))
    error = share.std().item() / (n * c) ** 0.5
    assert abs(share.mean().item() - expected_area(h, w)) < 4 * error + 1e-4  # 1e-4: the grid
    if (h, w) == (64, 32):  # the spec simulated the intended boxes of the released code at 128x64
        assert abs(share.mean().item() - 0.204) < 4 * error + 0.005


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


@pytest.mark.parametrize(("ratio", "want"), [(0.0, 0), (0.001, 1), (0.3, 3), (0.5, 5), (1.0, 10)])
def test_number_of_channels(ratio: float, want: int) -> None:
    x = torch.full((20, 10, 8, 8), 5.0)
    changed = (mask(x, key(20), channel_ratio=ratio) != x).any(-1).any(-1)
    assert (changed.sum(1) == want).all()


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_p_1_masks_every_image(size: int) -> None:
    x = torch.full((300, 8, size, size), 5.0)
    assert (mask(x, key(300)) != x).flatten(1).any(1).all()


@pytest.mark.parametrize("p", [0.05, 0.15, 0.5, 0.9])
def test_share_of_masked_images_is_p_and_images_decide_alone(p: float) -> None:
    n = 4000
    x = torch.full((n, 2, 4, 4), 5.0)
    hit = (mask(x, key(n), p=p) != x).flatten(1).any(1)
    assert abs(hit.float().mean() - p) < 4 * (p * (1 - p) / n) ** 0.5
    both = (hit[:-1] & hit[1:]).float().mean()  # neighbours, which a gate per batch would tie together
    assert abs(both - p * p) < 4 * (p * p * (1 - p * p) / n) ** 0.5 * 2


def test_identity_where_there_is_nothing_to_do() -> None:
    x = torch.randn(3, 4, 5, 5)
    for p, ratio, training in ((0.0, 1.0, True), (1.0, 0.0, True), (1.0, 1.0, False)):
        args = {"p": p, "channel_ratio": ratio, "area": AREA, "aspect": ASPECT, "fill": "uniform", "training": training}
        assert local_feature_mask(x, **args, key=key(3)) is x  # type: ignore[arg-type]
    layer = LocalFeatureMask2d(LocalFeatureMasking(p=1.0, channel_ratio=1.0), seed=0)
    assert layer.eval()(x) is x
    assert not torch.equal(layer.train()(x), x)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(2, 9), st.integers(2, 9)),
    seed=st.integers(0, 10**6),
    p=st.floats(0, 1),
)
def test_other_values_are_bit_equal_and_gradients_inside_are_zero(
    shape: tuple[int, int, int, int], seed: int, p: float
) -> None:
    n = shape[0]
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    before = x.detach().clone()
    y = mask(x, key(n, seed), p=p, fill=99.0)
    inside = y == 99
    assert torch.equal(y[~inside], x[~inside]) and torch.equal(x, before)
    (g,) = torch.autograd.grad((y * 3).sum(), x)
    assert torch.equal(g, torch.where(inside, 0.0, 3.0))


def test_fills() -> None:
    x = torch.full((50, 6, 8, 8), 5.0)
    assert set(mask(x, key(50), fill=0.0).unique().tolist()) == {0.0, 5.0}
    y = mask(x, key(50))
    values = [channel[channel != 5].unique() for channel in y.flatten(0, 1)]
    assert all(len(v) == 1 for v in values)  # one number for each box
    drawn = torch.cat(values)
    assert drawn.min() >= 0 and drawn.max() < 1 and len(drawn.unique()) > 290
    assert abs(drawn.mean() - 0.5) < 4 * (1 / 12 / 300) ** 0.5


def test_rows_do_not_depend_on_the_batch() -> None:
    x, k = torch.randn(9, 4, 6, 6, generator=torch.Generator().manual_seed(0)), key(9)
    order = torch.tensor([4, 8, 0, 3, 1, 2, 7, 6, 5])
    whole = mask(x, k, p=0.5)
    assert torch.equal(mask(x[order], k[order], p=0.5), whole[order])
    assert torch.equal(torch.cat([mask(x[i : i + 1], k[i : i + 1], p=0.5) for i in range(9)]), whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fill", ["uniform", 0.5])
def test_dtype_and_memory_format_stay(dtype: torch.dtype, fill: float | Literal["uniform"]) -> None:
    x = torch.randn(4, 6, 8, 8).to(dtype, memory_format=torch.channels_last)
    for p in (1.0, 0.5):
        y = mask(x, key(4), p=p, fill=fill)
        assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last) and not torch.equal(x, y)


def test_attach_masks_the_first_convolution_before_its_norm_with_the_seed_of_the_caller() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3), nn.Flatten()
    )
    x, names = torch.rand(12, 3, 10, 10), list(model.state_dict())
    k = keys(root(1, "images"), torch.arange(12))
    method = LocalFeatureMasking(p=0.6, channel_ratio=0.4, area=(0.1, 0.3), aspect=(0.5, 2.0), fill=0.25)
    before = model.eval()(x)
    model.train()
    with method.attach(model, example=x, seed=7) as a, capture(model, ["0"]) as f:
        assert a.sites == ("0",) and list(model.state_dict()) == names
        set_keys(model, k)
        model(x)
        conv = nn.functional.conv2d(x, model[0].weight, model[0].bias)
        want = local_feature_mask(
            conv, p=0.6, channel_ratio=0.4, area=(0.1, 0.3), aspect=(0.5, 2.0), fill=0.25, training=True,
            key=fold(fold(k, root(7, "lfm:0")), 0),
        )  # fmt: skip
        assert torch.equal(f["0"], want) and not torch.equal(want, conv)
        # masked values take part in the batch statistics
        torch.testing.assert_close(model[1].running_mean, 0.9 * torch.zeros(8) + 0.1 * want.mean((0, 2, 3)))
    model[1].reset_running_stats()
    assert torch.equal(model.eval()(x), before)


def test_stages_are_sites() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Flatten())
    x = torch.rand(1, 3, 8, 8)
    with LocalFeatureMasking(sites=("stem", "stage1", "3")).attach(model, example=x, seed=0) as a:
        assert a.sites == ("0", "2", "3")


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
    ],
)
def test_values_out_of_range_are_errors(change: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        LocalFeatureMasking(**change)  # type: ignore[arg-type]


def test_a_place_that_cannot_be_masked_is_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.rand(1, 3, 8, 8)
    for site in ("1", "2"):
        with pytest.raises(AttachError, match=rf"lfm: {site} must give \(n, c, h, w\) with h, w > 1; got"):
            LocalFeatureMasking(sites=(site,)).attach(model, example=x, seed=0)
    with pytest.raises(LayerNotFoundError, match=r"no layer 'nope'"):
        LocalFeatureMasking(sites=("nope",)).attach(model, example=x, seed=0)
    with pytest.raises(LayerNotFoundError, match=r"no stage 'stage9'"):
        LocalFeatureMasking(sites=("stage9",)).attach(model, example=x, seed=0)
    assert [name for name, _ in model.named_children()] == ["0", "1", "2"]


def test_says_what_it_is() -> None:
    layer = LocalFeatureMask2d(LocalFeatureMasking(p=0.3), seed=0)
    assert "p=0.3" in repr(layer)
    assert CARD.kind == "layer" and not CARD.live and any("stripes" in text for text in CARD.deviations)
