"""Drawing simple shapes that are filled with textures: what the generated data set ``shapes`` is made of."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from hardy import seeding

__all__ = ["SHAPES", "TEXTURES", "draw"]

PERIODS = 8  # of a texture, per image side
GRAIN, CLOUDS = 32, 8  # independent values per side of the two random textures
TILT = math.radians(15)  # largest rotation of a shape or a texture
DRAWS = 23  # uniform numbers per image
AT_ONCE = 2**20  # pixels

Coordinate = Float[Tensor, "n s s"]
Draws = Float[Tensor, "n k"]


@dataclass(frozen=True)
class _Place:
    """Where a texture is to be drawn: coordinates in periods, and what is random about it."""

    x: Coordinate
    y: Coordinate
    mirrored: Bool[Tensor, "n"]
    key: Int[Tensor, "n"]
    size: int


def draw(
    shape: Int[Tensor, "n"], texture: Int[Tensor, "n"], key: Int[Tensor, "n"], *, size: int
) -> UInt8[Tensor, "n 3 size size"]:
    """Draw a shape filled with a texture on a plain ground, for every row.

    Place, scale, tilt, and the three colours are random and independent of both. The texture mixes two colours that
    differ in brightness; which is the lighter is random. Mirroring an image changes neither shape nor texture.

    Args:
        shape: Positions in :data:`SHAPES`.
        texture: Positions in :data:`TEXTURES`.
        key: One int64 per row, the source of its randomness.
        size: Height and width in pixels, at least 8; edges are smooth over one pixel.

    Returns:
        RGB images; a row depends on its shape, texture and key alone.
    """
    parts = torch.split(torch.arange(len(key), device=key.device), max(1, AT_ONCE // size**2))
    return torch.cat([_draw(shape[rows], texture[rows], key[rows], size) for rows in parts])


def _draw(shape: Tensor, texture: Tensor, key: Tensor, size: int) -> Tensor:
    u = seeding.uniform(key, 0, (DRAWS,))
    at = (torch.arange(size, device=key.device) + 0.5) * (2 / size) - 1  # pixel centres; the image is [-1, 1]
    y, x = (axis.expand(len(key), size, size) for axis in torch.meshgrid(at, at, indexing="ij"))
    inside, mixture = x.new_empty(x.shape), x.new_empty(x.shape)
    for k, outline in enumerate(SHAPES.values()):
        rows = (shape == k).nonzero()[:, 0]
        inside[rows] = _inside(x[rows], y[rows], u[rows], outline, size)
    for k, fill in enumerate(TEXTURES.values()):
        rows = (texture == k).nonzero()[:, 0]
        mixture[rows] = fill(_place(x[rows], y[rows], u[rows], key[rows], size))
    light, dark, ground = _colours(u)
    filled = light * mixture[:, None] + dark * (1 - mixture[:, None])
    image = filled * inside[:, None] + ground * (1 - inside[:, None])
    return (255 * image).round().to(torch.uint8)


def _inside(
    x: Coordinate, y: Coordinate, u: Draws, outline: Callable[[Coordinate, Coordinate], Coordinate], size: int
) -> Coordinate:
    """Give the share of each pixel that is in the shape, from its signed distance to the outline."""
    column = u[:, :, None, None].unbind(dim=1)
    radius = 0.55 + 0.2 * column[0]
    x, y = x - (1 - radius) * (2 * column[1] - 1), y - (1 - radius) * (2 * column[2] - 1)
    x = torch.where(column[3] < 0.5, x, -x)
    x, y = _rotated(x, y, TILT * (2 * column[4] - 1))
    distance = outline(x / radius, y / radius) * radius
    return (0.5 - distance * (size / 2)).clamp(0, 1)


def _place(x: Coordinate, y: Coordinate, u: Draws, key: Tensor, size: int) -> _Place:
    """Tilt, scale and shift the coordinates of the texture at random."""
    column = u[:, 5:, None, None].unbind(dim=1)
    x, y = _rotated(x, y, TILT * (2 * column[0] - 1))
    scale = PERIODS / 2 * (0.85 + 0.3 * column[1])
    return _Place(x * scale + column[2], y * scale + column[3], u[:, 22] < 0.5, key, size)


def _rotated(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    return x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()


def _colours(u: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Draw two colours whose brightness differs by 0.4 to 0.7, and a ground; each (n, 3, 1, 1), in [0, 1]."""
    column = u[:, 9:, None].unbind(dim=1)
    step = 0.4 + 0.3 * column[0]
    low = 0.1 + (0.8 - step) * column[1]
    swap = column[2] < 0.5
    levels = torch.where(swap, low, low + step), torch.where(swap, low + step, low), 0.2 + 0.6 * column[3]
    tint = 0.2 * u[:, 13:22].reshape(-1, 3, 3) - 0.1  # of three colours, three channels
    made = [(level + tint[:, i])[:, :, None, None] for i, level in enumerate(levels)]
    return made[0], made[1], made[2]


