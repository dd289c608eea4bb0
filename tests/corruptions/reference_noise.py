"""The noise corruptions image by image in NumPy, as slow references; constants typed from the published generators.

Each takes an image (h, w, c) with values in [0, 1], a severity from 1 to 5, a scale ("cifar" or "imagenet") and a
generator, and returns such an image. Nothing is cut to whole gray levels.
"""

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float64]

CONSTANTS = {
    "gaussian_noise": {"cifar": [0.04, 0.06, 0.08, 0.09, 0.10], "imagenet": [0.08, 0.12, 0.18, 0.26, 0.38]},
    "shot_noise": {"cifar": [500, 250, 100, 75, 50], "imagenet": [60, 25, 12, 5, 3]},
    "impulse_noise": {"cifar": [0.01, 0.02, 0.03, 0.05, 0.07], "imagenet": [0.03, 0.06, 0.09, 0.17, 0.27]},
    "speckle_noise": {"cifar": [0.06, 0.1, 0.12, 0.16, 0.2], "imagenet": [0.15, 0.2, 0.35, 0.45, 0.6]},
}


def gaussian_noise(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    sigma = CONSTANTS["gaussian_noise"][scale][severity - 1]
    return np.clip(image + rng.normal(scale=sigma, size=image.shape), 0, 1)


def shot_noise(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    photons = CONSTANTS["shot_noise"][scale][severity - 1]
    return np.clip(rng.poisson(image * photons) / photons, 0, 1)


def impulse_noise(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    amount = CONSTANTS["impulse_noise"][scale][severity - 1]
    out, hit, salt = image.copy(), rng.random(image.shape) <= amount, rng.random(image.shape) <= 0.5
    out[hit & salt], out[hit & ~salt] = 1, 0
    return out


def speckle_noise(image: Image, severity: int, scale: str, rng: np.random.Generator) -> Image:
    sigma = CONSTANTS["speckle_noise"][scale][severity - 1]
    return np.clip(image + image * rng.normal(scale=sigma, size=image.shape), 0, 1)


REFERENCES = {each.__name__: each for each in (gaussian_noise, shot_noise, impulse_noise, speckle_noise)}
