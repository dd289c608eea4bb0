"""Fills: black, one colour, keyed noise, and a blur that is checked against a loop; none depends on the batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from hardy import seeding
from hardy.corruptions.fills import blur_fill, channel_mean, mean_fill, noise_fill, zero_fill
from hardy.errors import ParameterError


def keys(n: int) -> Tensor:
    return seeding.keys(seeding.root(0, "test"), torch.arange(n))


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_zero_is_black_and_mean_is_one_colour() -> None:
    x = images(4, 3, 5, 6)
    assert torch.equal(zero_fill(x), torch.zeros(4, 3, 5, 6))
    filled = mean_fill(x, mean=torch.tensor([0.1, 0.5, 0.9]))
    assert filled.shape == x.shape and torch.equal(filled[2, :, 4, 1], torch.tensor([0.1, 0.5, 0.9]))
    assert (filled.flatten(2).amax(2) == filled.flatten(2).amin(2)).all()


def test_channel_mean_is_the_nearest_gray_level_whatever_the_order_of_the_images() -> None:
    x = images(30, 3, 8, 8)
    exact = x.double().mean(dim=(0, 2, 3))
    got = channel_mean(x)
    assert ((got - exact).abs() <= 0.5 / 255 + 1e-7).all()
    torch.testing.assert_close(got * 255, (got * 255).round())
    assert torch.equal(channel_mean(x.flip(0)), got)
    assert torch.equal(channel_mean(torch.full((2, 1, 4, 4), 100 / 255)), torch.tensor([100 / 255]))


def test_noise_is_uniform_and_belongs_to_the_key() -> None:
    x, key, rng = images(40, 3, 9, 9), keys(40), torch.get_rng_state()
    noise = noise_fill(x, key=key)
    assert stats.kstest(noise.flatten().double().numpy(), "uniform").pvalue > 1e-3
    assert torch.equal(noise_fill(x[[7, 3]], key=key[[7, 3]]), noise[[7, 3]])
    assert torch.equal(noise_fill(1 - x, key=key), noise)
    assert not torch.equal(noise_fill(x, key=key, counter=1), noise)
    assert torch.equal(rng, torch.get_rng_state())


def reference_blur(image: Tensor, cells: int) -> Tensor:
    """Average cells that divide the image; then at each pixel mix the four cell centres around it."""
    c, h, w = image.shape
    high, wide = h // cells, w // cells
    small = torch.zeros(c, cells, cells, dtype=torch.float64)
    for a in range(cells):
        for b in range(cells):
            small[:, a, b] = image[:, a * high : (a + 1) * high, b * wide : (b + 1) * wide].double().mean(dim=(1, 2))
    out = torch.zeros(c, h, w, dtype=torch.float64)
    for i in range(h):
        for j in range(w):
            u, v = max(0.0, (i + 0.5) / high - 0.5), max(0.0, (j + 0.5) / wide - 0.5)
            a, b = int(u), int(v)
            a1, b1 = min(a + 1, cells - 1), min(b + 1, cells - 1)
            top = (1 - v + b) * small[:, a, b] + (v - b) * small[:, a, b1]
            low = (1 - v + b) * small[:, a1, b] + (v - b) * small[:, a1, b1]
            out[:, i, j] = (1 - u + a) * top + (u - a) * low
    return out


@pytest.mark.parametrize(("shape", "cells"), [((3, 8, 8), 4), ((1, 12, 6), 3), ((2, 6, 6), 1), ((1, 8, 8), 2)])
def test_blur_equals_a_loop(shape: tuple[int, ...], cells: int) -> None:
    x = images(2, *shape)
    expected = torch.stack([reference_blur(image, cells) for image in x])
    torch.testing.assert_close(blur_fill(x, cells=cells).double(), expected, rtol=0, atol=1e-6)


@given(h=st.integers(1, 20), w=st.integers(1, 20), cells=st.integers(1, 8))
def test_blur_works_at_any_size_stays_in_the_box_and_keeps_what_is_flat(h: int, w: int, cells: int) -> None:
    x = images(3, 2, h, w).round()
    blurred = blur_fill(x, cells=cells)
    assert blurred.shape == x.shape and blurred.min() >= 0 and blurred.max() <= 1
    assert (blurred.amax(dim=(2, 3)) <= x.amax(dim=(2, 3))).all()
    torch.testing.assert_close(blur_fill(torch.full_like(x, 0.3), cells=cells), torch.full_like(x, 0.3))
    assert torch.equal(blur_fill(x[1:2], cells=cells), blurred[1:2])


def test_blur_leaves_nothing_of_what_is_finer_than_a_cell() -> None:
    board = (torch.arange(32)[:, None] + torch.arange(32)).remainder(2).float().expand(1, 3, 32, 32)
    torch.testing.assert_close(blur_fill(board, cells=4), torch.full((1, 3, 32, 32), 0.5))
    assert float((blur_fill(images(4, 3, 32, 32), cells=4) - 0.5).abs().max()) < 0.2  # 64 pixels: sigma 0.036


def test_no_cells_is_an_error() -> None:
    with pytest.raises(ParameterError, match="cells must be at least 1; got 0"):
        blur_fill(images(1, 1, 4, 4), cells=0)
