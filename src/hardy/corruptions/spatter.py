"""Spatter, a further corruption of the weather family: drops of water (severity 1 to 3) or of mud (4 and 5).

The constants and steps are those of ``make_cifar_c.py`` and ``make_imagenet_c.py`` of
https://github.com/hendrycks/robustness; see :mod:`hardy.corruptions.weather`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy import seeding
from hardy.corruptions._bands import map_columns, map_rows, smoothing
from hardy.corruptions._chunks import in_chunks
from hardy.corruptions.scale import Scale, check
from hardy.errors import ShapeError

__all__ = ["SPATTERS", "Drops", "spatter"]


class Drops(NamedTuple):
    """Constants of one severity, in the published order.

    Attributes:
        mean: Of the normal noise.
        deviation: Of that noise.
        sigma: Of its smoothing, in pixels.
        least: Value from which it is a drop.
        strength: Water: weight of the drops. Mud: standard deviation of its soft edge, in pixels.
        mud: Mud, not water.
    """

    mean: float
    deviation: float
    sigma: float
    least: float
    strength: float
    mud: bool


SPATTERS: Mapping[Scale, tuple[Drops, ...]] = {  # severity 1 to 5
    "cifar": (
        Drops(0.62, 0.1, 0.7, 0.7, 0.5, mud=False),
        Drops(0.65, 0.1, 0.8, 0.7, 0.5, mud=False),
        Drops(0.65, 0.3, 1.0, 0.69, 0.5, mud=False),
        Drops(0.65, 0.1, 0.7, 0.69, 0.6, mud=True),
        Drops(0.65, 0.1, 0.5, 0.68, 0.6, mud=True),
    ),
    "imagenet": (
        Drops(0.65, 0.3, 4.0, 0.69, 0.6, mud=False),
        Drops(0.65, 0.3, 3.0, 0.68, 0.6, mud=False),
        Drops(0.65, 0.3, 2.0, 0.68, 0.5, mud=False),
        Drops(0.65, 0.3, 1.0, 0.65, 1.5, mud=True),
        Drops(0.67, 0.4, 1.0, 0.65, 1.5, mud=True),
    ),
}
WATER, MUD = (175 / 255, 238 / 255, 238 / 255), (63 / 255, 42 / 255, 20 / 255)
GRAY = (0.2989, 0.5870, 0.1140)  # of a colour on a gray image, as imagecorruptions weighs it
LEAST = 2  # pixels per side, which mirroring at the border needs
FAR = 20  # pixels at which the distance to an edge is cut
WEAK, STRONG = 50, 150  # thresholds of the edge detector, for 256 levels


def spatter(
    x: Float[Tensor, "n c h w"], *, severity: int, scale: Scale, key: Int[Tensor, "n"], counter: int = 0
) -> Float[Tensor, "n c h w"]:
    """Splash drops on the image, where smoothed normal noise is large.

    Water adds pale turquoise, shaded by the distance to the drops' edges; mud replaces pixels by brown. Colours on a
    gray image are gray of the weights 0.2989, 0.587, 0.114. Deviations: the distance is Euclidean, where the
    generators' is OpenCV's approximation from a 5 x 5 mask; and an image on which no water falls stays as it is, where
    the generators divide by zero.

    Args:
        x: Pixels in [0, 1].
        severity: 1 to 5; picks the constants in :data:`SPATTERS`. The published severities are not in order: 3 changes
            an image more than 4 at 32 px.
        scale: Whose constants.
        key: One int64 per row, the source of its drops.
        counter: Which draw of these keys.

    Returns:
        Pixels in [0, 1], like ``x``.

    Raises:
        ParameterError: another severity or scale.
        ShapeError: an image with less than 2 pixels per side, which has no edges.
    """
    check("spatter", severity, scale)
    if min(x.shape[2:]) < LEAST:
        raise ShapeError(
            f"spatter: images must be at least {LEAST}x{LEAST} pixels; got {x.shape[2]}x{x.shape[3]}. Enlarge them."
        )
    drops = SPATTERS[scale][severity - 1]
    colour = torch.tensor(MUD if drops.mud else WATER, device=x.device)
    colour = colour @ colour.new_tensor(GRAY)[:, None] if x.shape[1] == 1 else colour

    def splashed(part: Tensor, keys: Tensor) -> Tensor:
        noise = seeding.normal(keys, counter, part.shape[2:]).mul_(drops.deviation).add_(drops.mean)
        liquid = F.threshold(_smooth(noise, drops.sigma), drops.least, 0.0)
        cover = _mud(liquid, drops) if drops.mud else _water(liquid, drops)
        ground = part * (1 - cover[:, None]) if drops.mud else part
        return (cover[:, None] * colour[:, None, None]).add_(ground).clamp_(0, 1)

    return in_chunks(splashed, x, key, multiple=4)


def _smooth(planes: Float[Tensor, "n h w"], sigma: float) -> Float[Tensor, "n h w"]:
    """Blur by a Gaussian cut at four standard deviations, borders repeated."""
    down, across = (smoothing(size, sigma, truncate=4.0, border="nearest") for size in planes.shape[1:])
    return map_rows(map_columns(planes, down), across)


def _mud(liquid: Float[Tensor, "n h w"], drops: Drops) -> Float[Tensor, "n h w"]:
    """Blur the drops' outline and keep where it is at least 0.8."""
    return F.threshold(_smooth((liquid > drops.least).float(), drops.strength), 0.8, 0.0)


