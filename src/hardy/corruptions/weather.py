"""The weather family of the common corruptions: snow, frost, fog, brightness; and spatter.

Hendrycks, Dietterich. "Benchmarking neural network robustness to common corruptions and perturbations". ICLR 2019,
https://arxiv.org/abs/1903.12261. The constants are those of the authors' generators, ``make_cifar_c.py`` (CIFAR-10-C,
32 px) and ``make_imagenet_c.py`` (ImageNet-C, 224 px; the same as in the package ``imagecorruptions`` 1.1.2), in
https://github.com/hendrycks/robustness. Lengths are in pixels and stay so at any image size. Images have 3 channels
(red, green, blue) or 1 (gray), which each function treats as it says. The generators' last step, cutting to whole gray
levels, is not done here.

Frost here is generated, not photographed: see :func:`frost`. Spatter is in :mod:`hardy.corruptions.spatter`.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hardy import seeding
from hardy.corruptions._chunks import in_chunks
from hardy.corruptions.plasma import plasma
from hardy.corruptions.scale import Scale, check
from hardy.corruptions.spatter import SPATTERS, spatter

__all__ = ["BRIGHTENING", "FOGS", "FROSTS", "SNOWS", "SPATTERS", "brightness", "fog", "frost", "snow", "spatter"]

BRIGHTENING: Mapping[Scale, tuple[float, ...]] = {  # added to the value of HSV; severity 1 to 5, as in all tables
    "cifar": (0.05, 0.1, 0.15, 0.2, 0.3),
    "imagenet": (0.1, 0.2, 0.3, 0.4, 0.5),
}
FOGS: Mapping[Scale, tuple[tuple[float, float], ...]] = {  # thickness, decay of the plasma
    "cifar": ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
    "imagenet": ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
}
FROSTS: Mapping[Scale, tuple[tuple[float, float], ...]] = {  # weight of the image, weight of the ice
    "cifar": ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "imagenet": ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
}
# mean and standard deviation of the flakes' noise, its enlargement, the least value of a flake; radius and standard
# deviation of the motion; weight of the image against its bleached self
SNOWS: Mapping[Scale, tuple[tuple[float, float, float, float, int, float, float], ...]] = {
    "cifar": (
        (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
    ),
    "imagenet": (
        (0.1, 0.3, 3.0, 0.5, 10, 4.0, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4.0, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8.0, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8.0, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12.0, 0.55),
    ),
}
# red, green, blue of the five published photographs' mean, and the standard deviation of gray in crops of them
ICES = (
    (0.30, 0.58, 0.64, 0.06),
    (0.78, 0.80, 0.83, 0.07),
    (0.78, 0.80, 0.83, 0.07),
    (0.57, 0.62, 0.67, 0.10),
    (0.41, 0.45, 0.50, 0.14),
)
WANDER = 0.04  # standard deviation of a crop's mean around its photograph's, averaged over the five
VEINS = 1.15  # decay of the plasma under the ice: gray then has a spectrum of about 1 / f^2, as the photographs
LUMINANCE = (0.299, 0.587, 0.114)


def brightness(
    x: Float[Tensor, "n c h w"],
    *,
    severity: int,
    scale: Scale,
    key: Int[Tensor, "n"],  # noqa: ARG001
    counter: int = 0,  # noqa: ARG001
) -> Float[Tensor, "n c h w"]:
    """Add to the value of HSV, up to 1, and keep hue and saturation; a gray image is its own value.

    Args:
        x: Pixels in [0, 1].
        severity: 1 to 5; picks the addition in :data:`BRIGHTENING`.
        scale: Whose constants.
        key: One int64 per row; not used, nothing is random here.
        counter: Not used.

    Returns:
        Pixels in [0, 1], like ``x``.

    Raises:
        ParameterError: another severity or scale.
    """
    check("brightness", severity, scale)
    added = BRIGHTENING[scale][severity - 1]

    def brightened(part: Tensor) -> Tensor:
        value = part.amax(dim=1, keepdim=True) if part.shape[1] != 3 else _value(part)
        target = (value + added).clamp_(max=1)
        return torch.where(value > 0, part * (target / value), target)

    return in_chunks(brightened, x)


def fog(
    x: Float[Tensor, "n c h w"], *, severity: int, scale: Scale, key: Int[Tensor, "n"], counter: int = 0
) -> Float[Tensor, "n c h w"]:
    """Add a plasma of the given thickness to all channels and scale back to the image's brightest value.

    Args and errors as :func:`brightness`, with :data:`FOGS`; the key decides the plasma, whose side is the next power
    of two (32 for 32 px, 256 for 224 px), cropped to the image.

    Returns:
        Pixels in [0, 1], like ``x``.
    """
    check("fog", severity, scale)
    thickness, decay = FOGS[scale][severity - 1]
    h, w = x.shape[2:]

    def fogged(part: Tensor, keys: Tensor) -> Tensor:
        drift = plasma(keys, counter, size=_power(h, w), decay=decay)[:, None, :h, :w]
        most = part.amax(dim=(1, 2, 3), keepdim=True)
        return part.add(drift, alpha=thickness).mul_(most / (most + thickness)).clamp_(0, 1)

    return in_chunks(fogged, x, key, multiple=4)


def frost(
    x: Float[Tensor, "n c h w"], *, severity: int, scale: Scale, key: Int[Tensor, "n"], counter: int = 0
) -> Float[Tensor, "n c h w"]:
    """Add ice to a dimmed image.

    **Deviation.** The published frost crops one of five photographs at random. Here the ice is generated: veins where
    a fractal crosses its middle level, scaled to the mean colour and the contrast of one of those photographs, so that
    brightness agrees, but not what the pattern looks like. Accuracies under frost can therefore not be compared with
    those on CIFAR-10-C or ImageNet-C.

    Args and errors as :func:`brightness`, with :data:`FROSTS`; the key decides the ice. On a gray image the ice is
    gray, with the luminance weights 0.299, 0.587, 0.114. In mean distance from the image the severities are not in
    order, since the stronger ones also dim the image.

    Returns:
        Pixels in [0, 1], like ``x``.
    """
    check("frost", severity, scale)
    kept, weight = FROSTS[scale][severity - 1]

    def frozen(part: Tensor, keys: Tensor) -> Tensor:
        return _ice(part, keys, counter).mul_(weight).add_(part, alpha=kept).clamp_(0, 1)

    return in_chunks(frozen, x, key, multiple=4)


def snow(
    x: Float[Tensor, "n c h w"], *, severity: int, scale: Scale, key: Int[Tensor, "n"], counter: int = 0
) -> Float[Tensor, "n c h w"]:
    """Bleach the image and add falling flakes, twice: as they are and turned by 180 degrees.

    Flakes are the large values of enlarged normal noise, smeared by half a Gaussian along a random direction from
    [-135, -45) degrees, as ImageMagick's motion blur does (borders repeat). The generators cut the flakes to 256 levels
    before and after smearing; here they stay as they are. A gray image is its own luminance. The published severities
    2 and 3 of ImageNet-C change an image equally, on average.

    Args and errors as :func:`brightness`, with :data:`SNOWS`; the key decides flakes and direction.

    Returns:
        Pixels in [0, 1], like ``x``.
    """
    check("snow", severity, scale)
    mean, deviation, zoom, least, radius, sigma, kept = SNOWS[scale][severity - 1]
    h, w = x.shape[2:]

    def snowed(part: Tensor, keys: Tensor) -> Tensor:
        flakes = _flakes(keys, counter, (h, w), zoom=zoom, mean=mean, deviation=deviation)
        flakes = F.threshold(flakes, least, 0.0).clamp_(max=1)
        angle = (seeding.uniform(seeding.fold(keys, 1), counter, (1,))[:, 0] - 1.5) * (math.pi / 2)
        fallen = _smeared(flakes, angle, radius=radius, sigma=sigma)
        bleached = _luminance(part).mul(1.5).add_(0.5)
        out = torch.maximum(part, bleached).mul_(1 - kept).add_(part, alpha=kept)
        return out.add_((fallen + fallen.flip(1, 2))[:, None]).clamp_(0, 1)

    return in_chunks(snowed, x, key, multiple=4)


def _value(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Take the largest channel."""
    return torch.maximum(torch.maximum(x[:, 0:1], x[:, 1:2]), x[:, 2:3])


