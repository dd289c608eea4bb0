"""Axis ``certified``: on which images can no perturbation of a given size change the answer, whatever the attack?

Series "certified": randomised smoothing (:mod:`hardy.certificates.smoothing`). It certifies another classifier than the
one that the other axes attack: that which answers what the net gives most often under Gaussian noise of
``Budget.smoothing_sigma``. An image counts at radius r where the smoothed classifier is right and no perturbation of
Euclidean length below r changes it; for each image that is wrong with probability ``smoothing_alpha`` at most. A net
that was not trained with noise is often right on few noisy images; then little is certified, which says nothing against
the net itself.

Series "margin bound (interval)": for nets that are a chain of layers (:func:`hardy.certificates.margin_bound`), the
images on which no perturbation within the threat changes the answer of the net itself; a proof, up to rounding.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hardy.attacks.precision import full_precision
from hardy.certificates import certified_radius, largest_radius, margin_bound, votes
from hardy.errors import AttachError, ParameterError
from hardy.evaluation.context import RANDOM, Context, Measured, NotMeasured, record
from hardy.ranks import Rows
from hardy.results import Axis, Point, Score, mean_score

__all__ = ["ABSTAINED", "BOUND", "CHOICE", "NOISY", "RADIUS", "SELECT", "SERIES", "measure"]

SELECT = 20  # noisy copies that the class is chosen from; the bound is computed from others
LEVELS, HEADLINE = (0.0, 0.5, 1.0, 1.5), 0.5  # radii in units of sigma
SERIES, BOUND = "certified", "margin bound (interval)"
CHOICE = "majority under noise, not certified"
RADIUS, ABSTAINED, NOISY = "mean certified radius", "abstained on the right class", "plain net under the noise"
Details = dict[str, str | int | float | bool | None]
Found = dict[str, tuple[Tensor, Point]]  # label -> outcomes (n,) and their record


def measure(context: Context) -> Measured | NotMeasured:
    """Smooth and certify, and bound the margin where the net allows it.

    Points of series "certified": share of images certified at 0, 0.5, 1 and 1.5 sigma, and at the length that the
    threat's ball reaches. Scores, with one number per image in ``arrays``: the certified radius (0 where nothing is
    certified or the answer is wrong), whether the smoothed classifier abstained though it had chosen the right class,
    and the share of noisy copies on which the plain net was right.

    Images of which another class is chosen cannot count, and cost no further passes.
    """
    budget = context.budget
    sigma, draws, alpha = budget.smoothing_sigma, budget.smoothing_draws, budget.smoothing_alpha
    if any(module.training for module in context.model.modules()):
        return NotMeasured("certified", "a part of the model is in train mode", "See the check eval_mode.")
    try:
        largest = largest_radius(sigma=sigma, draws=draws, alpha=alpha)
    except ParameterError as error:
        return NotMeasured("certified", str(error), "Give a larger Budget(smoothing_draws=...).")
    chosen, noisy, radius = _smoothed(context)
    bound, refused = _bounded(context)
    how: Details = {"sigma": sigma, "draws": draws, "select": SELECT, "alpha": alpha}
    facts: Details = {
        **how,
        "largest_radius": largest,
        "random_net": f"{RANDOM}; alpha holds only if its rows draw by themselves" if context.draws > 1 else None,
        "no_margin_bound": refused,
    }
    found = {
        **_curve(context, radius, how, facts, forward=len(context.x) * SELECT + int(chosen.sum()) * draws),
        **_at_threat(context, radius, how, largest),
        CHOICE: (chosen, record(CHOICE, chosen, passes={}, details={"sigma": sigma, "draws": SELECT})),
        **(_proved(context, bound) if bound is not None else {}),
    }
    values = {RADIUS: radius, ABSTAINED: (chosen & (radius == 0)).float(), NOISY: noisy}
    axis = Axis(
        name="certified",
        question="On how many images can no perturbation up to a given length change what the net answers most often "
        f"under Gaussian noise (sigma {sigma:g})?",
        headline=_label(HEADLINE * sigma),
        points=tuple(point for _, point in found.values()),
        level_name="L2 radius (pixels in [0, 1])",
        scores=_scores(values, how),
    )
    return Measured(axis=axis, outcomes={label: right for label, (right, _) in found.items()}, arrays=values)


def _smoothed(context: Context) -> tuple[Bool[Tensor, "n"], Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Choose a class from some noisy copies, and certify where it is the right one from others.

    Returns:
        Whether the right class was chosen, the share of those copies on which the net was right, and certified radii,
        0 where the class is wrong or not certified.
    """
    budget = context.budget
    how: dict[str, Any] = {"sigma": budget.smoothing_sigma, "batch_size": context.batch_size}

    def asked(index: Tensor, purpose: str, draws: int) -> Tensor:
        key = context.keys(purpose)

        def work(i: Tensor) -> Rows:
            return {"votes": votes(context.model, context.x[i], draws=draws, key=key[i], **how)}

        found = context.share([index[i] for i in context.batches(len(index))], work)
        return torch.cat([part["votes"] for part in found])

    with full_precision(context.x.device):
        first = asked(torch.arange(len(context.x), device=context.x.device), "certified:select", SELECT)
        own = first.gather(1, context.y[:, None])[:, 0]
        chosen = (first.argmax(dim=1) == context.y) & (own > 0)
        radius = torch.zeros(len(context.x), device=context.x.device)
        rows = chosen.nonzero()[:, 0]
        if len(rows):
            counts = asked(rows, "certified:estimate", budget.smoothing_draws)
            hits = counts.gather(1, context.y[rows, None])[:, 0]
            radius[rows] = certified_radius(
                hits, sigma=budget.smoothing_sigma, draws=budget.smoothing_draws, alpha=budget.smoothing_alpha
            )
    return chosen, own / SELECT, radius


