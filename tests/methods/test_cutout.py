"""Cutout against a slow loop with the same uniform numbers, and against the exact chances of each pixel."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hardy.errors import ParameterError
from hardy.methods.cutout import CARD, Cutout, cutout, squares
from hardy.objective import Objective
from hardy.seeding import fold, keys, root, uniform
from hardy.surgery import attachments


def key(n: int, seed: int = 0) -> Tensor:
    return keys(root(seed, "test"), torch.arange(n))


def cut(x: Tensor, key: Tensor, *, size: float = 0.5, fill: float = 0.5, p: float = 1.0) -> Tensor:
    return cutout(x, size=size, fill=fill, p=p, key=key)


def reference(x: Tensor, key: Tensor, size: float, fill: float, p: float) -> Tensor:
    out, (n, _, h, w) = x.clone(), x.shape
    side = round(size * min(h, w))
    for i in range(n):
        own = key[i : i + 1]
        if uniform(own, 0, ())[0] >= p:
            continue
        u, v = uniform(own, 1, (2,))[0].tolist()
        top, left = int(u * h) - side // 2, int(v * w) - side // 2
        for row in range(max(0, top), min(h, top + side)):
            for column in range(max(0, left), min(w, left + side)):
                out[i, :, row, column] = fill
    return out


def covered(length: int, side: int) -> list[list[int]]:
    """For each centre along one side of the image: 1 where the square covers."""
    return [[int(c - side // 2 <= at < c - side // 2 + side) for at in range(length)] for c in range(length)]


@pytest.mark.parametrize(
    "shape", [(6, 3, 8, 8), (1, 1, 5, 9), (4, 3, 3, 3), (3, 3, 32, 20), (4, 2, 1, 7), (0, 3, 4, 4)]
)
@pytest.mark.parametrize(("size", "fill", "p"), [(0.5, 0.5, 1.0), (0.3, 0.0, 0.5), (1.0, 0.25, 0.7), (0.0, 0.5, 1.0)])
def test_equals_the_slow_reference(shape: tuple[int, ...], size: float, fill: float, p: float) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    for seed in range(3):
        k = key(shape[0], seed)
        assert torch.equal(cut(x, k, size=size, fill=fill, p=p), reference(x, k, size, fill, p))


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 33), w=st.integers(1, 33), size=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_one_clipped_square_through_all_channels_and_nothing_else(h: int, w: int, size: float, seed: int) -> None:
    x = torch.rand(3, 2, h, w, generator=torch.Generator().manual_seed(seed)) + 0.1
    before, y = x.clone(), cut(x, key(3, seed), size=size, fill=0.0)
    inside, side = y == 0, round(size * min(h, w))
    assert torch.equal(inside.all(1), inside.any(1)) and torch.equal(x, before)
    assert torch.equal(y[~inside], x[~inside])
    height, width = inside[:, 0].any(-1).sum(-1), inside[:, 0].any(-2).sum(-1)
    assert torch.equal(inside[:, 0].sum((1, 2)), height * width)
    half = side // 2  # at least the smaller half of a square with its centre in a corner is inside
    assert ((min(half, h) <= height) & (height <= side) & (min(half, w) <= width) & (width <= side)).all()


@pytest.mark.parametrize(("h", "w", "size"), [(8, 8, 0.5), (4, 6, 0.75), (2, 2, 0.5), (7, 5, 1.0)])
def test_every_pixel_is_cut_as_often_as_an_exact_count_says(h: int, w: int, size: float) -> None:
    n, side = 20_000, round(size * min(h, w))
    rows, columns = torch.tensor(covered(h, side)).double(), torch.tensor(covered(w, side)).double()
    inside = squares(key(n), (h, w), size=size)[:, 0].double()
    chance = rows.mean(0)[:, None] * columns.mean(0)
    assert ((inside.mean(0) - chance).abs() <= 4 * (chance * (1 - chance) / n).sqrt()).all()
    area = rows.sum(1)[:, None] * columns.sum(1)  # of all h w equally likely squares
    assert abs(inside.sum((1, 2)).mean() - area.mean()) <= 4 * area.std(correction=0) / n**0.5
    assert set(inside.sum((1, 2)).tolist()) == set(area.flatten().tolist())


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_share_of_cut_images_is_p_and_the_others_are_bit_equal(p: float, size: int) -> None:
    n = 3000
    x = torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(0))
    hit = (cut(x, key(n), fill=1.0, p=p) != x).flatten(1).any(1)
    assert abs(hit.float().mean() - p) < 4 * (p * (1 - p) / n) ** 0.5
    assert torch.equal(cut(x, key(n), p=0.0), x) and torch.equal(cut(x, key(n), size=0.0), x)


def test_the_default_is_16_of_32_pixels() -> None:
    inside = squares(key(500), (32, 32), size=Cutout().size)[:, 0]
    assert inside.any(2).sum(1).max() == 16 == inside.any(1).sum(1).max()
    assert inside.any(2).sum(1).min() == 8  # a centre in the first row leaves half


def test_rows_do_not_depend_on_the_batch_nor_on_the_global_generator() -> None:
    x, k, order = torch.rand(6, 3, 9, 9), key(6), torch.tensor([5, 0, 3, 1, 4, 2])
    rng, whole = torch.get_rng_state(), cut(x, k, p=0.5)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(cut(x[order], k[order], p=0.5), whole[order])
    assert torch.equal(torch.cat([cut(x[:2], k[:2], p=0.5), cut(x[2:], k[2:], p=0.5)]), whole)


def test_gradients_inside_are_zero() -> None:
    x = torch.rand(4, 3, 8, 8, requires_grad=True)
    y = cut(x, key(4), fill=0.0)
    (g,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(g, (y != 0).float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_and_memory_format_stay(dtype: torch.dtype) -> None:
    x = torch.rand(3, 3, 8, 8).to(dtype, memory_format=torch.channels_last)
    y = cut(x, key(3))
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)


class Echo(nn.Module):
    """Shows what the net saw: its logits are the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_attach_cuts_in_the_objective_with_the_key_of_the_row_and_the_seed_of_the_caller() -> None:
    model, x = Echo(), torch.rand(8, 3, 8, 8)
    k, y = key(8, 5), torch.zeros(8, dtype=torch.int64)
    a = Cutout(size=0.6, fill=0.25, p=0.6).attach(model, example=x, seed=7)
    assert a.sites == () and list(model.state_dict()) == []
    objective = Objective(model)
    want = cutout(x, size=0.6, fill=0.25, p=0.6, key=fold(k, root(7, "cutout")))
    assert torch.equal(objective(x, y, k)[0], want.flatten(1)) and not torch.equal(want, x)
    assert torch.equal(objective.eval()(x, y, k)[0], x.flatten(1))
    assert torch.equal(model(x), x.flatten(1))  # without labels and keys nothing happens
    a.detach()
    assert attachments(model) == [] and torch.equal(objective.train()(x, y, k)[0], x.flatten(1))


@pytest.mark.parametrize("name", ["size", "fill", "p"])
@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_values_out_of_range_are_errors(name: str, value: float) -> None:
    with pytest.raises(ParameterError, match=rf"Cutout: {name} must be in \[0, 1\]; got"):
        Cutout(**{name: value})


def test_says_what_it_is() -> None:
    assert CARD.kind == "input" and not CARD.live and "16 of 32" in CARD.defaults_from