def _luminance(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    """Weigh red, green and blue; a gray image is returned as it is."""
    if x.shape[1] == 1:
        return x
    red, green, blue = LUMINANCE
    return (x[:, 0:1] * red).add_(x[:, 1:2], alpha=green).add_(x[:, 2:3], alpha=blue)


def _power(h: int, w: int) -> int:
    """Find the next power of two, at least 2."""
    return 1 << max(1, (max(h, w) - 1).bit_length())


def _ice(x: Float[Tensor, "n c h w"], key: Int[Tensor, "n"], counter: int) -> Float[Tensor, "n c h w"]:
    """Generate ice of the size of ``x``; for 1 channel its luminance."""
    h, w = x.shape[2:]
    choice, shift = seeding.uniform(seeding.fold(key, 1), counter, (2,)).unbind(1)
    colours = torch.tensor(ICES, device=x.device)[(choice * len(ICES)).long()]
    veins = plasma(key, counter, size=_power(h, w), decay=VEINS)[:, :h, :w].sub(0.5).abs_().neg_()
    deviation, mean = torch.std_mean(veins, dim=(1, 2), keepdim=True)
    gray = veins.sub_(mean).mul_(colours[:, 3, None, None] / deviation.clamp(min=1e-6))
    colour = colours[:, :3] + WANDER * math.sqrt(12) * (shift - 0.5)[:, None]
    if x.shape[1] == 1:
        colour = colour @ colour.new_tensor(LUMINANCE)[:, None]
    return (gray[:, None] + colour[:, :, None, None]).clamp_(0, 1)


def _flakes(
    key: Int[Tensor, "n"], counter: int, size: tuple[int, int], *, zoom: float, mean: float, deviation: float
) -> Float[Tensor, "n h w"]:
    """Draw the noise that remains after cutting the middle out and enlarging it bilinearly to the image's size."""
    inner = [math.ceil(side / zoom) for side in size]
    noise = seeding.normal(key, counter, inner).mul_(deviation).add_(mean)
    outer = [round(side * zoom) for side in inner]
    large = F.interpolate(noise[:, None], size=outer, mode="bilinear", align_corners=True)[:, 0]
    top, left = ((a - b) // 2 for a, b in zip(outer, size, strict=True))
    return large[:, top : top + size[0], left : left + size[1]]


def _smeared(
    planes: Float[Tensor, "n h w"], angle: Float[Tensor, "n"], *, radius: int, sigma: float
) -> Float[Tensor, "n h w"]:
    """Average each pixel with those on a line upwards from it, nearest pixels, with weights of half a Gaussian.

    A shift of a plane is another start in the padded memory, so that one tap is one copy of a stretch per plane.
    """
    n, h, w = planes.shape
    i = torch.arange(2 * radius + 1, device=planes.device, dtype=torch.float32)
    weights = torch.exp(-(i**2) / (2 * sigma**2))
    up, aside = 2 * radius, math.ceil(2 * radius * math.sin(math.pi / 4))
    padded = F.pad(planes[:, None], (aside, aside, up, 1), mode="replicate")
    width, length = padded.shape[3], h * padded.shape[3]
    shifts = [torch.ceil(i * part[:, None] - 0.5).long() for part in (torch.sin(angle), torch.cos(angle))]
    images = torch.arange(n, device=planes.device)[:, None] * padded[0].numel()
    starts = (images + (up + shifts[0]) * width + aside + shifts[1]).T.contiguous()
    stretches = padded.view(-1).as_strided((padded.numel() - length + 1, length), (1, 1))
    total = torch.zeros(n, length, device=planes.device)
    for start, weight in zip(starts, (weights / weights.sum()).tolist(), strict=True):
        total.add_(stretches.index_select(0, start), alpha=weight)
    return total.view(n, h, width)[:, :, :w]
