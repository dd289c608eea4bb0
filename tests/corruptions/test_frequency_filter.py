"""Low and high pass against scipy's cosine transform with a loop over terms."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dctn, idctn
from torch import Tensor

from hardy.corruptions.frequency_filter import high_pass, low_pass
from hardy.errors import ParameterError

Image = npt.NDArray[np.float64]


def images(n: int, c: int, h: int, w: int, contrast: float = 1.0) -> Tensor:
    x = torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(h * w))
    return 0.5 + contrast * (x - 0.5)


def reference(x: Tensor, cutoff: float, *, high: bool) -> Image:
    terms = dctn(x.double().numpy(), axes=(2, 3), norm="ortho")
    h, w = x.shape[2:]
    for i in range(h):
        for j in range(w):
            passes = math.hypot(i / h, j / w) <= cutoff + 1e-6
            if passes == high and (i, j) != (0, 0):
                terms[:, :, i, j] = 0
    return np.clip(idctn(terms, axes=(2, 3), norm="ortho"), 0, 1)


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (2, 1, 5, 12), (1, 2, 1, 7), (1, 1, 33, 16)])
@pytest.mark.parametrize("cutoff", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_equals_a_loop_over_the_terms(shape: tuple[int, int, int, int], cutoff: float) -> None:
    x = images(*shape)
    np.testing.assert_allclose(low_pass(x, cutoff=cutoff).numpy(), reference(x, cutoff, high=False), atol=2e-6)
    np.testing.assert_allclose(high_pass(x, cutoff=cutoff).numpy(), reference(x, cutoff, high=True), atol=2e-6)


@given(h=st.integers(1, 20), w=st.integers(1, 20), cutoff=st.floats(0, 1.5), width=st.sampled_from([0.0, 0.1, 0.5]))
def test_low_and_high_pass_sum_to_the_image_and_its_mean(h: int, w: int, cutoff: float, width: float) -> None:
    x = images(2, 3, h, w, contrast=0.02)  # so that nothing is clamped
    mean = x.mean(dim=(2, 3), keepdim=True)
    both = low_pass(x, cutoff=cutoff, width=width) + high_pass(x, cutoff=cutoff, width=width)
    torch.testing.assert_close(both, x + mean, rtol=0, atol=2e-6)


@given(a=st.floats(0, 1.5), b=st.floats(0, 1.5))
def test_a_higher_cutoff_leaves_more_of_the_coarse_and_less_of_the_fine(a: float, b: float) -> None:
    x = images(1, 1, 12, 9, contrast=0.1)
    a, b = sorted((a, b))
    for kept, less, more in ((low_pass, a, b), (high_pass, b, a)):
        small, large = (kept(x, cutoff=cutoff).var() for cutoff in (less, more))
        assert small <= large + 1e-7


def test_a_wave_passes_below_its_cutoff_and_not_above() -> None:
    at = (torch.arange(32) + 0.5) / 32
    wave = 0.5 + 0.2 * torch.cos(math.pi * 8 * at).expand(1, 1, 32, 32)  # term 8 of 32: frequency 1/4
    gray = torch.full_like(wave, 0.5)
    for cutoff, low, high in ((0.2, gray, wave), (0.3, wave, gray)):
        torch.testing.assert_close(low_pass(wave, cutoff=cutoff), low, rtol=0, atol=1e-5)
        torch.testing.assert_close(high_pass(wave, cutoff=cutoff), high, rtol=0, atol=1e-5)
    half = low_pass(wave, cutoff=0.25, width=0.2)  # in the middle of a smooth edge
    torch.testing.assert_close(half - 0.5, (wave - 0.5) / 2, rtol=0, atol=1e-5)


def test_the_ends_are_the_mean_and_the_image() -> None:
    x = images(2, 3, 10, 6)
    mean = x.mean(dim=(2, 3), keepdim=True).expand_as(x)
    torch.testing.assert_close(low_pass(x, cutoff=0.0), mean, rtol=0, atol=2e-6)
    torch.testing.assert_close(high_pass(x, cutoff=0.0), x, rtol=0, atol=2e-6)
    torch.testing.assert_close(low_pass(x, cutoff=math.sqrt(2)), x, rtol=0, atol=2e-6)
    torch.testing.assert_close(high_pass(x, cutoff=math.sqrt(2)), mean, rtol=0, atol=2e-6)


def test_a_smooth_filter_rings_less_at_an_edge() -> None:
    step = torch.full((1, 1, 32, 32), 0.3)
    step[..., 16:] = 0.7
    overshoot = [float(low_pass(step, cutoff=0.3, width=width).max()) - 0.7 for width in (0.0, 0.4)]
    assert overshoot[1] < 0.7 * overshoot[0]


def test_stays_in_the_box_and_an_image_does_not_depend_on_its_batch() -> None:
    x = images(6, 3, 16, 16).round()
    for made in (low_pass, high_pass):
        whole = made(x, cutoff=0.4)
        assert whole.min() == 0 and whole.max() == 1
        order = torch.tensor([4, 1])
        torch.testing.assert_close(made(x[order], cutoff=0.4), whole[order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"cutoff": -0.1}, {"cutoff": float("nan")}, {"cutoff": 0.5, "width": -1.0}])
def test_negative_numbers_are_errors(wrong: dict[str, float]) -> None:
    with pytest.raises(ParameterError, match=r"low_pass: (cutoff|width) must be at least 0; got"):
        low_pass(images(1, 1, 2, 2), **wrong)
    with pytest.raises(ParameterError, match="high_pass: "):
        high_pass(images(1, 1, 2, 2), **wrong)
