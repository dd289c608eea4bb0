"""Intervals: how far a measured accuracy can be from the true one."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, betaincinv, ndtri, stdtr, stdtrit

from hardy.errors import ParameterError

__all__ = ["clopper_pearson", "dkw", "mean_interval", "paired_bootstrap", "paired_p", "sign_test", "wilson"]

CHUNK = 2**22  # numbers drawn at a time
FEW = 10  # differing images below which a t test means little


def wilson(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Bound a proportion by the Wilson score interval.

    Args:
        successes: How many of the ``n`` images were right, in [0, n].
        n: Number of images, at least 1.
        level: Confidence, in (0, 1).

    Returns:
        Lower and upper bound, in [0, 1].

    Raises:
        ParameterError: no images, or more successes than images.

    Source: Wilson, JASA 22 (1927).

    Example:
        >>> tuple(round(b, 3) for b in wilson(8, 10))
        (0.49, 0.943)
    """
    if not (n >= 1 and 0 <= successes <= n):
        raise ParameterError(f"wilson: 0 <= successes <= n and n >= 1 must hold; got {successes} of {n}.")
    z = float(ndtri(0.5 + level / 2))
    p, zz = successes / n, z * z / n
    centre, half = (p + zz / 2) / (1 + zz), z / (1 + zz) * math.sqrt(p * (1 - p) / n + zz / (4 * n))
    low = 0.0 if successes == 0 else centre - half
    return low, 1.0 if successes == n else centre + half


def mean_interval(values: npt.NDArray[np.floating[Any]], *, level: float = 0.95) -> tuple[float, float]:
    """Bound the mean of one number per image by Student's t interval.

    Args:
        values: One number per image, shape (n,), n at least 1.
        level: Confidence, in (0, 1).

    Returns:
        Lower and upper bound; infinite for one image.

    Raises:
        ParameterError: no numbers.

    Example:
        >>> low, high = mean_interval(np.array([0.0, 0.5, 1.0]))
        >>> round(low, 2), round(high, 2)
        (-0.74, 1.74)
    """
    if values.ndim != 1 or len(values) == 0:
        raise ParameterError(f"mean_interval: n >= 1 numbers must be given; got {values.shape}.")
    n, mean = len(values), float(values.mean(dtype=np.float64))
    if n == 1:
        return -math.inf, math.inf
    half = float(stdtrit(n - 1, 0.5 + level / 2) * values.std(ddof=1, dtype=np.float64) / math.sqrt(n))
    return mean - half, mean + half


