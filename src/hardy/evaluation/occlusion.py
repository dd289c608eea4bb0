"""Axis ``occlusion``: how often is the model still right when parts of the image are hidden?

Three kinds of curves over the share that is hidden:

- random patches, with several fills, since a black square is itself unlike any photo: where the fills disagree, the
  model fails because of the square;
- salient patches: as many as at random but the most relevant ones; the foreground (the smallest set of patches that
  holds a share of the relevance) removed; and only the foreground kept, where higher is better too;
- everything lost from one side, in the four orders of a scan line: as many patches as at random, but in one piece.

Relevance is that of the model itself unless ``Material.attribution`` says otherwise; then every model hides what it
looks at, which differs from model to model. An attribution of one fixed net hides the same from all. An image without
relevance, such as one of a net that masks its gradients, would lose random patches: where these are more than a tenth
of the images, there are no such curves.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from jaxtyping import Bool, Float
from torch import Tensor

from hardy import seeding
from hardy.corruptions.fills import blur_fill, channel_mean, mean_fill, noise_fill, zero_fill
from hardy.corruptions.patch_drop import (
    drop_patches,
    exact,
    first_patches,
    foreground,
    largest_grid,
    patch_mass,
    salient_order,
)
from hardy.corruptions.scan_line import ORDERS, drop_counts, scan_line_drop
from hardy.evaluation.attribution import attribution_name, attributions
from hardy.evaluation.context import Context, Measured, NotMeasured, record
from hardy.results import Axis

__all__ = ["measure"]

TYPICAL = 0.5  # the headline is the share closest to it
BLIND = 0.1  # share of the images without relevance above which relevance hides nothing
MAIN = "mean"  # fill of the headline and of everything but the random drop; else the first of the fills
SIDES = dict(zip(ORDERS, ("top", "left", "bottom", "right"), strict=True))
SCANS = {  # curves of the scan lines; what has the same name in two orders is the same
    "whole": "lost from the {side}",
    "ramp": "loss grows from the {side} on",
    "peak": "loss peaks in the middle {lines}",
    "valley": "loss least in the middle {lines}",
    "even": "the same loss in every patch",
}


@dataclass(frozen=True)
class _Hidden:
    """Images with parts hidden: of which curve and strength, and how much of them is hidden on average."""

    series: str
    level: float
    x: Float[Tensor, "n c h w"]
    share: float
    details: dict[str, str | int | float | bool | None]
    backward: int = 0  # backward passes spent to know what to hide, with as many forward passes


def measure(context: Context) -> Measured | NotMeasured:
    """Hide patches at random, by relevance and from every side, at every share of the budget.

    The grid is the largest of at most ``Budget.drop_grid`` that divides the image into patches of at least 2 x 2
    pixels: 8 x 8 at 32 and 224 pixels, 7 x 7 at 28, 4 x 4 at 8.
    """
    h, w = context.x.shape[2:]
    grid = largest_grid(h, w, at_most=context.budget.drop_grid)
    if grid is None:
        most = context.budget.drop_grid
        reason = f"no grid of at least 2, at most {most} patches per side, of 2x2 pixels or more, divides {h}x{w}"
        return NotMeasured("occlusion", reason, "Give a Budget(drop_grid=...) that allows one, or resize the images.")
    outcomes, points = {}, []
    main = MAIN if MAIN in context.budget.fills else context.budget.fills[0]
    for hidden in _everything(context, grid, main):
        label = _label(hidden.series, hidden.level)
        outcomes[label] = context.predict(hidden.x) == context.y
        spent = {"forward": len(context.x) * context.draws + hidden.backward}
        made = record(
            label,
            outcomes[label],
            level=hidden.level,
            series=hidden.series,
            passes=spent | ({"backward": hidden.backward} if hidden.backward else {}),
            details={"grid": f"{grid}x{grid}", "hidden_share": round(hidden.share, 4), **hidden.details},
        )
        points.append(made)
    axis = Axis(
        name="occlusion",
        question="How often is it still right when parts of the image are hidden?",
        headline=_label(_random_series(main), _typical(context)),
        points=tuple(points),
        level_name="share of the patches (foreground: of the relevance)",
    )
    return Measured(axis=axis, outcomes=outcomes)


def _everything(context: Context, grid: int, main: str) -> Iterator[_Hidden]:
    """Give the images of every point, one point at a time; relevance comes first, since a callable may raise."""
    mass = patch_mass(attributions(context), grid=grid)
    irrelevant = int((mass.sum(dim=1) == 0).sum())
    blind = irrelevant > BLIND * len(mass)
    note = {"salient_left_out": f"{irrelevant} of {len(mass)} images have no relevance"}
    for name in sorted(context.budget.fills, key=lambda name: name != main):
        for hidden in _random(context, grid, name):
            headline = name == main and hidden.level == _typical(context)
            noted = replace(hidden, details={**hidden.details, **note}, backward=_asked(context))
            yield noted if blind and headline else hidden
    fill = _fill(context, grid, main)
    if not blind:
        yield from _salient(context, grid, mass, fill, main)
    yield from _scanned(context, grid, fill, main)


def _random(context: Context, grid: int, name: str) -> Iterator[_Hidden]:
    fill, order = _fill(context, grid, name), seeding.permutation(context.keys("patch_drop"), 0, grid * grid)
    for share in context.budget.drop_shares:
        dropped = first_patches(order, int(exact(share) * grid * grid))
        yield _dropped(_random_series(name), share, context.x, dropped, fill=fill, details={"fill": name})


def _salient(
    context: Context, grid: int, mass: Float[Tensor, "n p"], fill: Float[Tensor, "n c h w"], name: str
) -> Iterator[_Hidden]:
    """Hide the most relevant patches, as many as at random; the foreground; and everything but the foreground."""
    order, given = salient_order(mass, key=context.keys("patch_drop")), context.material.attribution
    irrelevant = int((mass.sum(dim=1) == 0).sum())
    details: dict[str, str | int | float | bool | None] = {"fill": name, "relevance": attribution_name(given)}
    details |= {"images_without_relevance": irrelevant} if irrelevant else {}
    details |= {"relevance_through": "twin"} if given is None and context.twin is not None else {}
    asked = _asked(context)
    for share in context.budget.drop_shares:
        dropped = first_patches(order, int(exact(share) * grid * grid))
        hidden = _dropped("most salient patches", share, context.x, dropped, fill=fill, details=details)
        yield replace(hidden, backward=asked)
        asked = 0
    for share in context.budget.drop_shares:
        dropped = foreground(mass, order, share=share)
        yield _dropped("foreground removed", share, context.x, dropped, fill=fill, details=details)
    for share in context.budget.drop_shares:
        dropped = ~foreground(mass, order, share=share)
        yield _dropped("only the foreground kept", share, context.x, dropped, fill=fill, details=details)


def _asked(context: Context) -> int:
    """Count the backward passes that relevance costs; those of a callable are not known."""
    return 0 if context.material.attribution is not None else len(context.x)


def _typical(context: Context) -> float:
    return min(context.budget.drop_shares, key=lambda share: abs(share - TYPICAL))


def _scanned(context: Context, grid: int, fill: Float[Tensor, "n c h w"], name: str) -> Iterator[_Hidden]:
    """Lose pixels along the scan lines, for every profile of the budget and every order that differs."""
    key, (h, w) = context.keys("scan_line"), context.x.shape[2:]
    for profile in context.budget.scan_profiles:
        curves: dict[str, str] = {}
        for order in ORDERS:
            lines = order.removesuffix("_reversed")
            curves.setdefault(SCANS[profile].format(side=SIDES[order], lines=lines), order)
        for series, order in curves.items():
            details: dict[str, str | int | float | bool | None] = {"fill": name, "profile": profile, "order": order}
            for rate in context.budget.drop_shares:
                counts = drop_counts(profile, rate=rate, patches=grid * grid, pixels=h * w // grid**2)
                x = scan_line_drop(context.x, rate=rate, profile=profile, order=order, grid=grid, fill=fill, key=key)
                yield _Hidden(series, rate, x, sum(counts) / (h * w), details)


def _dropped(
    series: str,
    level: float,
    x: Float[Tensor, "n c h w"],
    dropped: Bool[Tensor, "n p"],
    *,
    fill: Float[Tensor, "n c h w"],
    details: dict[str, str | int | float | bool | None],
) -> _Hidden:
    hidden = drop_patches(x, dropped=dropped, grid=math.isqrt(dropped.shape[1]), fill=fill)
    return _Hidden(series, level, hidden, float(dropped.float().mean()), details)


def _fill(context: Context, grid: int, name: str) -> Float[Tensor, "n c h w"]:
    """Make what is seen in place of the image; the blur is twice as coarse as the patches."""
    x = context.x
    match name:
        case "zero":
            return zero_fill(x)
        case "mean":
            return mean_fill(x, mean=channel_mean(x))
        case "noise":
            return noise_fill(x, key=context.keys("noise_fill"))
        case _:
            return blur_fill(x, cells=max(1, grid // 2))


def _random_series(fill: str) -> str:
    return f"random patches, {fill} fill"


def _label(series: str, level: float) -> str:
    return f"{series}, {level:g}"
