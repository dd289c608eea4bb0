"""The 15 common corruptions and the 4 further ones by their published names, and one call for all.

Hendrycks, Dietterich. "Benchmarking neural network robustness to common corruptions and perturbations". ICLR 2019,
https://arxiv.org/abs/1903.12261. What the files of a family say about its constants and its deviations holds here too.

A name here is the published corruption with its five severities; ``hardy.corruptions.gaussian_noise`` is another
function, in which sigma is free.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hardy.corruptions import blur, digital, noise, weather
from hardy.corruptions._chunks import ELSEWHERE
from hardy.corruptions.scale import Scale, check
from hardy.errors import DataError, ParameterError, ShapeError, did_you_mean

__all__ = ["ALEXNET_ERRORS", "CORRUPTIONS", "FAMILIES", "Corruption", "Family", "corrupt", "scale_of"]

Family = Literal["noise", "blur", "weather", "digital"]
FAMILIES: tuple[Family, ...] = get_args(Family)
CIFAR_SIDE = 64  # longest short side that the constants of CIFAR-10-C are taken for, in pixels
CHUNK = 2**20  # values corrupted at a time on a CPU, which bounds the memory, but at least
ROWS = 16  # images, and in multiples of them: the functions work on groups
LEVELLED = ("pixelate", "jpeg_compression")  # those give multiples of 1/255 by themselves
SLACK = 2.0**-10  # of one of 256 levels: rounding errors do not push a level down


@runtime_checkable
class Transform(Protocol):
    """One corruption: float images (n, c, h, w) in [0, 1] to such images, one key per image."""

    def __call__(self, x: Tensor, *, severity: int, scale: Scale, key: Tensor, counter: int = 0) -> Tensor:
        """Corrupt."""


@dataclass(frozen=True)
class Corruption:
    """One entry of the table.

    Attributes:
        name: As published, such as "motion_blur".
        family: "noise", "blur", "weather" or "digital".
        common: One of the 15 that accuracies and the mCE are averaged over; else one of the 4 further ones, which were
            published for validation.
        apply: The function; it gives pixels that are not rounded to 256 levels.
    """

    name: str
    family: Family
    common: bool
    apply: Transform


def _table() -> Mapping[str, Corruption]:
    common: dict[Family, dict[str, Transform]] = {
        "noise": {"gaussian_noise": noise.gaussian, "shot_noise": noise.shot, "impulse_noise": noise.impulse},
        "blur": {
            "defocus_blur": blur.defocus,
            "glass_blur": blur.glass,
            "motion_blur": blur.motion,
            "zoom_blur": blur.zoom,
        },
        "weather": {
            "snow": weather.snow,
            "frost": weather.frost,
            "fog": weather.fog,
            "brightness": weather.brightness,
        },
        "digital": {
            "contrast": digital.contrast,
            "elastic_transform": digital.elastic_transform,
            "pixelate": digital.pixelate,
            "jpeg_compression": digital.jpeg_compression,
        },
    }
    further: dict[Family, dict[str, Transform]] = {
        "noise": {"speckle_noise": noise.speckle},
        "blur": {"gaussian_blur": blur.gaussian},
        "weather": {"spatter": weather.spatter},
        "digital": {"saturate": digital.saturate},
    }
    made = [
        Corruption(name, family, among is common, apply)
        for among in (common, further)
        for family, members in among.items()
        for name, apply in members.items()
    ]
    return MappingProxyType({each.name: each for each in made})


CORRUPTIONS: Mapping[str, Corruption] = _table()  # the 15 common ones first, in the published order

# Errors of AlexNet (torchvision) on ImageNet-C, means over the five severities: the table in imagenet.py of
# https://github.com/google-research/augmix (commit 202cf4c), there taken from https://github.com/hendrycks/robustness.
# "clean" is 1 - acc@1 of torchvision's AlexNet_Weights.IMAGENET1K_V1.
ALEXNET_ERRORS: Mapping[str, float] = MappingProxyType({
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.717840, "jpeg_compression": 0.606500, "clean": 0.43478,
})  # fmt: skip


def corrupt(
    x: Float[Tensor, "n c h w"],
    name: str,
    *,
    severity: int,
    key: Int[Tensor, "n"],
    scale: Scale | None = None,
) -> Float[Tensor, "n c h w"]:
    """Corrupt images as those of CIFAR-10-C or ImageNet-C are.

    The result has 256 levels, cut off downwards as in the published files (a cast to uint8, not rounding), so that a
    pixel loses half a level on average. The images of ImageNet-C were then stored as JPEG of quality 85; these are not.

    Args:
        x: Pixels in [0, 1], of 1 or 3 channels (red, green, blue), any size.
        name: A key of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        key: One int64 per row, the source of everything random; another purpose needs other keys.
        scale: Which constants: "cifar" or "imagenet"; None: :func:`scale_of` the size.

    Returns:
        Pixels in [0, 1], multiples of 1/255, with the shape, type and device of ``x``.

    Raises:
        ParameterError: no such corruption, severity or scale.
        ShapeError: another number of channels, or not one key per image.
        DataError: pixels outside [0, 1] or NaN.

    Example:
        >>> from hardy import seeding
        >>> x, key = torch.full((2, 3, 32, 32), 0.5), seeding.keys(seeding.root(0, "fog"), torch.arange(2))
        >>> corrupt(x, "contrast", severity=3, key=key).mul(255).unique().tolist()
        [127.0]
    """
    if name not in CORRUPTIONS:
        raise ParameterError(f"corrupt: unknown corruption {name!r}; {did_you_mean(name, CORRUPTIONS)}")
    _check_images(x, key, name)
    scale = scale_of(x.shape[2], x.shape[3]) if scale is None else scale
    check(name, severity, scale)
    apply, out = CORRUPTIONS[name].apply, torch.empty_like(x)
    values = CHUNK if x.device.type == "cpu" else ELSEWHERE
    size = max(1, values // max(1, ROWS * x[:1].numel())) * ROWS
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        made = apply(x[part], severity=severity, scale=scale, key=key[part])
        if name in LEVELLED:
            out[part] = made
        else:
            torch.mul(made, 255, out=out[part]).add_(SLACK).floor_().div_(255)
    return out


def scale_of(height: int, width: int) -> Scale:
    """Choose the constants for images of this size: "cifar" if the shorter side is at most 64 pixels, else "imagenet".

    There are no constants of their own for other sizes, though Tiny ImageNet-C (64 pixels) has some: this is a choice.
    """
    return "cifar" if min(height, width) <= CIFAR_SIDE else "imagenet"


def _check_images(x: Tensor, key: Tensor, name: str) -> None:
    if x.ndim != 4 or x.shape[1] not in {1, 3}:
        raise ShapeError(f"{name}: images must be (n, 1 or 3, h, w); got {tuple(x.shape)}. Convert them.")
    if key.shape != x.shape[:1]:
        raise ShapeError(f"{name}: there must be one key for each of {len(x)} images; got {tuple(key.shape)}.")
    if not x.is_floating_point():
        raise DataError(f"{name}: images must be float pixels in [0, 1]; got {x.dtype}. Convert: x.float() / 255.")
    least, most = map(float, torch.aminmax(x)) if x.numel() else (0.0, 1.0)
    if not (least >= 0 and most <= 1):  # NaN neither
        raise DataError(f"{name}: pixels must be in [0, 1]; got {least:g} to {most:g}. Scale them.")
