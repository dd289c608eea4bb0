"""The noise family of the common corruptions: Gaussian, shot, impulse and speckle noise.

Hendrycks, Dietterich. "Benchmarking neural network robustness to common corruptions and perturbations". ICLR 2019,
https://arxiv.org/abs/1903.12261. The constants are those of the authors' generators, ``make_cifar_c.py`` (CIFAR-10-C,
32 px) and ``make_imagenet_c.py`` (ImageNet-C, 224 px; the same as in the package ``imagecorruptions`` 1.1.2), in
https://github.com/hendrycks/robustness. Every value (pixel and channel) has its own noise, as there; an image of one
channel is treated alike. The generators' last step, cutting to whole gray levels, is not done here.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hardy import seeding
from hardy.corruptions._chunks import in_chunks
from hardy.corruptions.scale import Scale, check

__all__ = ["AMOUNTS", "PHOTONS", "SIGMAS", "SPECKLES", "gaussian", "impulse", "shot", "speckle"]

SIGMAS: Mapping[Scale, tuple[float, ...]] = {  # standard deviation; severity 1 to 5, as in all tables
    "cifar": (0.04, 0.06, 0.08, 0.09, 0.10),
    "imagenet": (0.08, 0.12, 0.18, 0.26, 0.38),
}
PHOTONS: Mapping[Scale, tuple[int, ...]] = {  # mean count of a pixel of value 1
    "cifar": (500, 250, 100, 75, 50),
    "imagenet": (60, 25, 12, 5, 3),
}
AMOUNTS: Mapping[Scale, tuple[float, ...]] = {  # probability that a value is replaced
    "cifar": (0.01, 0.02, 0.03, 0.05, 0.07),
    "imagenet": (0.03, 0.06, 0.09, 0.17, 0.27),
}
SPECKLES: Mapping[Scale, tuple[float, ...]] = {  # standard deviation, relative to the value
    "cifar": (0.06, 0.10, 0.12, 0.16, 0.20),
    "imagenet": (0.15, 0.20, 0.35, 0.45, 0.60),
}

SUMMED = 10.0  # Poisson means below this are inverted by summing probabilities
TERMS = 32  # as many: P(X >= 32) = 5e-8 at a mean of 10, under the 2^-24 between two uniform numbers


def gaussian(
    x: Float[Tensor, "n c h w"], *, severity: int, scale: Scale, key: Int[Tensor, "n"], counter: int = 0
) -> Float[Tensor, "n c h w"]:
    """Add normal noise, the published ``gaussian_noise``.

    Args:
        x: Pixels in [0, 1].
        severity: 1 to 5; picks the standard deviation in :data:`SIGMAS`.
        scale: Whose constants.
        key: One int64 per row, the source of its noise.
        counter: Which draw of these keys.

    Returns:
        Pixels in [0, 1], like ``x``.

    Raises:
        ParameterError: another severity or scale.
    """
    check("gaussian_noise", severity, scale)
    sigma = SIGMAS[scale][severity - 1]

    def noisy(part: Tensor, keys: Tensor) -> Tensor:
        return torch.add(part, seeding.normal(keys, counter, part.shape[1:]), alpha=sigma).clamp_(0, 1)

    return in_chunks(noisy, x, key)


def speckle(
    x: Float[Tensor, "n c h w"], *, severity: int, scale: Scale, key: Int[Tensor, "n"], counter: int = 0
) -> Float[Tensor, "n c h w"]:
    """Add normal noise in proportion to the value, the published ``speckle_noise``.

    Args and errors as :func:`gaussian`, with :data:`SPECKLES`.

    Returns:
        Pixels in [0, 1], like ``x``.
    """
    check("speckle_noise", severity, scale)
    sigma = SPECKLES[scale][severity - 1]

    def noisy(part: Tensor, keys: Tensor) -> Tensor:
        return torch.addcmul(part, part, seeding.normal(keys, counter, part.shape[1:]), value=sigma).clamp_(0, 1)

    return in_chunks(noisy, x, key)


def impulse(
    x: Float[Tensor, "n c h w"], *, severity: int, scale: Scale, key: Int[Tensor, "n"], counter: int = 0
) -> Float[Tensor, "n c h w"]:
    """Replace some values by 0 or 1 with equal chances (salt and pepper), the published ``impulse_noise``.

    Every value is hit independently of the others: the hits are found by their distances along the image, which are
    then geometric.

    Args and errors as :func:`gaussian`, with :data:`AMOUNTS`.

    Returns:
        Pixels in [0, 1], like ``x``.
    """
    check("impulse_noise", severity, scale)
    amount, size = AMOUNTS[scale][severity - 1], math.prod(x.shape[1:])
    enough = math.ceil(amount * size + 8 * math.sqrt(amount * size)) + 8  # eight standard deviations above the mean
    lengths = torch.arange(1, math.ceil(-24 * math.log(2) / math.log1p(-amount)), dtype=torch.float64)
    within = (1 - (1 - amount) ** lengths).float().to(x.device)  # P(distance <= length), up to the steps of u

    def noisy(part: Tensor, keys: Tensor) -> Tensor:
        twice = 2 * seeding.uniform(keys, counter, (enough,))
        salt = twice >= 1  # one bit for the value, the others for the place
        gaps = torch.searchsorted(within, twice - salt.float(), right=True) + 1
        places = gaps.cumsum(dim=1).clamp_(max=size + 1) - 1
        values = F.pad(part.flatten(1), (0, 1))  # a place for all hits beyond the image
        values.scatter_(1, places, salt.to(values.dtype))
        return values[:, :-1].reshape(part.shape)

    return in_chunks(noisy, x, key)


def shot(
    x: Float[Tensor, "n c h w"], *, severity: int, scale: Scale, key: Int[Tensor, "n"], counter: int = 0
) -> Float[Tensor, "n c h w"]:
    """Count photons: a Poisson number of mean ``photons * x``, divided by ``photons``, the published ``shot_noise``.

    The count is the inverse Poisson distribution function of one uniform number: below a mean of 10 exact to the 2^-24
    steps of that number; above, asymptotic, within 2e-4 of the Poisson distribution in total variation.

    Args and errors as :func:`gaussian`, with :data:`PHOTONS`.

    Returns:
        Pixels in [0, 1], like ``x``.
    """
    check("shot_noise", severity, scale)
    photons = PHOTONS[scale][severity - 1]

    def noisy(part: Tensor, keys: Tensor) -> Tensor:
        u = seeding.uniform(keys, counter, part.shape[1:]).flatten()
        counts = _counts(photons * part.float().flatten(), u, photons)
        return counts.div_(photons).clamp_(0, 1).reshape(part.shape)

    return in_chunks(noisy, x, key)


def _counts(mean: Float[Tensor, "m"], u: Float[Tensor, "m"], most: int) -> Float[Tensor, "m"]:
    """Invert the Poisson distribution function, for a caller who clips the counts to 0 .. ``most``."""
    if most <= SUMMED + 2:  # summing to ``most`` is exact whatever the mean, and quick
        return _summed(mean, u, most)
    small = (mean < SUMMED).nonzero().squeeze(1)
    count = _asymptotic(mean.clamp(min=SUMMED), u)
    return count.index_copy_(0, small, _summed(mean[small], u[small], min(most, TERMS)))


def _summed(mean: Float[Tensor, "m"], u: Float[Tensor, "m"], terms: int) -> Float[Tensor, "m"]:
    """Count the k < ``terms`` with P(X <= k) <= u, which is the inverse as long as that is below ``terms``."""
    power = torch.exp(-mean)  # times mean^k; below 1e28 for all means and terms here
    below, count = power.clone(), torch.zeros_like(u, dtype=torch.uint8)
    for k in range(terms):
        count += (u >= below).view(torch.uint8)
        below.add_(power.mul_(mean), alpha=1 / math.factorial(k + 1))
    return count.float()


def _asymptotic(mean: Float[Tensor, "m"], u: Float[Tensor, "m"]) -> Float[Tensor, "m"]:
    """Expand the inverse in powers of 1 / sqrt(mean), with the normal quantile w of u, and round down.

    Giles. "Algorithm 955: approximation of the inverse Poisson cumulative distribution function". ACM TOMS 2016; the
    terms down to 1 / mean, sorted by powers of v = w / sqrt(mean), and checked here against exact probabilities.
    """
    w = torch.erfinv(2 * u - (1 - 2.0**-24)).mul_(math.sqrt(2))  # the middle of u's step: never 0 or 1
    v = w / mean.sqrt()
    leading = 1 + v * (1 + v * (1 / 6 + v * (-1 / 72 + v / 270)))
    return (mean * leading).add_(1 / 3 + v * (-1 / 36 + v * (7 / 810))).sub_(8 / 405 / mean).floor_()
