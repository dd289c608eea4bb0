"""The noise corruptions against NumPy image by image, against exact probabilities, and in what the key promises."""

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from hardy import seeding
from hardy.corruptions import _chunks, noise
from hardy.corruptions.scale import SCALES, SEVERITIES, Scale
from hardy.errors import ParameterError

REFERENCE = runpy.run_path(str(Path(__file__).with_name("reference_noise.py")))
Corrupt = Callable[..., Tensor]
EACH: dict[str, Corrupt] = {
    "gaussian_noise": noise.gaussian,
    "shot_noise": noise.shot,
    "impulse_noise": noise.impulse,
    "speckle_noise": noise.speckle,
}
TABLES = {
    "gaussian_noise": noise.SIGMAS,
    "shot_noise": noise.PHOTONS,
    "impulse_noise": noise.AMOUNTS,
    "speckle_noise": noise.SPECKLES,
}


def keys(n: int, seed: int = 0) -> Tensor:
    return seeding.keys(seeding.root(seed, "test"), torch.arange(n))


def images(n: int, *shape: int) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", EACH)
def test_constants_are_the_published_ones(name: str) -> None:
    assert {scale: list(TABLES[name][scale]) for scale in SCALES} == REFERENCE["CONSTANTS"][name]


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", EACH)
def test_has_the_distribution_of_the_reference_at_every_level(name: str, scale: Scale, severity: int) -> None:
    n, rng = 40_000, np.random.default_rng(severity)
    for level in (0.02, 0.35, 0.97):
        x = torch.full((20, 1, 40, 50), level)
        got = EACH[name](x, severity=severity, scale=scale, key=keys(20)).double().flatten().numpy()
        want = REFERENCE["REFERENCES"][name](np.full((n, 1, 1), level), severity, scale, rng).flatten()
        # both sides to one rounding: without it a count / photons in float32 is another number than in float64
        assert stats.ks_2samp(got.round(5), want.round(5)).pvalue > 1e-4
        moments = [np.array([part.mean(), ((part - level) ** 2).mean()]) for part in (got, want)]
        error = np.array([want.std(), ((want - level) ** 2).std()]) * (2 / n) ** 0.5
        assert (abs(moments[0] - moments[1]) <= 4.5 * error + 1e-6).all()


def test_gaussian_and_speckle_are_scaled_keyed_normal_numbers() -> None:
    x, key = images(5, 3, 7, 6), keys(5)
    z = seeding.normal(key, 2, (3, 7, 6))
    got = noise.gaussian(x, severity=4, scale="imagenet", key=key, counter=2)
    torch.testing.assert_close(got, (x + 0.26 * z).clamp(0, 1))
    got = noise.speckle(x, severity=2, scale="cifar", key=key, counter=2)
    torch.testing.assert_close(got, (x + 0.1 * x * z).clamp(0, 1))


@pytest.mark.parametrize("most", [3, 12, 25, 500])
def test_counts_invert_the_poisson_distribution(most: int) -> None:
    u, k = (torch.arange(2**20) + 0.5) / 2**20, np.arange(most + 1)
    for mean in (0.0, 0.01, 0.7, 3.0, 9.99, 10.01, 11.5, 24.0, 60.0, 499.0):
        if mean <= most:
            got = noise._counts(torch.full_like(u, mean), u, most).clamp(0, most)
            assert (got.diff() >= 0).all()
            share = np.bincount(got.long().numpy(), minlength=most + 1) / len(u)
            exact = stats.poisson.pmf(k, mean)
            exact[most] = stats.poisson.sf(most - 1, mean)
            assert np.abs(share - exact).sum() / 2 < (2e-4 if mean >= 10 and most > 12 else 3e-5), mean


def test_shot_noise_keeps_black_and_the_mean_of_what_is_not_clipped() -> None:
    x = torch.zeros(4, 3, 20, 20)
    assert torch.equal(noise.shot(x, severity=5, scale="imagenet", key=keys(4)), x)
    got = noise.shot(x + 0.5, severity=5, scale="cifar", key=keys(4))
    torch.testing.assert_close(got * 50, (got * 50).round(), atol=1e-4, rtol=0)
    assert abs(float(got.mean()) - 0.5) < 4 * (0.5 / 50 / got.numel()) ** 0.5


