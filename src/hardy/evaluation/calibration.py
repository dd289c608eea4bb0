"""Axis ``calibration``: does the model's confidence mean what it says?

Confidence is the largest softmax probability. The expected calibration error (ECE; Naeini et al., AAAI 2015; Guo et
al., ICML 2017, https://arxiv.org/abs/1706.04599, Eq. 3) is taken in bins of equal width, closed on the right; the Brier
score (Brier, 1950) is the squared distance between the probabilities and the true class, summed over classes; the
negative log-likelihood is in nats. One temperature for all logits (Guo et al., section 4.2) is fitted by likelihood on
one half of the evaluated images and judged on the other, in both directions.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize_scalar
from torch import Tensor

from hardy import seeding
from hardy.evaluation.context import Context, Measured, NotMeasured
from hardy.records import Axis, Score, mean_score
from hardy.stats import wilson

__all__ = ["ECE", "measure", "temperature"]

ECE = "expected calibration error"
BOOTSTRAP = 500  # resamples of the interval of the ECE
FEWEST = 10  # images of each half for a temperature
RANGE = (-3.0, 4.0)  # of the logarithm of a temperature


def measure(context: Context) -> Measured | NotMeasured:
    """Compare confidence and accuracy on the plain images; of a random net the mean probabilities of its answers."""
    log_p = _log_probabilities(context)
    if not bool(log_p.isfinite().all()):
        return NotMeasured("calibration", "the model returned logits that are not finite", "See the check logits.")
    y, bins = context.y, context.budget.calibration_bins
    p, (best, found) = log_p.exp(), log_p.max(dim=1)
    confidence, right = best.exp(), found == y
    brier = (p - torch.nn.functional.one_hot(y, p.shape[1])).square().sum(dim=1)
    nll = -log_p.gather(1, y[:, None])[:, 0]
    ece = _ece(confidence, right, bins)
    low, high = _interval(ece, confidence, right, bins, context.seed)
    n = len(y)
    scores = [
        Score(label=ECE, value=ece, kind="error", n=n, low=low, high=high, details={"bins": bins}),
        mean_score("Brier score", brier.cpu().numpy(), kind="error"),
        mean_score("negative log-likelihood", nll.cpu().numpy(), kind="error", unit="nats"),
        mean_score("confidence minus accuracy", (confidence - right.float()).cpu().numpy(), kind="description"),
        *_scaled(context, log_p),
        *_reliability(confidence, right, bins),
    ]
    axis = Axis(
        name="calibration",
        question="Does its confidence mean what it says?",
        headline=ECE,
        level_name="confidence",
        scores=tuple(scores),
    )
    arrays = {"Brier score": brier, "negative log-likelihood": nll, "confidence": confidence}
    arrays["confidence minus accuracy"] = confidence - right.float()
    return Measured(axis=axis, outcomes={}, arrays={name: values.float() for name, values in arrays.items()})


def temperature(z: Float[Tensor, "n k"], y: Int[Tensor, "n"]) -> float:
    """Fit the number that all logits are divided by, by likelihood.

    Args:
        z: Logits, finite.
        y: True classes.

    Returns:
        A temperature in [exp(-3), exp(4)]; above 1 where the model is overconfident.
    """
    z = z.double()

    def loss(log_t: float) -> float:
        return float(torch.nn.functional.cross_entropy(z / math.exp(log_t), y))

    found = minimize_scalar(loss, bounds=RANGE, method="bounded")  # type: ignore[no-untyped-call]  # scipy has no types
    return math.exp(float(found.x))


def _log_probabilities(context: Context) -> Float[Tensor, "n k"]:
    """Give the logarithms, as a probability itself ends at exp(-103) in float32; of a random net, of the mean."""
    if context.draws == 1 and "logits" in context.memo:
        z: Tensor = context.memo["logits"]
        return z.log_softmax(dim=1)
    drawn = torch.stack([context.logits(context.x).log_softmax(dim=1) for _ in range(context.draws)])
    return (drawn.logsumexp(dim=0) - math.log(context.draws)).clamp_max(0)


def _places(confidence: Float[Tensor, "n"], bins: int) -> Int[Tensor, "n"]:
    """Number the bins of equal width, closed on the right."""
    return (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)


def _gaps(
    confidence: Float[Tensor, "n"], right: Bool[Tensor, "n"], bins: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Give every image's bin, and its confidence less whether it is right."""
    place: npt.NDArray[np.int64] = _places(confidence, bins).cpu().numpy()
    return place, confidence.cpu().numpy().astype(np.float64) - right.cpu().numpy()


def _ece(confidence: Float[Tensor, "n"], right: Bool[Tensor, "n"], bins: int) -> float:
    place, gap = _gaps(confidence, right, bins)
    return float(np.abs(np.bincount(place, weights=gap, minlength=bins)).sum() / len(gap))


def _interval(
    ece: float, confidence: Float[Tensor, "n"], right: Bool[Tensor, "n"], bins: int, seed: int
) -> tuple[float, float]:
    """Bound the ECE by resampling images: the basic bootstrap, as resamples are biased upwards, and around the ECE."""
    place, gap = _gaps(confidence, right, bins)
    rng, n = np.random.default_rng(seed), len(gap)
    errors = []
    for _ in range(BOOTSTRAP):
        rows = rng.integers(n, size=n)
        errors.append(np.abs(np.bincount(place[rows], weights=gap[rows], minlength=bins)).sum() / n)
    least, most = (float(q) for q in np.quantile(errors, [0.025, 0.975]))
    return max(0.0, min(ece, 2 * ece - most)), min(1.0, max(ece, 2 * ece - least))


def _scaled(context: Context, z: Float[Tensor, "n k"]) -> list[Score]:
    """Give the ECE that is left after one temperature, which was fitted on other images, and that temperature."""
    half = seeding.uniform(context.keys("calibration"), 0, ()) < 0.5
    if min(int(half.sum()), int((~half).sum())) < FEWEST:
        return []
    scaled = torch.empty_like(z)
    for fit, judge in ((half, ~half), (~half, half)):
        scaled[judge] = (z[judge] / temperature(z[fit], context.y[fit])).softmax(dim=1)
    whole = temperature(z, context.y)
    confidence, found = scaled.max(dim=1)
    rest, n = _ece(confidence, found == context.y, context.budget.calibration_bins), len(z)
    return [
        Score(label="its rest after temperature scaling", value=rest, kind="error", n=n),
        Score(label="temperature", value=whole, kind="description", n=n, unit="(1: none needed)"),
    ]


def _reliability(confidence: Float[Tensor, "n"], right: Bool[Tensor, "n"], bins: int) -> list[Score]:
    """Give the accuracy of the images of every bin at their mean confidence."""
    place = _places(confidence, bins)
    made = []
    for i in range(bins):
        here = place == i
        n, k = int(here.sum()), int((here & right).sum())
        if n:
            low, high = wilson(k, n)
            label = f"confidence {i / bins:.2f} to {(i + 1) / bins:.2f}"
            mean = float(confidence[here].mean())
            made.append(
                Score(
                    label=label, value=k / n, kind="description", n=n, low=low, high=high, level=mean,
                    series="reliability",
                )
            )  # fmt: skip
    return made
