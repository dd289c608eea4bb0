"""Axis ``noise``: how often is the model still right under random noise? A curve over the strength of each kind.

Three kinds: Gaussian, uniform, and salt and pepper. One draw for every image; of a kind, all strengths share it: the
same pattern, scaled, and for salt and pepper nested sets of pixels, so that the curves are smooth.
"""

from collections.abc import Callable
from functools import partial

from jaxtyping import Float, Int
from torch import Tensor

from hardy.corruptions.gaussian_noise import gaussian_noise
from hardy.corruptions.salt_pepper import salt_pepper
from hardy.corruptions.uniform_noise import uniform_noise
from hardy.evaluation.context import Context, Measured, record
from hardy.results import Axis

__all__ = ["measure"]

TYPICAL = 0.1  # the headline is the sigma closest to it: the strongest of CIFAR-10-C
STRENGTH = (
    "strength (gaussian: sigma; uniform: largest change; both for pixels in [0, 1]; salt and pepper: share of pixels)"
)

Noisy = Callable[[float, Int[Tensor, "m"]], Float[Tensor, "m c h w"]]  # (strength, places) -> images


def measure(context: Context) -> Measured:
    """Add noise to every image, the same pattern for every strength of a kind, clamped to the box."""
    x, budget = context.x, context.budget
    normal, even, salt = (context.keys(purpose) for purpose in ("noise", "uniform noise", "salt and pepper"))
    kinds: list[tuple[str, str, tuple[float, ...], Noisy]] = [
        ("gaussian", "sigma", budget.sigmas, lambda sigma, i: gaussian_noise(x[i], key=normal[i], sigma=sigma)),
        ("uniform", "uniform", budget.uniform_widths, lambda width, i: uniform_noise(x[i], key=even[i], width=width)),
        (
            "salt and pepper",
            "salt and pepper",
            budget.salt_pepper_shares,
            lambda share, i: salt_pepper(x[i], key=salt[i], share=share),
        ),
    ]
    outcomes, points = {}, []
    for series, word, levels, noisy in kinds:
        for level in levels:
            label = f"{word} {level:g}"
            outcomes[label] = context.predict_made(partial(noisy, level), len(x)) == context.y
            passes = {"forward": len(x) * context.draws}
            points.append(record(label, outcomes[label], level=level, series=series, passes=passes))
    axis = Axis(
        name="noise",
        question="How often is it still right under random noise: Gaussian, uniform, or salt and pepper?",
        headline=f"sigma {min(budget.sigmas, key=lambda sigma: abs(sigma - TYPICAL)):g}",
        points=tuple(points),
        level_name=STRENGTH,
    )
    return Measured(axis=axis, outcomes=outcomes)