def paired_bootstrap(
    a: npt.NDArray[Any], b: npt.NDArray[Any], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Bound the difference of two means measured on the same images, by resampling images.

    The percentile interval over ``draws`` resamples (Efron and Tibshirani 1993, chapter 13). It speaks of these two
    nets and other images, not of nets trained from other seeds.

    Args:
        a: Per-image outcomes (bool) or numbers (float) of the one net, shape (n,).
        b: Those of the other net on the same images in the same order, shape (n,).
        level: Confidence, in (0, 1).
        draws: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        mean(a) - mean(b), and its lower and upper bound.

    Raises:
        ParameterError: the shapes differ or are empty.
    """
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ParameterError(f"paired_bootstrap: the same n >= 1 images must be behind both; got {a.shape}, {b.shape}.")
    if a.dtype != np.bool_ or b.dtype != np.bool_:
        return _resample(a.astype(np.float64) - b.astype(np.float64), level=level, draws=draws, seed=seed)
    difference = a.astype(np.int8) - b.astype(np.int8)
    n = len(difference)
    # only the counts of +1, 0 and -1 matter, so a resample of n images is one multinomial draw
    counts = np.array([np.sum(difference == value) for value in (1, 0, -1)])
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=draws)
    means = (drawn[:, 0] - drawn[:, 2]) / n
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(difference.mean()), float(low), float(high)


def _resample(
    difference: npt.NDArray[np.float64], *, level: float, draws: int, seed: int
) -> tuple[float, float, float]:
    """Bound the mean of numbers, some rows of the resamples at a time."""
    rng, n = np.random.default_rng(seed), len(difference)
    at_once = max(1, CHUNK // n)
    sizes = [min(at_once, draws - start) for start in range(0, draws, at_once)]
    means = np.concatenate([difference[rng.integers(n, size=(size, n))].mean(axis=1) for size in sizes])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(difference.mean()), float(low), float(high)


def paired_p(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Test whether two nets are equally good on the same images.

    Outcomes get the exact sign test. Of numbers the means are compared, as their interval does: Student's paired t test
    (two-sided), and besides the sign test where fewer than ten images differ, whichever is the weaker evidence.

    Args:
        a: Per-image outcomes (bool) or numbers (float) of the one net, shape (n,).
        b: Those of the other net on the same images in the same order, shape (n,).

    Returns:
        The p-value, in [0, 1]; 1 where no image differs.

    Raises:
        ParameterError: the shapes differ.
    """
    if a.dtype == np.bool_ and b.dtype == np.bool_:
        return sign_test(a, b)
    if a.shape != b.shape or a.ndim != 1:
        raise ParameterError(f"paired_p: the same n images must be behind both; got {a.shape}, {b.shape}.")
    difference = a.astype(np.float64) - b.astype(np.float64)
    n, differing = len(difference), int(np.count_nonzero(difference))
    if n < 2 or differing == 0:
        return 1.0
    few = sign_test(a, b) if differing < FEW else 0.0
    error = float(difference.std(ddof=1)) / math.sqrt(n)
    return max(few, 2 * float(stdtr(n - 1, -abs(float(difference.mean())) / error)) if error > 0 else 0.0)


def sign_test(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Test exactly whether two nets do better equally often, on the images on which one of them does better.

    Both directions count; for outcomes this is McNemar's exact test. A percentile interval of four differing images
    that agree excludes 0; this test does not. Of numbers it counts who is above, which says nothing of their means.

    Args:
        a: Per-image outcomes (bool) or numbers (float) of the one net, shape (n,).
        b: Those of the other net on the same images in the same order, shape (n,).

    Returns:
        The p-value, in (0, 1]; 1 where no image differs.

    Raises:
        ParameterError: the shapes differ.

    Example:
        >>> sign_test(np.array([True] * 6), np.array([False] * 6))
        0.03125
    """
    if a.shape != b.shape or a.ndim != 1:
        raise ParameterError(f"sign_test: the same n images must be behind both; got {a.shape}, {b.shape}.")
    won, lost = int(np.sum(a > b)), int(np.sum(b > a))
    return min(1.0, 2 * float(bdtr(min(won, lost), won + lost, 0.5)))


def clopper_pearson(successes: npt.NDArray[np.integer[Any]], n: int, *, alpha: float) -> npt.NDArray[np.float64]:
    """Bound probabilities from below by the exact one-sided interval: too high with probability ``alpha`` at most.

    Args:
        successes: How many of ``n`` independent draws hit, in [0, n]; any shape.
        n: Number of draws, at least 1.
        alpha: Probability of a wrong bound, in (0, 1).

    Returns:
        Lower bounds in [0, 1], one for each number.

    Raises:
        ParameterError: no draws, more hits than draws, or ``alpha`` out of range.

    Source: Clopper, Pearson, Biometrika 26 (1934).

    Example:
        >>> clopper_pearson(np.array([0, 90, 100]), 100, alpha=0.001).round(3)
        array([0.   , 0.775, 0.933])
    """
    if n < 1 or bool(np.any((successes < 0) | (successes > n))):
        raise ParameterError(f"clopper_pearson: 0 <= successes <= n and n >= 1 must hold; got {successes} of {n}.")
    if not 0 < alpha < 1:
        raise ParameterError(f"clopper_pearson: alpha must be in (0, 1); got {alpha}.")
    some = np.maximum(successes, 1)
    low: npt.NDArray[np.float64] = np.where(successes > 0, betaincinv(some, n - some + 1, alpha), 0.0)
    return low


def dkw(n: int, *, alpha: float) -> float:
    """Bound how far the share of n independent draws on one side of a level is from its probability, at all levels.

    The inequality of Dvoretzky, Kiefer and Wolfowitz with the constant of Massart, one-sided: with probability
    ``1 - alpha`` at least, no share is higher than its probability by more than this.

    Args:
        n: Number of draws, at least 1.
        alpha: In (0, 0.5], where the one-sided inequality is proved.

    Raises:
        ParameterError: out of range.

    Source: Massart, Annals of Probability 18 (1990).

    Example:
        >>> round(dkw(1000, alpha=0.05), 4)
        0.0387
    """
    if not (n >= 1 and 0 < alpha <= 0.5):
        raise ParameterError(f"dkw: n >= 1 and 0 < alpha <= 0.5 must hold; got n = {n}, alpha = {alpha}.")
    return math.sqrt(math.log(1 / alpha) / (2 * n))
