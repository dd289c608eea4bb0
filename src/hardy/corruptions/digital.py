"""The digital family of the common corruptions: contrast, elastic transform, pixelate, JPEG; and saturate.

Hendrycks, Dietterich. "Benchmarking neural network robustness to common corruptions and perturbations". ICLR 2019,
https://arxiv.org/abs/1903.12261. The constants are those of the authors' generators, ``make_cifar_c.py`` (CIFAR-10-C,
32 px) and ``make_imagenet_c.py`` (ImageNet-C, 224 px), in https://github.com/hendrycks/robustness. The package
``imagecorruptions`` 1.1.2 has the latter, but another elastic transform. Images have 3 channels (red, green, blue) or 1
(gray). The generators' last step, cutting to whole gray levels, is not done here; only pixelate and JPEG, which Pillow
computes on 256 levels, give 256 levels. JPEG is in :mod:`hardy.corruptions.jpeg`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hardy import seeding
from hardy.corruptions._bands import map_columns, map_rows, smoothing
from hardy.corruptions._chunks import in_chunks
from hardy.corruptions.jpeg import QUALITIES, jpeg_compression
from hardy.corruptions.scale import Scale, check

__all__ = [
    "CONTRASTS",
    "ELASTICS",
    "PIXELS",
    "QUALITIES",
    "SATURATIONS",
    "contrast",
    "elastic_transform",
    "jpeg_compression",
    "pixelate",
    "saturate",
]

CONTRASTS: Mapping[Scale, tuple[float, ...]] = {  # what remains of the contrast; severity 1 to 5, as in all tables
    "cifar": (0.75, 0.5, 0.4, 0.3, 0.15),
    "imagenet": (0.4, 0.3, 0.2, 0.1, 0.05),
}
PIXELS: Mapping[Scale, tuple[float, ...]] = {  # what remains of height and width
    "cifar": (0.95, 0.9, 0.85, 0.75, 0.65),
    "imagenet": (0.6, 0.5, 0.4, 0.3, 0.25),
}
SATURATIONS: Mapping[Scale, tuple[tuple[float, float], ...]] = {  # saturation of HSV: factor, then what is added
    "cifar": ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)),
    "imagenet": ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2)),
}
# factor and standard deviation of the displacement, reach of the affine map's corners, as parts of ELASTIC_SIDE
ELASTICS: Mapping[Scale, tuple[tuple[float, float, float], ...]] = {
    "cifar": ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    "imagenet": ((2.0, 0.7, 0.1), (2.0, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
}
ELASTIC_SIDE: Mapping[Scale, float] = {"cifar": 1.0, "imagenet": 244 / 224}  # as multiples of the shorter side; 244 is
# a slip of the authors' for 224, which they left


def contrast(
    x: Float[Tensor, "n c h w"],
    *,
    severity: int,
    scale: Scale,
    key: Int[Tensor, "n"],  # noqa: ARG001
    counter: int = 0,  # noqa: ARG001
) -> Float[Tensor, "n c h w"]:
    """Move every pixel towards the mean of its channel.

    Args:
        x: Pixels in [0, 1].
        severity: 1 to 5; picks what remains of the contrast in :data:`CONTRASTS`.
        scale: Whose constants.
        key: One int64 per row; not used, nothing is random here.
        counter: Not used.

    Returns:
        Pixels in [0, 1], like ``x``.

    Raises:
        ParameterError: another severity or scale.
    """
    check("contrast", severity, scale)
    kept = CONTRASTS[scale][severity - 1]
    return in_chunks(lambda part: part.mean(dim=(2, 3), keepdim=True).lerp(part, kept).clamp_(0, 1), x)


def saturate(
    x: Float[Tensor, "n c h w"],
    *,
    severity: int,
    scale: Scale,
    key: Int[Tensor, "n"],  # noqa: ARG001
    counter: int = 0,  # noqa: ARG001
) -> Float[Tensor, "n c h w"]:
    """Scale the saturation of HSV, add to it, cut at 1, and keep hue and value.

    As in the generators a gray pixel has the hue of red, so that the severities that add (4 and 5) redden it. The
    published severities are not in order: 1 and 2 fade, 3 to 5 saturate. An image of 1 channel is returned as it is,
    as by ``imagecorruptions``, which keeps the red channel of the result.

    Args and errors as :func:`contrast`, with :data:`SATURATIONS`; nothing is random here either.

    Returns:
        Pixels in [0, 1], like ``x``.
    """
    check("saturate", severity, scale)
    factor, added = SATURATIONS[scale][severity - 1]

    def saturated(part: Tensor) -> Tensor:
        red, green, blue = part[:, 0:1], part[:, 1:2], part[:, 2:3]
        value = torch.maximum(torch.maximum(red, green), blue)
        spread = value - torch.minimum(torch.minimum(red, green), blue)
        drop = torch.minimum(value, spread * factor + value * added)  # value times the new saturation
        out = (part - value) * (drop / spread)  # how far a channel lies below the value stays in proportion
        red_hue = part.new_tensor([0.0, 1.0, 1.0])[:, None, None]
        out = torch.where(spread > 0, out, -drop * red_hue) if added else torch.where(spread > 0, out, 0.0)
        return out.add_(value).clamp_(0, 1)

    return x.clone() if x.shape[1] == 1 else in_chunks(saturated, x)


def pixelate(
    x: Float[Tensor, "n c h w"],
    *,
    severity: int,
    scale: Scale,
    key: Int[Tensor, "n"],  # noqa: ARG001
    counter: int = 0,  # noqa: ARG001
) -> Float[Tensor, "n c h w"]:
    """Shrink with Pillow's box filter and enlarge again by repeating pixels.

    Equal to Pillow on images of 256 levels: it averages the pixels whose centres lie in a box, rows first, and rounds
    to 256 levels after either direction; so does this function, and it rounds ``x`` itself before.

    Args and errors as :func:`contrast`, with :data:`PIXELS`; nothing is random here either.

    Returns:
        Multiples of 1/255 in [0, 1], like ``x``.
    """
    check("pixelate", severity, scale)
    kept = PIXELS[scale][severity - 1]
    down, across = (_boxes(size, max(1, int(size * kept))) for size in x.shape[2:])
    widen = across.matrix()[across.shown]
    shown, taps, shares = (each.to(x.device) for each in (down.shown, down.taps, down.shares))

    def pixelated(part: Tensor) -> Tensor:
        wide = map_rows((part * 255).round_(), widen).add_(0.5).floor_()
        small = wide.index_select(2, taps[0]).mul_(shares[0])
        for tap, share in zip(taps[1:], shares[1:], strict=True):
            small.add_(wide.index_select(2, tap).mul_(share))
        return small.add_(0.5).floor_().div_(255).index_select(2, shown)

    return in_chunks(pixelated, x, multiple=4)


def elastic_transform(
    x: Float[Tensor, "n c h w"], *, severity: int, scale: Scale, key: Int[Tensor, "n"], counter: int = 0
) -> Float[Tensor, "n c h w"]:
    """Apply a random affine map, then displace every pixel by smooth noise; both bilinear, with mirrored borders.

    The affine map moves three corners of the middle square by uniform numbers. The displacement is uniform noise,
    smoothed by a Gaussian cut at three standard deviations, times a factor. The generators write these lengths as
    parts of an image side, 32 or 244 pixels; here they follow the shorter side (:data:`ELASTIC_SIDE`), which is the
    same at 32 and 224 pixels. The published severities are not in order: in mean distance from the image those of
    CIFAR-10-C fall from 1 to 5 (the affine part shrinks), and 1 and 2 of ImageNet-C lie far above 3 to 5.

    Args and errors as :func:`contrast`, with :data:`ELASTICS`; the key decides map and displacement.

    Returns:
        Pixels in [0, 1], like ``x``.
    """
    check("elastic_transform", severity, scale)
    h, w = x.shape[2:]
    factor, sigma, reach = (part * ELASTIC_SIDE[scale] * min(h, w) for part in ELASTICS[scale][severity - 1])
    down, across = (smoothing(size, sigma, truncate=3.0, border="reflect") for size in (h, w))

    def bent(part: Tensor, keys: Tensor) -> Tensor:
        part = part.float()
        shifts = seeding.uniform(seeding.fold(keys, 1), counter, (3, 2)).mul_(2 * reach).sub_(reach)
        rows, columns = (torch.arange(size, device=x.device, dtype=torch.float32) for size in (h, w))
        there = _affine(shifts, rows, columns).mul_(2 / part.new_tensor([w - 1, h - 1]).clamp(min=1)).sub_(1)
        moved = F.grid_sample(part, there, padding_mode="reflection", align_corners=True)
        if factor == 0:
            return moved.clamp_(0, 1)
        noise = seeding.uniform(keys, counter, (2, h, w)).mul_(2 * factor).sub_(factor)
        there = map_rows(map_columns(noise, down), across).permute(0, 2, 3, 1).contiguous()
        there[..., 0] += columns + 0.5
        there[..., 1] += rows[:, None] + 0.5
        there = there.mul_(2 / part.new_tensor([w, h])).sub_(1)
        return F.grid_sample(moved, there, padding_mode="reflection", align_corners=False).clamp_(0, 1)

    return in_chunks(bent, x, key, multiple=4)


def _affine(
    shifts: Float[Tensor, "n 3 2"], rows: Float[Tensor, "h"], columns: Float[Tensor, "w"]
) -> Float[Tensor, "n h w 2"]:
    """Say from which (x, y) each pixel comes when three corners of the middle square move by ``shifts``.

    The corners are c + (s, s), c + (s, -s) and c - (s, s) for the centre c = side // 2 and s = shorter side // 3. In
    the moved image the edges between them are e = p0 - p1 and f = p1 - p2, before (0, 2s) and (2s, 0). So a pixel q
    comes from c - (s, s) + 2s (a, b) where q - p2 = a f + b e.
    """
    middle = shifts.new_tensor([len(columns) // 2, len(rows) // 2])
    half = max(1, min(len(rows), len(columns)) // 3)
    corners = half * shifts.new_tensor([[1, 1], [1, -1], [-1, -1]]) + middle + shifts
    (ex, ey), (fx, fy) = ((corners[:, i] - corners[:, i + 1]).T[:, :, None, None] for i in (0, 1))
    across, down = (columns - corners[:, 2, :1])[:, None, :], (rows - corners[:, 2, 1:])[:, :, None]
    scale = 2 * half / (fx * ey - fy * ex)
    source = shifts.new_empty(len(shifts), len(rows), len(columns), 2)
    source[..., 0] = (across * ey - down * ex) * scale + (middle[0] - half)
    source[..., 1] = (down * fx - across * fy) * scale + (middle[1] - half)
    return source


@dataclass(frozen=True)
class _Boxes:
    """Pillow's box filter along one axis.

    Attributes:
        taps: Which pixels are averaged into each small one.
        shares: With which weight; 0 beyond the box.
        shown: Which small pixel each pixel of the result shows.
    """

    taps: Int[Tensor, "t k"]
    shares: Float[Tensor, "t k 1"]
    shown: Int[Tensor, "size"]

    def matrix(self) -> Float[Tensor, "k size"]:
        """Write taps and shares as a matrix."""
        count, size = self.taps.shape[1], len(self.shown)
        return torch.zeros(count, size).scatter_add_(1, self.taps.T, self.shares[..., 0].T)


@lru_cache(maxsize=64)
def _boxes(size: int, fewer: int) -> _Boxes:
    """Average the pixels whose centres lie in the box; enlarging, the one that a pixel's centre lies in."""
    step = size / fewer
    centre = (torch.arange(fewer, dtype=torch.float64) + 0.5) * step
    first, last = (centre - step / 2 + 0.5).long().clamp(min=0), (centre + step / 2 + 0.5).long().clamp(max=size)
    taps = first + torch.arange(int((last - first).max()))[:, None]
    off = (taps + 0.5 - centre) / step
    inside = (taps < last) & (off > -0.5) & (off <= 0.5)
    shares = (inside.double() / inside.sum(dim=0)).float()[..., None]
    shown = ((torch.arange(size, dtype=torch.float64) + 0.5) * (fewer / size)).long()
    return _Boxes(taps.clamp(max=size - 1), shares, shown.clamp(max=fewer - 1))
