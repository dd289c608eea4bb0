"""Axis ``noise``: how often is the model still right under Gaussian noise? A curve over its strength."""

from hardy.corruptions import gaussian_noise
from hardy.evaluation.context import Context, Measured, record
from hardy.results import Axis

__all__ = ["measure"]

TYPICAL = 0.1  # the headline is the sigma closest to it: the strongest of CIFAR-10-C


def measure(context: Context) -> Measured:
    """Add noise to every image, the same pattern for every sigma, clamped to the box."""
    key, outcomes, points = context.keys("noise"), {}, []
    for sigma in context.budget.sigmas:
        label = _label(sigma)
        outcomes[label] = context.predict(gaussian_noise(context.x, sigma=sigma, key=key)) == context.y
        points.append(record(label, outcomes[label], level=sigma, passes={"forward": len(context.x)}))
    axis = Axis(
        name="noise",
        question="How often is it still right under Gaussian noise?",
        headline=_label(min(context.budget.sigmas, key=lambda sigma: abs(sigma - TYPICAL))),
        points=tuple(points),
        level_name="sigma (pixels in [0, 1])",
    )
    return Measured(axis=axis, outcomes=outcomes)


def _label(sigma: float) -> str:
    return f"sigma {sigma:g}"
