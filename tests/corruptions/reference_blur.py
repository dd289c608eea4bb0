"""The blur corruptions image by image in NumPy and SciPy, as slow references; constants from the published generators.

Each takes an image (h, w, c) with values in [0, 1], a severity from 1 to 5, a scale ("cifar" or "imagenet") and a
generator, and returns such an image. Nothing is cut to whole gray levels, neither at the end nor on the way (the
generators do so inside glass and motion blur). They are as fast as NumPy goes: random numbers of an image at once,
large disks by Fourier transform, as OpenCV does them; but glass blur visits the pixels in a loop, as published.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

Image = NDArray[np.float64]

CONSTANTS = {
    "gaussian_blur": {"cifar": [0.4, 0.6, 0.7, 0.8, 1], "imagenet": [1, 2, 3, 4, 6]},
    "defocus_blur": {
        "cifar": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
        "imagenet": [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    },
    "glass_blur": {
        "cifar": [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
        "imagenet": [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    },
    "motion_blur": {
        "cifar": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        "imagenet": [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    },
    "zoom_blur": {
        "cifar": [np.arange(1, stop, 0.01) for stop in (1.06, 1.11, 1.16, 1.21, 1.26)],
        "imagenet": [
            np.arange(1, stop, step)
            for stop, step in ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
        ],
    },
}


def gaussian_blur(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    return np.clip(gauss(image, CONSTANTS["gaussian_blur"][scale][severity - 1]), 0, 1)


def defocus_blur(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    kernel = disk(*CONSTANTS["defocus_blur"][scale][severity - 1])
    used = (kernel >= 1e-12).any(axis=0)
    return np.clip(filtered(image, kernel[used][:, used]), 0, 1)


def glass_blur(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    sigma, reach, rounds = CONSTANTS["glass_blur"][scale][severity - 1]
    moves = rng.integers(-reach, reach, size=(rounds, *image.shape[:2], 2))
    return np.clip(gauss(displaced(gauss(image, sigma), moves, reach), sigma), 0, 1)


def motion_blur(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    return smeared(image, *CONSTANTS["motion_blur"][scale][severity - 1], rng.uniform(-45, 45))


def zoom_blur(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    factors = CONSTANTS["zoom_blur"][scale][severity - 1]
    total = image.copy()
    for factor in factors:
        total += enlarged(image, factor)
    return np.clip(total / (len(factors) + 1), 0, 1)


def gauss(x: Image, sigma: float) -> Image:
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=4.0)


def filtered(x: Image, kernel: Image) -> Image:
    """Correlate each channel with a symmetric kernel; beyond the border the image is mirrored at its last pixels."""
    reach = len(kernel) // 2
    if reach <= 2:
        return np.stack([ndimage.correlate(channel, kernel, mode="mirror") for channel in np.moveaxis(x, 2, 0)], 2)
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    return signal.fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1))


def disk(radius: float, sigma: float) -> Image:
    """Give the disk of the generators on its full grid."""
    half, taps = (8, 1) if radius <= 8 else (int(radius), 2)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    inside = (x**2 + y**2 <= radius**2).astype(float)
    bell = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * sigma**2))
    for axis in (0, 1):
        inside = ndimage.correlate1d(inside, bell / bell.sum(), axis=axis, mode="mirror")
    return inside / (x**2 + y**2 <= radius**2).sum()


def displaced(x: Image, moves: NDArray[np.int64], reach: int) -> Image:
    """Swap as the generators do, pixel after pixel; on the views that an array of pixels gives, a swap is a copy."""
    out, (height, width) = x.copy(), x.shape[:2]
    for each in moves.tolist():
        for i in range(height - reach, reach, -1):
            for j in range(width - reach, reach, -1):
                down, right = each[i][j]
                out[i, j], out[i + down, j + right] = out[i + down, j + right], out[i, j]
    return out


def smeared(image: Image, radius: int, sigma: float, degrees: float) -> Image:
    """Sum shifted copies as ImageMagick's motion blur does."""
    (height, width), reach = image.shape[:2], 2 * radius
    weights = np.exp(-(np.arange(reach + 1) ** 2) / (2 * sigma**2))
    padded = np.pad(image, ((reach, reach), (0, reach), (0, 0)), mode="edge")
    out = np.zeros(image.shape)
    for i, weight in enumerate(weights / weights.sum()):
        right = math.ceil(i * math.cos(math.radians(degrees)) - 0.5)
        down = math.ceil(i * math.sin(math.radians(degrees)) - 0.5) + reach
        out += weight * padded[down : down + height, right : right + width]
    return np.clip(out, 0, 1)


def enlarged(x: Image, factor: float) -> Image:
    """Cut out, enlarge and cut to size, about the middle."""
    inner = [int(np.ceil(size / factor)) for size in x.shape[:2]]
    top, left = ((size - part) // 2 for size, part in zip(x.shape[:2], inner, strict=True))
    large = ndimage.zoom(x[top : top + inner[0], left : left + inner[1]], (factor, factor, 1), order=1)
    down, right = ((large.shape[axis] - x.shape[axis]) // 2 for axis in (0, 1))
    return large[down : down + x.shape[0], right : right + x.shape[1]]


REFERENCES = {each.__name__: each for each in (defocus_blur, glass_blur, motion_blur, zoom_blur, gaussian_blur)}
