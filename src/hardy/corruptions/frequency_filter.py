r"""Low and high pass: keep the coarse or the fine part of an image.

The parts are told apart by the frequency of the terms of the type-II cosine transform, which continues an image beyond
its border by its mirror image, so that the border itself makes no high frequencies. The term of index (i, j) has radial
frequency :math:`\sqrt{(i/h)^2 + (j/w)^2}`: 1 is the highest frequency along one side (half a cycle per pixel), and the
corners reach :math:`\sqrt 2`.

Filtered images as a question to a classifier: Geirhos, Temme, Rauber, Schuett, Bethge, Wichmann. "Generalisation in
humans and deep neural networks". NeurIPS 2018, https://arxiv.org/abs/1808.08750 (Gaussian filters; these are radial).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from hardy.errors import ParameterError

__all__ = ["high_pass", "low_pass"]


def low_pass(x: Float[Tensor, "n c h w"], *, cutoff: float, width: float = 0.0) -> Float[Tensor, "n c h w"]:
    """Keep the frequencies up to ``cutoff`` and clamp to the box.

    Args:
        x: Pixels in [0, 1].
        cutoff: Radial frequency, a share of the highest along one side, at least 0; 0 leaves the mean of each channel,
            the square root of 2 and above leave the image as it is.
        width: Of the band around ``cutoff`` in which the gain falls from 1 to 0 (half a cosine), at least 0. 0 is the
            ideal filter, which is exact and rings at edges; a wider band rings less.

    Returns:
        Pixels in [0, 1], like ``x``. Before the clamp a low and a high pass of the same ``cutoff`` and ``width`` sum to
        the image plus the mean of each of its channels, which both have.

    Raises:
        ParameterError: a negative cutoff or width.
    """
    return _filtered(x, _passed(x, cutoff, width, who="low_pass"))


def high_pass(x: Float[Tensor, "n c h w"], *, cutoff: float, width: float = 0.0) -> Float[Tensor, "n c h w"]:
    """Keep the frequencies above ``cutoff`` and the mean of each channel, and clamp to the box.

    Without its mean an image would be half outside the box. With it the mean colour stays, which says something of the
    class: at a high cutoff compare with the low pass at 0, which is the mean colour alone.

    Args:
        x: Pixels in [0, 1].
        cutoff: As in :func:`low_pass`; 0 leaves the image as it is.
        width: As in :func:`low_pass`.

    Returns:
        Pixels in [0, 1], like ``x``.

    Raises:
        ParameterError: a negative cutoff or width.
    """
    gain = 1 - _passed(x, cutoff, width, who="high_pass")
    gain[0, 0] = 1
    return _filtered(x, gain)


def _passed(x: Float[Tensor, "n c h w"], cutoff: float, width: float, *, who: str) -> Float[Tensor, "h w"]:
    """Give the gain of the low pass for every term; the mean, term (0, 0), always has 1."""
    for name, value in {"cutoff": cutoff, "width": width}.items():
        if not value >= 0:
            raise ParameterError(f"{who}: {name} must be at least 0; got {value}.")
    h, w = x.shape[2:]
    rows, columns = (torch.arange(side, device=x.device, dtype=x.dtype) / side for side in (h, w))
    radius = torch.hypot(rows[:, None], columns[None, :])
    if width == 0:
        gain = (radius <= cutoff + 1e-6).to(x.dtype)  # 5/10 is not quite 0.5 everywhere
    else:
        gain = 0.5 + 0.5 * torch.cos(math.pi * ((radius - cutoff) / width + 0.5).clamp(0, 1))
    gain[0, 0] = 1
    return gain


def _filtered(x: Float[Tensor, "n c h w"], gain: Float[Tensor, "h w"]) -> Float[Tensor, "n c h w"]:
    """Scale the terms of the cosine transform of every channel."""
    rows, columns = (_cosines(side, x) for side in x.shape[2:])
    terms = rows @ x @ columns.T
    return (rows.T @ (terms * gain) @ columns).clamp(0, 1)


def _cosines(side: int, like: Tensor) -> Float[Tensor, "k k"]:
    """Give the orthonormal type-II cosine transform of length ``side`` as a matrix, one term per row."""
    k = torch.arange(side, device=like.device, dtype=torch.int64)
    # the angle is pi (2 i + 1) k / (2 side); reducing the integer first keeps it exact in float32
    steps = ((2 * k[None, :] + 1) * k[:, None]) % (4 * side)
    matrix = torch.cos(steps.to(like.dtype) * (math.pi / (2 * side))) * math.sqrt(2 / side)
    matrix[0] = math.sqrt(1 / side)
    return matrix