def _bounded(context: Context) -> tuple[Float[Tensor, "n"] | None, str | None]:
    """Bound the margin within the threat, whose ball is inside the linf ball of its eps; or say why not."""
    if context.draws > 1:
        return None, RANDOM
    try:
        with full_precision(context.x.device):
            bound = margin_bound(
                context.model, context.x, context.y, eps=context.threat.eps, batch_size=context.batch_size
            )
    except AttachError as error:
        return None, str(error)
    return bound, None


def _curve(context: Context, radius: Float[Tensor, "n"], how: Details, facts: Details, *, forward: int) -> Found:
    """Count how many images are certified at each radius; the headline has all facts and the passes of all."""
    found: Found = {}
    for share in LEVELS:
        level = share * context.budget.smoothing_sigma
        right, first = (radius > 0) & (radius >= level), share == HEADLINE
        passes, details = ({"forward": forward}, facts) if first else ({}, how)
        point = record(_label(level), right, level=level, series=SERIES, passes=passes, details=details)
        found[point.label] = right, point
    return found


def _at_threat(context: Context, radius: Float[Tensor, "n"], how: Details, largest: float) -> Found:
    """Count where the certified radius covers the threat's ball, which under linf reaches to its corners."""
    threat, size = context.threat, context.x[0].numel()
    length = threat.eps * math.sqrt(size) if threat.norm == "linf" else threat.eps
    right, label = (radius > 0) & (radius >= length), f"all of {threat}"
    about = f"no perturbation of {threat} is longer than {length:.4g}"
    details: Details = {**how, "reachable": length <= largest, "how": about}
    return {label: (right, record(label, right, level=length, series=SERIES, passes={}, details=details))}


def _proved(context: Context, bound: Float[Tensor, "n"]) -> Found:
    """Count where the margin of the net itself stays positive; of its four passes two are bounds, two a check."""
    right, label = bound > 0, f"{BOUND}, {context.threat}"
    details: Details = {"weight_eps": 0.0, "median_bound": float(bound.median())}
    passes = {"forward": 4 * len(context.x)}
    return {label: (right, record(label, right, series=BOUND, passes=passes, details=details))}


def _scores(values: dict[str, Tensor], how: Details) -> tuple[Score, ...]:
    radius, abstained, noisy = (values[label].cpu().numpy() for label in (RADIUS, ABSTAINED, NOISY))
    return (
        mean_score(RADIUS, radius, kind="quality", unit="L2, pixels in [0, 1]", details=dict(how)),
        # not an error: a net that is wrong everywhere never abstains on the right class
        mean_score(ABSTAINED, abstained, kind="description", details=dict(how)),
        mean_score(NOISY, noisy, kind="accuracy", details=dict(how)),
    )


def _label(radius: float) -> str:
    return f"radius {radius:.4g}"