@pytest.mark.parametrize(("scale", "severity", "amount"), [("cifar", 1, 0.01), ("imagenet", 5, 0.27)])
def test_impulses_hit_every_place_equally_often_and_independently(scale: Scale, severity: int, amount: float) -> None:
    n, size = 4000, 3 * 6 * 5
    got = noise.impulse(torch.full((n, 3, 6, 5), 0.5), severity=severity, scale=scale, key=keys(n)).flatten(1)
    hit, salt = (got != 0.5).double(), (got == 1).double()
    assert set(got.unique().tolist()) == {0.0, 0.5, 1.0}
    z = (hit.mean(dim=0) - amount) / (amount * (1 - amount) / n) ** 0.5
    assert z.abs().max() < 4.5 and stats.chi2.sf(float((z**2).sum()), size) > 1e-4
    per_image = stats.binom.pmf(np.arange(size + 1), size, amount) * n
    seen, likely = np.bincount(hit.sum(dim=1).long().numpy(), minlength=size + 1), per_image > 5
    assert stats.chi2.sf(((seen - per_image)[likely] ** 2 / per_image[likely]).sum(), likely.sum() - 1) > 1e-4
    both = (hit[:, 1:] * hit[:, :-1]).mean()
    assert abs(both - amount**2) < 4.5 * amount / (n * (size - 1)) ** 0.5
    assert abs(salt.sum() / hit.sum() - 0.5) < 4.5 * 0.5 / float(hit.sum()) ** 0.5


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", EACH)
def test_a_higher_severity_moves_further_and_stays_in_the_box(name: str, scale: Scale) -> None:
    x, key = images(40, 3, 16, 16), keys(40)
    got = [EACH[name](x, severity=severity, scale=scale, key=key) for severity in SEVERITIES]
    distance = [float((each - x).abs().mean()) for each in got]
    assert distance == sorted(distance) and distance[0] < 0.97 * distance[1] < distance[4]
    assert all(each.min() >= 0 and each.max() <= 1 and each.dtype == x.dtype for each in got)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (1, 1, 1), (3, 17, 9)])
@pytest.mark.parametrize("name", EACH)
def test_an_image_depends_on_its_key_and_counter_alone(
    name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, key, state = images(9, *shape), keys(9), torch.get_rng_state()

    def run(rows: list[int], counter: int = 0) -> Tensor:
        return EACH[name](x[rows], severity=5, scale="imagenet", key=key[rows], counter=counter)

    whole, order = run(list(range(9))), [7, 0, 3]
    assert torch.equal(run(order), whole[order])
    assert shape == (1, 1, 1) or not torch.equal(run(order, counter=1), whole[order])
    monkeypatch.setattr(_chunks, "CACHED", 1)
    assert torch.equal(run(list(range(9))), whole)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", EACH)
def test_an_empty_batch_and_strides_are_no_trouble(name: str) -> None:
    x = images(4, 3, 8, 8)
    assert EACH[name](x[:0], severity=1, scale="cifar", key=keys(0)).shape == (0, 3, 8, 8)
    got, last = (
        EACH[name](each, severity=3, scale="imagenet", key=keys(4))
        for each in (x, x.to(memory_format=torch.channels_last))
    )
    assert torch.equal(got, last)


@pytest.mark.parametrize("name", EACH)
def test_another_severity_or_scale_is_an_error(name: str) -> None:
    with pytest.raises(ParameterError, match=f"{name}: severity must be"):
        EACH[name](images(1, 1, 4, 4), severity=6, scale="cifar", key=keys(1))
    with pytest.raises(ParameterError, match=f"{name}: severity must be"):
        EACH[name](images(1, 1, 4, 4), severity=0, scale="cifar", key=keys(1))
