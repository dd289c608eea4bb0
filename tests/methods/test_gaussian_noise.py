"""Noise has the promised size and is clipped; images that stay clean stay bit-equal."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from hardy.errors import ParameterError
from hardy.methods.gaussian_noise import CARD, GaussianNoise, gaussian_noise
from hardy.objective import Objective
from hardy.seeding import fold, keys, normal, root, uniform


def key(n: int, seed: int = 0) -> Tensor:
    return keys(root(seed, "test"), torch.arange(n))


def test_equals_the_slow_reference() -> None:
    x, k = torch.rand(9, 3, 5, 7, generator=torch.Generator().manual_seed(0)), key(9)
    want = x.clone()
    for i in range(9):
        own = k[i : i + 1]
        if uniform(own, 0, ())[0] < 0.6:
            want[i] = (x[i] + 0.3 * normal(own, 1, (3, 5, 7))[0]).clamp(0, 1)
    assert torch.equal(gaussian_noise(x, sigma=0.3, p=0.6, key=k), want)


@pytest.mark.parametrize("sigma", [0.02, 0.1])
@pytest.mark.parametrize("size", [1, 2, 4, 16])
def test_noise_is_normal_with_sigma(sigma: float, size: int) -> None:
    n = 8000 // size**2
    noise = (gaussian_noise(torch.full((n, 1, size, size), 0.5), sigma=sigma, p=1.0, key=key(n)) - 0.5).flatten()
    assert abs(noise.mean()) < 4 * sigma / len(noise) ** 0.5
    assert abs(noise.std() / sigma - 1) < 4 / (2 * len(noise)) ** 0.5
    assert stats.kstest((noise[noise.abs() < 0.5] / sigma).numpy(), "norm").pvalue > 1e-3


def test_result_is_an_image() -> None:
    x = torch.rand(50, 3, 8, 8)
    y = gaussian_noise(x, sigma=0.8, p=1.0, key=key(50))
    assert y.min() == 0 and y.max() == 1


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_of_noisy_images_is_p_and_the_others_are_bit_equal(p: float) -> None:
    n = 4000
    x = torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    noisy = (gaussian_noise(x, sigma=0.1, p=p, key=key(n)) != x).flatten(1)
    assert torch.equal(noisy.any(1), noisy.sum(1) >= 2)  # clipping at a border may spare a pixel, not an image
    assert abs(noisy.any(1).float().mean() - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_no_noise_at_p_0_or_sigma_0() -> None:
    x = torch.rand(5, 3, 4, 4)
    assert torch.equal(gaussian_noise(x, sigma=0.5, p=0.0, key=key(5)), x)
    assert torch.equal(gaussian_noise(x, sigma=0.0, p=1.0, key=key(5)), x)


def test_rows_do_not_depend_on_the_batch_and_the_input_is_left_alone() -> None:
    x, k, order = torch.rand(6, 3, 5, 5), key(6), torch.tensor([5, 0, 3, 1, 4, 2])
    before, whole = x.clone(), gaussian_noise(x, sigma=0.1, p=0.5, key=k)
    assert torch.equal(gaussian_noise(x[order], sigma=0.1, p=0.5, key=k[order]), whole[order])
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_and_memory_format_stay(dtype: torch.dtype) -> None:
    x = torch.rand(3, 3, 8, 8).to(dtype, memory_format=torch.channels_last)
    y = gaussian_noise(x, sigma=0.1, p=0.7, key=key(3))
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)


class Echo(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_attach_adds_noise_in_the_objective_with_the_key_of_the_row_and_the_seed_of_the_caller() -> None:
    model, x = Echo(), torch.rand(8, 3, 4, 4)
    k, y = key(8, 5), torch.zeros(8, dtype=torch.int64)
    a = GaussianNoise(sigma=0.2, p=0.6).attach(model, example=x, seed=7)
    assert a.sites == () and list(model.state_dict()) == []
    objective = Objective(model)
    want = gaussian_noise(x, sigma=0.2, p=0.6, key=fold(k, root(7, "gaussian_noise")))
    assert torch.equal(objective(x, y, k)[0], want.flatten(1)) and not torch.equal(want, x)
    assert torch.equal(objective.eval()(x, y, k)[0], x.flatten(1))
    a.detach()
    assert torch.equal(objective.train()(x, y, k)[0], x.flatten(1))


@pytest.mark.parametrize("name", ["sigma", "p"])
@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_values_out_of_range_are_errors(name: str, value: float) -> None:
    with pytest.raises(ParameterError, match=rf"GaussianNoise: {name} must be in \[0, 1\]; got"):
        GaussianNoise(**{name: value})


def test_says_what_it_is() -> None:
    assert CARD.kind == "input" and not CARD.live
