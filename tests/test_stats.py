"""Intervals against scipy, against their definition, and by how often they hold the truth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from hardy.errors import ParameterError
from hardy.stats import clopper_pearson, dkw, mean_interval, paired_bootstrap, paired_p, sign_test, wilson


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


class TestMeanInterval:
    @given(st.lists(st.floats(-5, 5), min_size=2, max_size=40), st.floats(0.5, 0.99))
    def test_equals_scipy(self, values: list[float], level: float) -> None:
        x = np.array(values)
        want = scipy_stats.t.interval(
            level, len(x) - 1, loc=x.mean(), scale=x.std(ddof=1) / math.sqrt(len(x)) or 1e-300
        )
        assert mean_interval(x, level=level) == pytest.approx(want, abs=1e-9)

    def test_one_number_says_nothing_and_none_is_an_error(self) -> None:
        assert mean_interval(np.array([0.5])) == (-math.inf, math.inf)
        with pytest.raises(ParameterError, match="mean_interval: n >= 1 numbers"):
            mean_interval(np.array([]))


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

    def test_numbers_of_0_and_1_are_outcomes(self) -> None:
        a, b = outcomes(300, 0.8, 0), outcomes(300, 0.6, 1)
        fast, slow = paired_bootstrap(a, b), paired_bootstrap(a.astype(np.float32), b.astype(np.float32))
        assert slow == pytest.approx(fast, abs=0.005)

    def test_means_of_numbers_are_those_of_scipy(self) -> None:
        rng = np.random.default_rng(5)
        a, b = rng.random(200), rng.random(200) ** 2
        want = scipy_stats.bootstrap(
            (a - b,), np.mean, method="percentile", n_resamples=4000, rng=0
        ).confidence_interval
        difference, low, high = paired_bootstrap(a, b, draws=4000)
        assert difference == pytest.approx((a - b).mean())
        assert (low, high) == pytest.approx((want.low, want.high), abs=0.01)

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


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_the_sign_test_counts_who_is_above(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array([pair[i] / 3 for pair in pairs], dtype=np.float64) for i in (0, 1))
    assert sign_test(a, b) == sign_test(a > b, b > a)


class TestClopperPearson:
    @settings(deadline=None, max_examples=60)
    @given(n=st.integers(1, 2000), share=st.floats(0, 1), alpha=st.floats(1e-6, 0.5))
    def test_equals_scipy(self, n: int, share: float, alpha: float) -> None:
        k = round(share * n)
        want = scipy_stats.binomtest(k, n, alternative="greater").proportion_ci(1 - alpha, method="exact").low
        (low,) = clopper_pearson(np.array([k]), n, alpha=alpha)
        assert math.isclose(low, want, rel_tol=1e-6, abs_tol=1e-12) and 0 <= low <= k / n

    def test_where_all_hit_it_is_a_root_of_alpha(self) -> None:
        assert clopper_pearson(np.array([0, 50]), 50, alpha=0.001).tolist() == pytest.approx([0.0, 0.001 ** (1 / 50)])

    @pytest.mark.parametrize("p", [0.02, 0.5, 0.9])
    def test_is_too_high_no_more_often_than_it_says(self, p: float) -> None:
        n, alpha, k = 100, 0.05, np.arange(101)  # exactly, by summing over all outcomes
        wrong = scipy_stats.binom.pmf(k, n, p)[clopper_pearson(k, n, alpha=alpha) > p].sum()
        assert 0.01 < wrong <= alpha

    @pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5)])
    def test_impossible_counts_are_errors(self, k: int, n: int) -> None:
        with pytest.raises(ParameterError, match="clopper_pearson: 0 <= successes <= n and n >= 1 must hold"):
            clopper_pearson(np.array([k]), n, alpha=0.05)
        with pytest.raises(ParameterError, match="alpha must be in"):
            clopper_pearson(np.array([1]), 5, alpha=1.0)


class TestDkw:
    def test_the_band_is_broken_as_often_as_it_says(self) -> None:
        n, runs, alpha = 400, 2000, 0.2
        draws = np.sort(np.random.default_rng(0).random((runs, n)), axis=1)
        # share of draws at or below a level, minus its probability: largest at the draws themselves
        most = (np.arange(1, n + 1) / n - draws).max(axis=1)
        broken = float(np.mean(most > dkw(n, alpha=alpha)))
        se = math.sqrt(alpha * (1 - alpha) / runs)
        assert alpha - 0.05 < broken < alpha + 3 * se  # the constant is tight for many draws
        assert dkw(n, alpha=alpha) == pytest.approx(math.sqrt(-math.log(alpha) / 800))

    @pytest.mark.parametrize(("n", "alpha"), [(0, 0.1), (5, 0.0), (5, 0.51)])
    def test_out_of_range_is_an_error(self, n: int, alpha: float) -> None:
        with pytest.raises(ParameterError, match=r"dkw: n >= 1 and 0 < alpha <= 0\.5 must hold"):
            dkw(n, alpha=alpha)


class TestPairedP:
    def test_outcomes_get_the_sign_test_and_numbers_the_t_test(self) -> None:
        a, b = outcomes(200, 0.8, 0), outcomes(200, 0.7, 1)
        assert paired_p(a, b) == sign_test(a, b)
        x, y = np.random.default_rng(0).random((2, 200))
        assert paired_p(x, y) == pytest.approx(scipy_stats.ttest_rel(x, y).pvalue)
        assert paired_p(x, x) == 1.0

    def test_many_small_gains_do_not_outweigh_a_few_large_losses(self) -> None:
        difference = np.concatenate([np.full(900, -0.01), np.full(100, 0.5)])  # better on 900 images, worse in the mean
        a, b = difference, np.zeros(1000)
        noise = np.random.default_rng(0).normal(0, 0.3, 1000)
        skewed = np.where(noise > 0.4, 3.0, -0.2)
        skewed -= skewed.mean()
        assert sign_test(a, b) < 1e-9 and sign_test(skewed, 0 * skewed) < 1e-9
        assert paired_p(skewed, 0 * skewed) > 0.99 and paired_p(a, b) < 1e-9

    def test_is_small_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(1)
        small = [paired_p(*rng.exponential(1, (2, 100))) < 0.05 for _ in range(600)]
        assert 0.03 < np.mean(small) < 0.075

    def test_few_images_that_differ_are_weak_evidence(self) -> None:
        a = np.zeros(500)
        a[:4] = 1.0
        assert paired_p(a, np.zeros(500)) == 0.125