def _water(liquid: Float[Tensor, "n h w"], drops: Drops) -> Float[Tensor, "n h w"]:
    """Shade drops: the distance to the nearest edge, equalised, in relief, times the drop; the most is ``strength``."""
    levels = (liquid * 255).floor_().clamp_(max=255)
    distance = _box(_distance(_edges(levels))).floor_()
    cover = levels * _box(_relief(_equalised(distance.long()))).round_()
    most = cover.amax(dim=(1, 2), keepdim=True)
    return cover * (drops.strength / most.clamp(min=1))


def _mirrored(planes: Float[Tensor, "n h w"]) -> Float[Tensor, "n k l"]:
    """Pad by one pixel, mirrored at the last."""
    return F.pad(planes[:, None], (1, 1, 1, 1), mode="reflect")[:, 0]


def _box(planes: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Average over 3 x 3 pixels."""
    padded = _mirrored(planes)
    rows = (padded[:, :-2] + padded[:, 1:-1]).add_(padded[:, 2:])
    return (rows[:, :, :-2] + rows[:, :, 1:-1]).add_(rows[:, :, 2:]).div_(9)


def _relief(planes: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Correlate with the relief kernel (-2 -1 0, -1 1 1, 0 1 2), cut to 0 .. 255."""
    p, h, w = _mirrored(planes), planes.shape[1], planes.shape[2]
    out = p[:, 2 : h + 2, 2 : w + 2].sub(p[:, :h, :w]).mul_(2)
    out.sub_(p[:, :h, 1 : w + 1]).sub_(p[:, 1 : h + 1, :w]).add_(p[:, 1 : h + 1, 1 : w + 1])
    return out.add_(p[:, 1 : h + 1, 2 : w + 2]).add_(p[:, 2 : h + 2, 1 : w + 1]).clamp_(0, 255)


def _equalised(level: Int[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Spread whole numbers from 0 to ``FAR`` over 0 .. 255 by their rank; one level alone stays."""
    flat = level.flatten(1)
    counts = torch.zeros(len(flat), FAR + 1, device=level.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float32))
    first = flat.amin(dim=1, keepdim=True)
    least, total = counts.gather(1, first), flat.shape[1]
    table = (counts.cumsum(dim=1) - least) * (255 / (total - least).clamp(min=1))
    table = torch.where(least == total, first.float(), table.round())
    return table.gather(1, flat).reshape(level.shape)


def _distance(edge: Bool[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Measure the Euclidean distance to the nearest edge pixel, in pixels, cut at ``FAR``."""
    h, w = edge.shape[1:]
    along = torch.where(edge, 0.0, float(FAR))
    for step in (1, 2, 4, 8, 16):  # the distance within a row: doubling steps reach 31 pixels
        if step < w:
            before = along.clone()
            torch.minimum(along[:, :, step:], before[:, :, :-step] + step, out=along[:, :, step:])
            torch.minimum(along[:, :, :-step], before[:, :, step:] + step, out=along[:, :, :-step])
    square = along.square_()
    nearest = square.clone()
    for step in range(1, min(FAR, h)):
        moved = square + step**2
        torch.minimum(nearest[:, step:], moved[:, :-step], out=nearest[:, step:])
        torch.minimum(nearest[:, :-step], moved[:, step:], out=nearest[:, :-step])
    return nearest.sqrt_().clamp_(max=FAR)


def _edges(level: Float[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    """Find edges as Canny does (Sobel, L1 norm of the gradient, thinning, weak edges only next to strong ones)."""
    p, (h, w) = F.pad(level[:, None], (1, 1, 1, 1), mode="replicate")[:, 0], level.shape[1:]
    down, across = p[:, 2:] - p[:, :-2], p[:, :, 2:] - p[:, :, :-2]
    dy = (down[:, :, :w] + down[:, :, 2:]).add_(down[:, :, 1:-1], alpha=2)
    dx = (across[:, :h] + across[:, 2:]).add_(across[:, 1:-1], alpha=2)
    size = dx.abs() + dy.abs()
    thin = _thinned(size, dx, dy) & (size > WEAK)
    strong = thin & (size > STRONG)
    while True:
        grown = thin & (F.max_pool2d(strong.float()[:, None], 3, 1, 1)[:, 0] > 0)
        if torch.equal(grown, strong):
            return strong
        strong = grown


def _thinned(
    size: Float[Tensor, "n h w"], dx: Float[Tensor, "n h w"], dy: Float[Tensor, "n h w"]
) -> Bool[Tensor, "n h w"]:
    """Keep gradients that no neighbour across the edge exceeds; the direction is one of four, 45 degrees apart."""
    (h, w), p = size.shape[1:], F.pad(size, (1, 1, 1, 1))
    above, below = p[:, :h], p[:, 2:]
    level, steep = 13573 / 32768, 13573 / 32768 + 2  # tangents of 22.5 and 67.5 degrees, as OpenCV has them
    flat = (size > p[:, 1 : h + 1, :w]) & (size >= p[:, 1 : h + 1, 2:])
    upright = (size > above[:, :, 1:-1]) & (size >= below[:, :, 1:-1])
    falling = (size > above[:, :, :w]) & (size > below[:, :, 2:])
    rising = (size > above[:, :, 2:]) & (size > below[:, :, :w])
    x, y = dx.abs(), dy.abs()
    slanted = torch.where((dx < 0) != (dy < 0), rising, falling)
    return torch.where(y < level * x, flat, torch.where(y > steep * x, upright, slanted))
