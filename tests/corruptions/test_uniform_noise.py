"""Uniform noise has the width asked for, is keyed per image, and stays in the box."""

import pytest
import torch
from scipy import stats
from torch import Tensor

from hardy import seeding
from hardy.corruptions.uniform_noise import uniform_noise
from hardy.errors import ParameterError


def keys(n: int) -> Tensor:
    return seeding.keys(seeding.root(0, "test"), torch.arange(n))


def test_noise_is_uniform_up_to_the_given_width() -> None:
    delta = uniform_noise(torch.full((50, 3, 9, 9), 0.5), width=0.2, key=keys(50)) - 0.5
    assert stats.kstest((delta.flatten().double() / 0.2).numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert abs(torch.corrcoef(delta.flatten(1)[:2])[0, 1]) < 4 / (3 * 81) ** 0.5  # two images share nothing
    channels = torch.corrcoef(delta.transpose(0, 1).flatten(1))
    assert abs(channels[0, 1]) < 4 / (50 * 81) ** 0.5  # nor do two channels


def test_stays_in_the_box_and_width_scales_one_pattern() -> None:
    x = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    noisy = uniform_noise(x, width=5.0, key=keys(8))
    assert noisy.min() == 0 and noisy.max() == 1
    gray = torch.full_like(x, 0.5)
    small, large = (uniform_noise(gray, width=w, key=keys(8)) - 0.5 for w in (0.1, 0.2))
    torch.testing.assert_close(large, 2 * small, rtol=1e-4, atol=1e-6)
    assert torch.equal(uniform_noise(x, width=0.0, key=keys(8)), x)


def test_an_image_does_not_depend_on_its_batch_nor_on_the_global_generator() -> None:
    x, key, rng = torch.rand(8, 1, 6, 6), keys(8), torch.get_rng_state()
    whole, order = uniform_noise(x, width=0.1, key=key), torch.tensor([5, 2])
    assert torch.equal(uniform_noise(x[order], width=0.1, key=key[order]), whole[order])
    assert not torch.equal(uniform_noise(x, width=0.1, key=key, counter=1), whole)
    assert torch.equal(rng, torch.get_rng_state())


def test_a_negative_width_is_an_error() -> None:
    with pytest.raises(ParameterError, match="width must be at least 0; got -1"):
        uniform_noise(torch.rand(1, 1, 2, 2), width=-1.0, key=keys(1))
