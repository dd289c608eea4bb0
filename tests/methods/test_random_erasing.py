"""Random erasing against a slow loop with the same uniform numbers, and against what the paper promises."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hardy.errors import ParameterError
from hardy.methods import lfm
from hardy.methods.random_erasing import CARD, RandomErasing, random_erasing
from hardy.objective import Objective
from hardy.seeding import fold, keys, root, uniform
from hardy.surgery import attachments

AREA, ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)


def key(n: int, seed: int = 0) -> Tensor:
    return keys(root(seed, "test"), torch.arange(n))


def erase(x: Tensor, key: Tensor, *, p: float = 1.0, fill: float | Literal["uniform"] = "uniform") -> Tensor:
    return random_erasing(x, p=p, area=AREA, aspect=ASPECT, fill=fill, key=key)


def reference(x: Tensor, key: Tensor, p: float) -> Tensor:
    """Algorithm 1, image by image."""
    out, (n, c, h, w) = x.clone(), x.shape
    for i in range(n):
        own = key[i : i + 1]
        if uniform(own, 0, ())[0] >= p:
            continue
        noise, u = uniform(own, 4, (c, h, w))[0], uniform(own, 3, (4, lfm.TRIES, 1))[0, :, :, 0].numpy()
        for s, q, top, left in u.T:
            size = (np.float32(AREA[0]) + np.float32(AREA[1] - AREA[0]) * s) * np.float32(h * w)
            ratio = np.float32(ASPECT[0]) + np.float32(ASPECT[1] - ASPECT[0]) * q
            height, width = (max(1, int(np.rint(np.sqrt(side)))) for side in (size * ratio, size / ratio))
            if height < h and width < w:
                row, column = int(top * np.float32(h - height + 1)), int(left * np.float32(w - width + 1))
                box = (slice(None), slice(row, row + height), slice(column, column + width))
                out[(i, *box)] = noise[box]
                break
    return out


@pytest.mark.parametrize(
    "shape", [(6, 3, 8, 8), (1, 1, 5, 9), (4, 3, 3, 3), (3, 3, 32, 20), (4, 2, 2, 2), (0, 3, 4, 4)]
)
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_equals_the_slow_reference(shape: tuple[int, ...], p: float) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    for seed in range(3):
        k = key(shape[0], seed)
        assert torch.equal(erase(x, k, p=p), reference(x, k, p))


@settings(max_examples=40, deadline=None)
@given(c=st.integers(1, 4), h=st.integers(2, 33), w=st.integers(2, 33), seed=st.integers(0, 10**6))
def test_one_rectangle_through_all_channels_and_nothing_else(c: int, h: int, w: int, seed: int) -> None:
    x = torch.rand(3, c, h, w, generator=torch.Generator().manual_seed(seed))
    before = x.clone()
    inside = erase(x, key(3, seed), fill=0.0) == 0
    assert torch.equal(inside.all(1), inside.any(1))
    height, width = inside[:, 0].any(-1).sum(-1), inside[:, 0].any(-2).sum(-1)
    assert torch.equal(inside[:, 0].sum((1, 2)), height * width)
    assert ((height < h) & (width < w)).all()
    low, high, drawn = AREA[0] * h * w, AREA[1] * h * w, inside.flatten(1).any(1)
    assert ((height + 0.5) * (width + 0.5) >= low)[drawn].all()
    assert ((height - 0.5).clamp(min=0) * (width - 0.5).clamp(min=0) <= high)[drawn].all()
    y = erase(x, key(3, seed))
    assert torch.equal(y[~inside], x[~inside]) and torch.equal(x, before)
    assert y.min() >= 0 and y.max() <= 1


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_share_of_erased_images_is_p(p: float, size: int) -> None:
    n = 3000
    hit = (erase(torch.full((n, 1, size, size), 5.0), key(n), p=p) != 5).flatten(1).any(1)
    # on a 2x2 image a draw does not fit in a third of the cases, so a few of 10 tries all fail
    never = 0.5**lfm.TRIES
    assert p * (1 - never) - 4 * (p * (1 - p) / n) ** 0.5 < hit.float().mean() < p + 4 * (p * (1 - p) / n) ** 0.5


def test_fill_is_noise_for_every_pixel_and_channel() -> None:
    y = erase(torch.full((200, 3, 16, 16), 5.0), key(200))
    noise = y[y != 5]
    assert noise.min() >= 0 and noise.max() < 1 and len(noise.unique()) > 0.99 * len(noise)
    assert abs(noise.mean() - 0.5) < 4 * (1 / 12 / len(noise)) ** 0.5
    assert abs(noise.var() - 1 / 12) < 4 * (1 / 180 / len(noise)) ** 0.5
    assert set(erase(torch.full((20, 3, 16, 16), 5.0), key(20), fill=0.25).unique().tolist()) == {0.25, 5.0}


def test_rows_do_not_depend_on_the_batch() -> None:
    x, k, order = torch.rand(6, 3, 9, 9), key(6), torch.tensor([5, 0, 3, 1, 4, 2])
    whole = erase(x, k, p=0.5)
    assert torch.equal(erase(x[order], k[order], p=0.5), whole[order])
    assert torch.equal(torch.cat([erase(x[:2], k[:2], p=0.5), erase(x[2:], k[2:], p=0.5)]), whole)


def test_gradients_inside_are_zero() -> None:
    x = torch.rand(4, 3, 8, 8, requires_grad=True)
    y = erase(x, key(4), fill=0.0)
    (g,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(g, (y != 0).float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fill", ["uniform", 0.5])
def test_dtype_and_memory_format_stay(dtype: torch.dtype, fill: float | Literal["uniform"]) -> None:
    x = torch.rand(3, 3, 8, 8).to(dtype, memory_format=torch.channels_last)
    y = erase(x, key(3), fill=fill)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)


class Echo(nn.Module):
    """Shows what the net saw: its logits are the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_attach_erases_in_the_objective_with_the_key_of_the_row_and_the_seed_of_the_caller() -> None:
    model, x = Echo(), torch.rand(8, 3, 8, 8)
    k, y = key(8, 5), torch.zeros(8, dtype=torch.int64)
    method = RandomErasing(p=0.6, area=(0.1, 0.2), aspect=(0.5, 2.0), fill=0.5)
    a = method.attach(model, example=x, seed=7)
    assert a.sites == () and list(model.state_dict()) == []
    objective = Objective(model)
    want = random_erasing(
        x, p=0.6, area=(0.1, 0.2), aspect=(0.5, 2.0), fill=0.5, key=fold(k, root(7, "random_erasing"))
    )
    assert torch.equal(objective(x, y, k)[0], want.flatten(1)) and not torch.equal(want, x)
    assert torch.equal(objective.eval()(x, y, k)[0], x.flatten(1))
    assert torch.equal(model(x), x.flatten(1))  # without labels and keys nothing happens
    a.detach()
    assert attachments(model) == [] and torch.equal(objective.train()(x, y, k)[0], x.flatten(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": 2.0}, r"RandomErasing: p must be in \[0, 1\]; got 2.0"),
        ({"area": (0.0, 0.4)}, r"area must be 0 < low <= high <= 1"),
        ({"area": (0.1, 1.4)}, r"area must be"),
        ({"aspect": (0.0, 1.0)}, r"aspect must be 0 < low <= high"),
        ({"aspect": (2.0, 1.0)}, r"aspect must be"),
        ({"aspect": (1.0, math.inf)}, r"aspect must be"),
        ({"fill": 1.5}, r"fill must be in \[0, 1\]; got 1.5"),
    ],
)
def test_values_out_of_range_are_errors(change: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        RandomErasing(**change)  # type: ignore[arg-type]


def test_says_what_it_is() -> None:
    assert CARD.kind == "input" and not CARD.live and len(CARD.deviations) == 2
