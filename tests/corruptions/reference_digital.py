"""The digital corruptions image by image in NumPy, SciPy and Pillow, as slow references; constants as published.

Each takes an image (h, w, c) with values in [0, 1], a severity from 1 to 5, a scale ("cifar" or "imagenet") and a
generator, and returns such an image. Nothing is cut to whole gray levels at the end.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy import ndimage

Image = NDArray[np.float64]

CONSTANTS = {
    "contrast": {"cifar": [0.75, 0.5, 0.4, 0.3, 0.15], "imagenet": [0.4, 0.3, 0.2, 0.1, 0.05]},
    "pixelate": {"cifar": [0.95, 0.9, 0.85, 0.75, 0.65], "imagenet": [0.6, 0.5, 0.4, 0.3, 0.25]},
    "jpeg_compression": {"cifar": [80, 65, 58, 50, 40], "imagenet": [25, 18, 15, 10, 7]},
    "saturate": {
        "cifar": [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
        "imagenet": [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)],
    },
    "elastic_transform": {  # in pixels at 32 and at 224 pixels
        "cifar": [
            (32 * 0, 32 * 0, 32 * 0.08),
            (32 * 0.05, 32 * 0.2, 32 * 0.07),
            (32 * 0.08, 32 * 0.06, 32 * 0.06),
            (32 * 0.1, 32 * 0.04, 32 * 0.05),
            (32 * 0.1, 32 * 0.03, 32 * 0.03),
        ],
        "imagenet": [
            (244 * 2, 244 * 0.7, 244 * 0.1),
            (244 * 2, 244 * 0.08, 244 * 0.2),
            (244 * 0.05, 244 * 0.01, 244 * 0.02),
            (244 * 0.07, 244 * 0.01, 244 * 0.02),
            (244 * 0.12, 244 * 0.01, 244 * 0.02),
        ],
    },
}
SIDES = {"cifar": 32, "imagenet": 224}


def contrast(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    means = image.mean(axis=(0, 1), keepdims=True)
    return np.clip((image - means) * CONSTANTS["contrast"][scale][severity - 1] + means, 0, 1)


def saturate(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    factor, added = CONSTANTS["saturate"][scale][severity - 1]
    if image.shape[2] == 1:
        return image.copy()
    hsv = to_hsv(image)
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + added, 0, 1)
    return np.clip(to_rgb(hsv), 0, 1)


def pixelate(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    kept, (height, width) = CONSTANTS["pixelate"][scale][severity - 1], image.shape[:2]
    small = to_pillow(image).resize((max(1, int(width * kept)), max(1, int(height * kept))), Pillow.Resampling.BOX)
    return from_pillow(small.resize((width, height), Pillow.Resampling.BOX), image)


def jpeg_compression(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    file = io.BytesIO()
    to_pillow(image).save(file, "JPEG", quality=CONSTANTS["jpeg_compression"][scale][severity - 1])
    return from_pillow(Pillow.open(file), image)


def elastic_transform(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    unit = min(height, width) / SIDES[scale]
    factor, sigma, reach = (unit * each for each in CONSTANTS["elastic_transform"][scale][severity - 1])
    middle, half = np.array([width // 2, height // 2]), min(height, width) // 3
    before = middle + half * np.array([[1, 1], [1, -1], [-1, -1]])
    after = before + rng.uniform(-reach, reach, size=(3, 2))
    back = np.linalg.solve(np.c_[after, np.ones(3)], before)  # (x, y, 1) @ back: where a pixel of the result is from
    y, x = np.mgrid[:height, :width].astype(float)
    there = np.stack([x, y, np.ones_like(x)], axis=2) @ back
    moved = _sampled(image, there[..., 1], there[..., 0], "mirror")
    dx, dy = (
        factor * ndimage.gaussian_filter(rng.uniform(-1, 1, (height, width)), sigma, mode="reflect", truncate=3)
        for _ in range(2)
    )
    return np.clip(_sampled(moved, y + dy, x + dx, "reflect"), 0, 1)


def _sampled(image: Image, y: Image, x: Image, border: str) -> Image:
    channels = np.moveaxis(image, 2, 0)
    return np.stack([ndimage.map_coordinates(each, [y, x], order=1, mode=border) for each in channels], axis=2)


def to_pillow(image: Image) -> Pillow.Image:
    levels = np.round(image * 255).astype(np.uint8)
    return Pillow.fromarray(levels if image.shape[2] == 3 else levels[..., 0])


def from_pillow(picture: Pillow.Image, like: Image) -> Image:
    return (np.asarray(picture) / 255).reshape(like.shape)


def to_hsv(image: Image) -> Image:
    """Convert by the definition: hue in [0, 6), 0 for gray."""
    value, spread = image.max(axis=2), np.ptp(image, axis=2)
    safe = np.where(spread == 0, 1, spread)
    red, green, blue = np.moveaxis(image, 2, 0)
    hue = np.select([value == red, value == green], [(green - blue) / safe % 6, 2 + (blue - red) / safe])
    hue = np.where((value == blue) & (value != red) & (value != green), 4 + (red - green) / safe, hue)
    return np.stack([np.where(spread == 0, 0, hue), spread / np.where(value == 0, 1, value), value], axis=2)


def to_rgb(hsv: Image) -> Image:
    """Convert back by the closed form f(n) = v - v s max(0, min(k, 4 - k, 1)), k = (n + hue) mod 6."""
    hue, saturation, value = np.moveaxis(hsv, 2, 0)
    channels = []
    for n in (5, 3, 1):
        k = (n + hue) % 6
        channels.append(value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1))
    return np.stack(channels, axis=2)


REFERENCES = {each.__name__: each for each in (contrast, elastic_transform, pixelate, jpeg_compression, saturate)}
