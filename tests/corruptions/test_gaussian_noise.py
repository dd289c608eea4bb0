"""Gaussian noise has the spread asked for, is keyed per image, and stays in the box."""

import pytest
import torch
from scipy import stats

from hardy import seeding
from hardy.corruptions import gaussian_noise
from hardy.errors import ParameterError


def keys(n: int) -> torch.Tensor:
    return seeding.keys(seeding.root(0, "test"), torch.arange(n))


def test_noise_is_normal_with_the_given_sigma() -> None:
    delta = gaussian_noise(torch.full((50, 3, 9, 9), 0.5), sigma=0.05, key=keys(50)) - 0.5
    assert stats.kstest((delta.flatten().double() / 0.05).numpy(), "norm").pvalue > 1e-3
    assert abs(torch.corrcoef(delta.flatten(1)[:2])[0, 1]) < 4 / (3 * 81) ** 0.5


def test_stays_in_the_box_and_sigma_scales_one_pattern() -> None:
    x = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    noisy = gaussian_noise(x, sigma=5.0, key=keys(8))
    assert noisy.min() == 0 and noisy.max() == 1
    gray = torch.full_like(x, 0.5)
    small, large = (gaussian_noise(gray, sigma=s, key=keys(8)) - 0.5 for s in (0.01, 0.02))
    torch.testing.assert_close(large, 2 * small, rtol=1e-4, atol=1e-6)
    assert torch.equal(gaussian_noise(x, sigma=0.0, key=keys(8)), x)


def test_an_image_does_not_depend_on_its_batch_nor_on_the_global_generator() -> None:
    x, key, rng = torch.rand(8, 1, 6, 6), keys(8), torch.get_rng_state()
    whole, order = gaussian_noise(x, sigma=0.1, key=key), torch.tensor([5, 2])
    assert torch.equal(gaussian_noise(x[order], sigma=0.1, key=key[order]), whole[order])
    assert not torch.equal(gaussian_noise(x, sigma=0.1, key=key, counter=1), whole)
    assert torch.equal(rng, torch.get_rng_state())


def test_a_negative_sigma_is_an_error() -> None:
    with pytest.raises(ParameterError, match="sigma must be at least 0; got -1"):
        gaussian_noise(torch.rand(1, 1, 2, 2), sigma=-1.0, key=keys(1))
