"""Axis ``frequency``: at which spatial frequencies do small changes fool the net?

For each of ``budget.bands`` bands of equal dimension (:mod:`hardy.attacks.bands`) :class:`hardy.attacks.BandPGD` looks
for a change inside band, ball and box. Series "random noise" is its control: the same search in the same band along a
random direction in place of the gradient, so that it fills as much of the ball. Series "all bands" is the same search
in the whole spectrum.

A low accuracy in a band says that the net reads these frequencies; where the control is low too, any change there does.
Attackers are not confined to a band: none of these accuracies is a robustness, which ``white_box`` and ``worst_case``
measure, but every image that falls here has fallen within the threat.

Where pixels are black or white, the box leaves little room for waves. A band in which most images have none says
nothing of the net and is left out; as this depends on the images alone, models that are compared lose the same bands.

After Malik et al. 2024 (https://arxiv.org/abs/2406.09407), with the deviations that the card of the attack names.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hardy import seeding
from hardy.attacks import BandPGD, Goal
from hardy.attacks.bands import make_band
from hardy.attacks.norms import norm_of
from hardy.attacks.state import Ball
from hardy.evaluation.context import Context, Measured, NotMeasured, record
from hardy.evaluation.suite import search
from hardy.ranks import Rows
from hardy.results import Axis, Point, mean_score

__all__ = ["ALL", "ATTACK", "CONTROL", "MEAN", "measure"]

ATTACK, CONTROL, ALL = "attack", "random noise", "all bands"  # series
MEAN = "mean over bands"
ROOM = 0.1  # of eps: an image has room in a band if its control is at least that long
Details = dict[str, str | int | float | bool | None]


def measure(context: Context) -> Measured | NotMeasured:
    """Attack all images that are right, band by band, lowest frequencies first.

    The headline is the mean of the accuracies over bands; per image in ``arrays``. ``level`` of a point is the highest
    radial frequency of its band. In the details, over the images that are right: ``in_band`` is the mean share of the
    energy of the change that is in the band (of changes that are not 0), ``least_in_band`` the least; ``size`` is the
    mean length of the change over eps. ``no_room`` counts images, of all, whose control is shorter than a tenth of eps;
    where it counts more than half, the band is left out and named in ``left_out`` of the headline.
    """
    if (missing := _impossible(context)) is not None:
        return missing
    budget = context.budget
    points, outcomes, left_out = list[Point](), dict[str, Tensor](), list[str]()
    for index in range(budget.bands):
        spec = BandPGD(band=index, bands=budget.bands, steps=budget.band_steps, eot=context.draws)
        noisy = _noise(context, spec)
        no_room = _size(context, noisy) < ROOM
        if bool(no_room.float().mean() > 0.5):
            left_out.append(str(index + 1))
            continue
        control = _controlled(context, spec, noisy, int(no_room.sum()))
        for made, right in (_attacked(context, spec), control):
            points.append(made)
            outcomes[made.label] = right
    if not points:
        reason = "in every band the box leaves most images no room: they are black or white nearly everywhere"
        return NotMeasured("frequency", reason, "Measure on images with gray levels in between.")
    means = torch.stack([outcomes[p.label] for p in points if p.series == ATTACK]).float().mean(dim=0)
    whole, outcomes[ALL] = _attacked(context, BandPGD(bands=1, steps=budget.band_steps, eot=context.draws))
    details: Details = {"bands": budget.bands, "band_steps": budget.band_steps}
    details |= {"left_out": f"{', '.join(left_out)} (no room in the box)"} if left_out else {}
    axis = Axis(
        name="frequency",
        question=f"At which spatial frequencies do small changes fool it, within {context.threat}?",
        headline=MEAN,
        points=(*points, whole),
        level_name="highest frequency of the band (1 = half a cycle per pixel)",
        scores=(mean_score(MEAN, means.cpu().numpy(), kind="accuracy", details=details),),
    )
    return Measured(axis=axis, outcomes=outcomes, arrays={MEAN: means})


def _impossible(context: Context) -> NotMeasured | None:
    """Say why there are no such bands, if that is so."""
    h, w = context.x.shape[2:]
    norm, count = context.threat.norm, context.budget.bands
    if norm not in BandPGD.norms:
        reason = f"attacks inside a band are defined for {' and '.join(BandPGD.norms)}, the threat is {norm}"
        return NotMeasured("frequency", reason, 'Evaluate with Threat("linf", ...) or Threat("l2", ...) besides.')
    if count > h * w:
        reason = f"{h}x{w} images have {h * w} frequencies, fewer than {count} bands"
        return NotMeasured("frequency", reason, f"Give Budget(bands=...) of at most {h * w}.")
    return None


def _attacked(context: Context, spec: BandPGD) -> tuple[Point, Bool[Tensor, "n"]]:
    """Attack in one band: the point, and which images are still right."""
    right, x_adv, passes = context.correct.clone(), context.x.clone(), dict[str, int]()
    attacked = right.nonzero()[:, 0]
    if len(attacked):
        broken, x_adv[attacked], passes = search(context, spec, attacked, eps=context.threat.eps)
        right[attacked[broken]] = False
    details: Details = {"attack": repr(spec), "attacked": len(attacked), "broke": len(attacked) - int(right.sum())}
    return _point(context, spec, ATTACK, right, x_adv=x_adv, passes=passes, details=details), right


def _controlled(
    context: Context, spec: BandPGD, noisy: Float[Tensor, "n c h w"], no_room: int
) -> tuple[Point, Bool[Tensor, "n"]]:
    """Show the control of one band to the net: the point, and which images are still right."""
    right = (context.predict(noisy) == context.y) & context.correct
    details: Details = {"attack": "random direction", "no_room": no_room}
    details |= {"bands": spec.bands, "band_steps": spec.steps}
    passes = {"forward": len(right) * context.draws}
    return _point(context, spec, CONTROL, right, x_adv=noisy, passes=passes, details=details), right


def _noise(context: Context, spec: BandPGD) -> Float[Tensor, "n c h w"]:
    """Climb a random linear function of the image, its own for every image, as the attack climbs the loss."""
    keys = context.keys("band noise")

    def work(i: Tensor) -> Rows:
        x, y, key = context.x[i], context.y[i], keys[i]
        ball = Ball(context.threat.norm, torch.full(y.shape, context.threat.eps, device=x.device))
        state = spec.start(x, Goal(y, y, torch.zeros_like(y, dtype=torch.bool)), ball, key)
        slope = seeding.normal(seeding.fold(key, seeding.root(0, "slope")), 0, x.shape[1:]).repeat(spec.eot, 1, 1, 1)
        while not bool(spec.finished(state).all()):
            state = spec.tell(state, torch.zeros(len(slope), 1, device=x.device), slope)
        return {"x": spec.result(state)}

    return torch.cat([part["x"] for part in context.share(context.batches(len(context.x)), work)])


def _point(
    context: Context,
    spec: BandPGD,
    series: str,
    right: Bool[Tensor, "n"],
    *,
    x_adv: Float[Tensor, "n c h w"],
    passes: dict[str, int],
    details: Details,
) -> Point:
    """Make the point of a series in the band of an attack; one band of one is the whole spectrum."""
    h, w = context.x.shape[2:]
    band, whole = make_band(spec.band, spec.bands, height=h, width=w, device=context.x.device), spec.bands == 1
    size = _size(context, x_adv)[context.correct]
    share = band.share((x_adv - context.x)[context.correct])[size > 0]
    return record(
        ALL if whole else f"{series}, band {spec.band + 1}",
        right,
        level=None if whole else round(band.high, 3),
        series=ALL if whole else series,
        passes=passes,
        details={
            **details,
            "norm": context.threat.norm,
            "eps": context.threat.eps,
            "waves": band.describe(),
            "dimension": band.size,
            "size": float(size.mean()),
            "in_band": float(share.mean()),
            "least_in_band": float(share.min()) if len(share) else None,
        },
    )


def _size(context: Context, x_adv: Float[Tensor, "n c h w"]) -> Float[Tensor, "n"]:
    """Measure the length of each change over eps."""
    return norm_of(x_adv - context.x, norm=context.threat.norm) / context.threat.eps