# outlines: signed distance to them, negative inside; no shape leaves the circle of radius 1


def _circle(x: Coordinate, y: Coordinate) -> Coordinate:
    return torch.hypot(x, y) - 0.9


def _square(x: Coordinate, y: Coordinate) -> Coordinate:
    return torch.maximum(x.abs(), y.abs()) - 0.7


def _triangle(x: Coordinate, y: Coordinate) -> Coordinate:
    return torch.maximum(y, x.abs() * math.cos(math.pi / 6) - y * 0.5) - 0.49


def _star(x: Coordinate, y: Coordinate) -> Coordinate:
    """Fold the five points onto one half of one, whose edge is the line from its tip to the notch beside it."""
    radius, angle = torch.hypot(x, y), torch.atan2(x, -y)
    folded = (torch.remainder(angle + math.pi / 5, 2 * math.pi / 5) - math.pi / 5).abs()
    notch = (0.42 * math.cos(math.pi / 5), 0.42 * math.sin(math.pi / 5))
    along, across = notch[0] - 1, notch[1]
    length = math.hypot(along, across)
    return ((radius * folded.cos() - 1) * across - radius * folded.sin() * along) / length


def _cross(x: Coordinate, y: Coordinate) -> Coordinate:
    long, wide = torch.maximum(x.abs() - 0.95, y.abs() - 0.3), torch.maximum(x.abs() - 0.3, y.abs() - 0.95)
    return torch.minimum(long, wide)


def _ring(x: Coordinate, y: Coordinate) -> Coordinate:
    return (torch.hypot(x, y) - 0.72).abs() - 0.22


def _crescent(x: Coordinate, y: Coordinate) -> Coordinate:
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.8 - torch.hypot(x - 0.5, y))


def _hourglass(x: Coordinate, y: Coordinate) -> Coordinate:
    return torch.maximum((x.abs() - 0.9 * y.abs()) / math.hypot(1, 0.9) - 0.05, y.abs() - 0.7)


# textures: share of the light colour, for coordinates in periods


def _edge(wave: Coordinate, size: int) -> Coordinate:
    """Turn a sine into bars whose edges are smooth over about one pixel."""
    return (0.5 + wave * (size / PERIODS / (2 * math.pi))).clamp(0, 1)


def _sine(t: Coordinate) -> Coordinate:
    return torch.sin(2 * math.pi * t)


def _lines(at: _Place) -> Coordinate:
    return _edge(_sine(at.y), at.size)


def _columns(at: _Place) -> Coordinate:
    return _edge(_sine(at.x), at.size)


def _diagonals(at: _Place) -> Coordinate:
    side = torch.where(at.mirrored[:, None, None], 1.0, -1.0)
    return _edge(_sine((at.x + side * at.y) * math.sqrt(0.5)), at.size)


def _checks(at: _Place) -> Coordinate:
    return _edge(_sine(at.x * 0.75) * _sine(at.y * 0.75), at.size)


def _dots(at: _Place) -> Coordinate:
    distance = torch.hypot(torch.remainder(at.x, 1) - 0.5, torch.remainder(at.y, 1) - 0.5)  # in periods
    return (0.5 + (0.32 - distance) * (at.size / PERIODS)).clamp(0, 1)


def _rings(at: _Place) -> Coordinate:
    return _edge(_sine(torch.hypot(at.x, at.y)), at.size)


def _grain(at: _Place) -> Coordinate:
    return _noise(at.key, min(GRAIN, at.size), at.size)


def _clouds(at: _Place) -> Coordinate:
    return _noise(at.key, CLOUDS, at.size)


def _noise(key: Tensor, cells: int, size: int) -> Coordinate:
    """Draw independent values on a lattice and blend them, with more contrast."""
    values = seeding.uniform(key, 2, (1, cells, cells))
    smooth = F.interpolate(values, size=(size, size), mode="bilinear", align_corners=False)[:, 0]
    return (0.5 + 1.6 * (smooth - 0.5)).clamp(0, 1)


SHAPES: Mapping[str, Callable[[Coordinate, Coordinate], Coordinate]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
    "hourglass": _hourglass,
}
TEXTURES: Mapping[str, Callable[[_Place], Coordinate]] = {
    "lines": _lines,
    "columns": _columns,
    "dots": _dots,
    "grain": _grain,
    "diagonals": _diagonals,
    "checks": _checks,
    "rings": _rings,
    "clouds": _clouds,
}
