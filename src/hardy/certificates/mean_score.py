r"""How low the mean of a score can get when the input of what is scored is perturbed, under Gaussian noise.

For a score S of a noisy input and every level v, ``P(S >= v)`` is the mean of an indicator, so the lemma of Neyman and
Pearson bounds what a perturbation of length eps can do to it (as in randomised smoothing), and the mean of S is the
integral of these probabilities over v:

.. math:: E[S(x + \delta + noise)] \ge floor + \int_{floor}^\infty
          \Phi\left(\Phi^{-1}(P(S(x + noise) \ge v)) - eps / \sigma\right) dv

Kumar, Levine, Feizi. "Policy smoothing for provably robust reinforcement learning". ICLR 2022,
https://arxiv.org/abs/2106.11420, where S is the total reward of an episode, eps the length of all perturbations of the
episode together, and the adversary may adapt to what has happened so far. Nothing in it is about rewards: S may be a
smoothed probability, a clipped margin, or the share of the frames of a clip that are classified right.

Deviation: the probabilities are bounded by the one-sided inequality of Dvoretzky, Kiefer, Wolfowitz and Massart, which
is a little tighter than the two-sided one.
"""

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri
from torch import Tensor

from hardy.certificates._checks import above, at_least, probability
from hardy.errors import DataError
from hardy.stats import dkw

__all__ = ["certify_mean_score"]


def certify_mean_score(
    scores: Float[Tensor, "n"], *, sigma: float, eps: float, alpha: float, floor: float = 0.0
) -> float:
    """Bound from below the mean score under every perturbation of length ``eps``.

    Args:
        scores: Of n independent noisy copies of the same unperturbed input, each at least ``floor``; the noise is
            normal with standard deviation ``sigma`` in every value of the input.
        sigma: In the units of the input (images: pixels in [0, 1]), above 0.
        eps: Largest Euclidean length of the perturbation, in the same units, at least 0. Where the score is of many
            noisy inputs, such as frames: of all perturbations together.
        alpha: Probability that the bound is wrong, in (0, 0.5].
        floor: Smallest score possible, known beforehand.

    Returns:
        The bound, at least ``floor``. With ``eps`` 0 it is one on the mean score under noise alone.

    Raises:
        ParameterError: a number out of range.
        DataError: no scores, or one that is NaN or below ``floor``.

    Example:
        >>> import torch
        >>> scores = torch.linspace(0.5, 1.0, 1000)
        >>> [round(certify_mean_score(scores, sigma=0.5, eps=e, alpha=0.05), 3) for e in (0.0, 0.25, 0.5)]
        [0.712, 0.611, 0.492]
    """
    above("certify_mean_score", sigma=sigma)
    at_least("certify_mean_score", 0, eps=eps)
    probability("certify_mean_score", alpha, 0.5)
    given = np.sort(scores.detach().cpu().numpy().astype(np.float64))
    if len(given) == 0 or not given[0] >= floor or not np.isfinite(given[-1]):
        got = f"scores in [{given[0]:g}, {given[-1]:g}]" if len(given) else "none"
        raise DataError(f"certify_mean_score: scores must be finite and at least the floor {floor:g}; got {got}.")
    steps = np.diff(given, prepend=floor)  # between floor, s_1 <= ... <= s_n
    shares = 1 - np.arange(len(given)) / len(given)  # of scores that are at least s_i: of P(S >= v) up to there
    sure = np.clip(shares - dkw(len(given), alpha=alpha), 0, 1)
    return floor + float(np.sum(steps * ndtr(ndtri(sure) - eps / sigma)))
