"""Intervals against scipy, against their definition, and by how often they hold the truth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from hardy.errors import ParameterError
from hardy.stats import paired_bootstrap, sign_test, wilson


class TestWilson:
    @settings(deadline=None)
    @given(n=st.integers(1, 5000), share=st.floats(0, 1), level=st.floats(0.5, 0.999))
    def test_equals_scipy(self, n: int, share: float, level: float) -> None:
        k = round(share * n)
        want = scipy_stats.binomtest(k, n).proportion_ci(level, method="wilson")
        low, high = wilson(k, n, level=level)
        assert math.isclose(low, want.low, abs_tol=1e-12) and math.isclose(high, want.high, abs_tol=1e-12)
        assert 0 <= low <= k / n <= high <= 1

    def test_none_and_all_reach_the_ends_exactly(self) -> None:
        assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == 1.0
        assert wilson(0, 10)[1] > 0.2 and wilson(10, 10)[0] < 0.8

    @given(k=st.integers(0, 50))
    def test_is_symmetric(self, k: int) -> None:
        low, high = wilson(k, 50)
        other_low, other_high = wilson(50 - k, 50)
        assert math.isclose(low, 1 - other_high, abs_tol=1e-12) and math.isclose(high, 1 - other_low, abs_tol=1e-12)

    def test_more_images_narrow_it_and_more_confidence_widens_it(self) -> None:
        def width(n: int, level: float) -> float:
            low, high = wilson(n // 2, n, level=level)
            return high - low

        assert width(1000, 0.95) < width(100, 0.95) < width(100, 0.99)

    @pytest.mark.parametrize("p", [0.02, 0.3, 0.9])
    def test_holds_the_truth_about_as_often_as_it_says(self, p: float) -> None:
        n = 200  # exactly, by summing over all outcomes
        inside = sum(scipy_stats.binom.pmf(k, n, p) for k in range(n + 1) if wilson(k, n)[0] <= p <= wilson(k, n)[1])
        assert 0.93 < inside < 0.98

    @pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5), (1, -1)])
    def test_impossible_counts_are_errors(self, k: int, n: int) -> None:
        with pytest.raises(ParameterError, match=rf"wilson: 0 <= successes <= n and n >= 1 must hold; got {k} of {n}"):
            wilson(k, n)


def outcomes(n: int, p: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < p


class TestPairedBootstrap:
    def test_difference_is_exact_and_inside(self) -> None:
        a, b = outcomes(300, 0.8, 0), outcomes(300, 0.6, 1)
        difference, low, high = paired_bootstrap(a, b)
        assert difference == pytest.approx(a.mean() - b.mean(), abs=1e-12)
        assert -1 <= low <= difference <= high <= 1

    def test_swapping_the_nets_flips_the_sign(self) -> None:
        a, b = outcomes(300, 0.8, 0), outcomes(300, 0.6, 1)
        forth, back = paired_bootstrap(a, b), paired_bootstrap(b, a)
        assert forth[0] == -back[0] and forth[1] == pytest.approx(-back[2], abs=0.02)

    def test_equal_nets_differ_by_nothing(self) -> None:
        a = outcomes(100, 0.7, 0)
        assert paired_bootstrap(a, a) == (0.0, 0.0, 0.0)
        ones = np.ones(10, dtype=bool)
        assert paired_bootstrap(ones, ~ones) == (1.0, 1.0, 1.0)

    def test_equals_the_bootstrap_written_as_a_loop(self) -> None:
        a, b = outcomes(150, 0.75, 2), outcomes(150, 0.65, 3)
        rng = np.random.default_rng(9)
        means = []
        for _ in range(4000):
            rows = rng.integers(0, 150, 150)
            means.append(a[rows].mean() - b[rows].mean())
        want = np.quantile(means, [0.025, 0.975])
        _, low, high = paired_bootstrap(a, b, draws=4000)
        sd = float(np.std(means))  # a 2.5 % quantile of 4000 draws is known to about 0.05 sd
        assert abs(low - want[0]) < 0.25 * sd and abs(high - want[1]) < 0.25 * sd

    def test_pairing_narrows_it(self) -> None:
        a = outcomes(500, 0.7, 0)
        b = a.copy()
        b[np.flatnonzero(a)[:20]] = False  # the same images but for 20
        _, low, high = paired_bootstrap(a, b)
        shuffled = np.random.default_rng(0).permutation(b)
        _, other_low, other_high = paired_bootstrap(a, shuffled)
        assert high - low < 0.5 * (other_high - other_low) and low > 0

    def test_holds_the_truth_about_as_often_as_it_says(self) -> None:
        hits = 0
        for seed in range(300):
            a, b = outcomes(200, 0.8, 2 * seed), outcomes(200, 0.7, 2 * seed + 1)
            _, low, high = paired_bootstrap(a, b, draws=400)
            hits += low <= 0.1 <= high
        assert 0.90 < hits / 300 < 0.99

    def test_repeats_with_its_seed_and_leaves_the_global_generator_alone(self) -> None:
        a, b = outcomes(100, 0.8, 0), outcomes(100, 0.6, 1)
        before = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]  # noqa: NPY002
        assert paired_bootstrap(a, b) == paired_bootstrap(a, b) != paired_bootstrap(a, b, seed=1)
        assert np.random.get_state()[1].tolist() == before  # type: ignore[index, union-attr]  # noqa: NPY002

    def test_more_confidence_widens_it(self) -> None:
        a, b = outcomes(100, 0.8, 0), outcomes(100, 0.6, 1)
        _, low, high = paired_bootstrap(a, b, level=0.5)
        _, wide_low, wide_high = paired_bootstrap(a, b, level=0.99)
        assert wide_low < low < high < wide_high

    @pytest.mark.parametrize(("a", "b"), [((3,), (4,)), ((0,), (0,)), ((2, 2), (2, 2))])
    def test_other_images_are_an_error(self, a: tuple[int, ...], b: tuple[int, ...]) -> None:
        with pytest.raises(ParameterError, match="paired_bootstrap: the same n >= 1 images must be behind both"):
            paired_bootstrap(np.zeros(a, dtype=bool), np.zeros(b, dtype=bool))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 20))
def test_the_sign_test_is_the_exact_binomial_test(won: int, lost: int, both: int) -> None:
    a = np.array([True] * won + [False] * lost + [True] * both, dtype=np.bool_)
    b = np.array([False] * won + [True] * lost + [True] * both, dtype=np.bool_)
    want = 1.0 if won + lost == 0 else scipy_stats.binomtest(won, won + lost).pvalue
    assert sign_test(a, b) == pytest.approx(want) and sign_test(a, b) == sign_test(b, a)


def test_the_sign_test_demands_pairs() -> None:
    with pytest.raises(ParameterError, match="the same n images"):
        sign_test(np.array([True]), np.array([True, False]))
