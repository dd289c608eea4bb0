"""The bound on a mean score where the worst case is known, and against the integral it stands for."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor

from hardy import seeding
from hardy.certificates import certify_mean_score
from hardy.errors import DataError, ParameterError
from hardy.stats import dkw

SIGMA, MEAN, SLOPE = 0.5, 0.623, 4.137  # a logistic score sigmoid(w x + b) in 10-D: w x + b and |w|


def logistic(n: int, seed: int) -> Tensor:
    """Draw scores of one unperturbed input; the noise of 10 values enters along w only."""
    noise = seeding.normal(seeding.keys(seeding.root(seed, "test"), torch.arange(n)), 0, (10,))
    w = SLOPE * torch.nn.functional.normalize(torch.arange(1.0, 11.0), dim=0)
    return torch.sigmoid(MEAN + SIGMA * noise @ w)


def worst(eps: float) -> float:
    """Integrate the mean score after the worst perturbation, straight down the slope."""

    def density(g: float) -> float:
        return float(stats.norm.pdf(g) / (1 + math.exp(-(MEAN - SLOPE * eps + SLOPE * SIGMA * g))))

    return float(integrate.quad(density, -8, 8)[0])


@pytest.mark.parametrize(
    ("eps", "certified", "true"), [(0.0, 0.579, 0.593), (0.25, 0.427, 0.439), (0.5, 0.285, 0.293), (1.0, 0.089, 0.101)]
)
def test_logistic_score_is_bounded_soundly_and_tightly(eps: float, certified: float, true: float) -> None:
    bounds = [certify_mean_score(logistic(10_000, s), sigma=SIGMA, eps=eps, alpha=0.05) for s in range(20)]
    assert worst(eps) == pytest.approx(true, abs=0.004)  # the case is the one that was worked out beforehand
    assert np.mean(bounds) == pytest.approx(certified, abs=0.006)
    assert max(bounds) < worst(eps) < np.mean(bounds) + 0.02


def test_is_wrong_no_more_often_than_it_says() -> None:
    runs, alpha = 200, 0.3
    bounds = [certify_mean_score(logistic(150, s), sigma=SIGMA, eps=0.25, alpha=alpha) for s in range(runs)]
    assert np.mean(np.array(bounds) > worst(0.25)) < alpha


def test_an_indicator_gives_the_radius_of_randomised_smoothing() -> None:
    n, hits, eps, sigma = 500, 460, 0.3, 0.5
    scores = torch.tensor([1.0] * hits + [0.0] * (n - hits))
    p = hits / n - dkw(n, alpha=0.05)
    want = stats.norm.cdf(stats.norm.ppf(p) - eps / sigma)
    assert certify_mean_score(scores, sigma=sigma, eps=eps, alpha=0.05) == pytest.approx(want)
    # a radius is where half of the probability is left
    radius = sigma * float(stats.norm.ppf(p))
    assert certify_mean_score(scores, sigma=sigma, eps=radius, alpha=0.05) == pytest.approx(0.5)


scores_ = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60).map(torch.tensor)


@settings(deadline=None, max_examples=60)
@given(scores=scores_, eps=st.floats(0, 3), sigma=st.floats(0.05, 2), alpha=st.floats(0.001, 0.5))
def test_equals_the_integral_written_as_a_loop(scores: Tensor, eps: float, sigma: float, alpha: float) -> None:
    values, loss = scores.double().tolist(), dkw(len(scores), alpha=alpha)
    total, levels = 0.0, sorted({0.0, *values})
    for low, high in itertools.pairwise(levels):
        p = max(0.0, sum(v >= high for v in values) / len(values) - loss)  # constant between two levels
        total += (high - low) * float(stats.norm.cdf(stats.norm.ppf(p) - eps / sigma))
    got = certify_mean_score(scores, sigma=sigma, eps=eps, alpha=alpha)
    assert got == pytest.approx(total, abs=1e-9)
    assert 0 <= got <= float(scores.mean()) + 1e-6


@settings(deadline=None, max_examples=40)
@given(scores=scores_, alpha=st.floats(0.001, 0.5))
def test_without_a_perturbation_it_is_the_mean_less_the_band(scores: Tensor, alpha: float) -> None:
    got = certify_mean_score(scores, sigma=0.5, eps=0.0, alpha=alpha)
    least = float(scores.double().mean()) - dkw(len(scores), alpha=alpha) * float(scores.max())
    assert got >= least - 1e-6  # equal, but where the band would be below 0
    assert certify_mean_score(torch.ones(1000), sigma=0.5, eps=0.0, alpha=0.05) == pytest.approx(
        1 - dkw(1000, alpha=0.05)
    )


@settings(deadline=None, max_examples=40)
@given(scores=scores_, a=st.floats(0, 2), b=st.floats(0, 2))
def test_is_monotone_in_eps_and_moves_with_the_floor(scores: Tensor, a: float, b: float) -> None:
    near, far = (certify_mean_score(scores, sigma=0.5, eps=e, alpha=0.05) for e in sorted((a, b)))
    assert near >= far
    moved = certify_mean_score(scores.double() - 3, sigma=0.5, eps=a, alpha=0.05, floor=-3.0)
    assert moved == pytest.approx(certify_mean_score(scores, sigma=0.5, eps=a, alpha=0.05) - 3, abs=1e-9)
    assert certify_mean_score(scores, sigma=0.5, eps=1e6, alpha=0.05) == 0


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"sigma": 0.0}, "sigma must be a finite number above 0"),
        ({"eps": -0.1}, "eps must be a finite number, at least 0; got -0.1"),
        ({"alpha": 0.6}, "alpha must be above 0 and at most 0.5; got 0.6"),
    ],
)
def test_numbers_out_of_range_are_errors(facts: dict[str, float], text: str) -> None:
    with pytest.raises(ParameterError, match=f"certify_mean_score: {text}"):
        certify_mean_score(torch.rand(5), **({"sigma": 0.5, "eps": 0.1, "alpha": 0.05} | facts))


@pytest.mark.parametrize("scores", [[], [0.5, math.nan], [-0.1, 0.5], [0.5, math.inf]])
def test_scores_must_be_finite_and_above_the_floor(scores: list[float]) -> None:
    with pytest.raises(DataError, match="scores must be finite and at least the floor 0"):
        certify_mean_score(torch.tensor(scores, dtype=torch.float32), sigma=0.5, eps=0.1, alpha=0.05)
