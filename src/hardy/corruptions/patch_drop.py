"""Patch drop: cut an image into a grid and replace some of the pieces, chosen at random or by their relevance.

Naseer, Ranasinghe, Khan, Hayat, Khan, Yang. "Intriguing properties of vision transformers". NeurIPS 2021,
https://arxiv.org/abs/2105.10497; and Malik, Shamshad, Naseer, Nandakumar, Khan, Khan. "Towards evaluating the
robustness of visual state space models". CVPR workshops 2025, https://arxiv.org/abs/2406.09407.

Deviations from the code released with the latter: there all images of a batch lose the same patches, which come from
NumPy's generator without a seed, and dropped patches are black. Here every image has its own patches, drawn from its
key; whatever is dropped at one share is dropped at every larger one; and the fill is free (``fills.py``).
"""

from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy import seeding
from hardy.errors import ParameterError, ShapeError

__all__ = [
    "drop_patches",
    "exact",
    "first_patches",
    "foreground",
    "largest_grid",
    "patch_drop",
    "patch_mass",
    "salient_order",
]

LEAST = 2  # pixels along the side of a patch
UNITS = 2**30  # that the mass of an image is counted in, so that sums are exact
PARTS = 10**6  # largest denominator of a share


def patch_drop(
    x: Float[Tensor, "n c h w"],
    *,
    share: float,
    grid: int,
    fill: Float[Tensor, "n c h w"],
    key: Int[Tensor, "n"],
    counter: int = 0,
) -> Float[Tensor, "n c h w"]:
    """Replace ``floor(share * grid^2)`` random patches of each image; with the same key, larger shares drop more.

    Args:
        x: Images.
        share: Of the patches, in [0, 1]. 0 changes nothing, 1 gives ``fill``.
        grid: Patches per side; must divide height and width.
        fill: What is seen instead; of the shape of ``x``.
        key: One int64 per row, the source of its patches.
        counter: Which draw of these keys.

    Returns:
        Images: the values of ``fill`` in the dropped patches, those of ``x`` elsewhere, unchanged.

    Raises:
        ParameterError: share outside [0, 1], or a grid below 1.
        ShapeError: the grid does not divide height or width.
    """
    order = seeding.permutation(key, counter, grid * grid)
    return drop_patches(x, dropped=first_patches(order, int(exact(share) * grid * grid)), grid=grid, fill=fill)


def drop_patches(
    x: Float[Tensor, "n c h w"], *, dropped: Bool[Tensor, "n p"], grid: int, fill: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n c h w"]:
    """Replace the patches that are marked, numbered row by row; other arguments as for :func:`patch_drop`."""
    high, wide = _patch_size(x.shape[2], x.shape[3], grid)
    mask = dropped.reshape(-1, 1, grid, grid).repeat_interleave(high, 2).repeat_interleave(wide, 3)
    return torch.where(mask, fill, x)


def first_patches(order: Int[Tensor, "n p"], count: int) -> Bool[Tensor, "n p"]:
    """Mark the first ``count`` patches of each image's order, which lists patch numbers."""
    return order.argsort(dim=1) < count


def exact(share: float) -> Fraction:
    """Give a share as the fraction that it stands for, so that 0.29 of 100 is 29 and not 28.99.

    Raises:
        ParameterError: share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ParameterError(f"patch_drop: a share must be in [0, 1]; got {share}.")
    return Fraction(share).limit_denominator(PARTS)


def largest_grid(h: int, w: int, *, at_most: int) -> int | None:
    """Find the most patches per side that divide both sides; None if there are no two of at least 2 x 2 pixels.

    Example:
        >>> [largest_grid(side, side, at_most=8) for side in (32, 28, 8, 31)]
        [8, 7, 4, None]
    """
    most = min(at_most, h // LEAST, w // LEAST)
    return next((grid for grid in range(most, 1, -1) if h % grid == 0 and w % grid == 0), None)


def patch_mass(attribution: Float[Tensor, "n h w"], *, grid: int) -> Float[Tensor, "n p"]:
    """Sum the attribution over each patch; what is negative speaks against the class and counts as 0.

    Raises:
        ParameterError: a grid below 1.
        ShapeError: the grid does not divide height or width.
    """
    n, h, w = attribution.shape
    high, wide = _patch_size(h, w, grid)
    return attribution.clamp(min=0).reshape(n, grid, high, grid, wide).sum(dim=(2, 4)).flatten(1)


def salient_order(mass: Float[Tensor, "n p"], *, key: Int[Tensor, "n"], counter: int = 0) -> Int[Tensor, "n p"]:
    """List the patches of each image by falling mass; equal ones in the random order of :func:`patch_drop`.

    So an image without any attribution loses the patches that the random drop with the same key takes.
    """
    shuffled = seeding.permutation(key, counter, mass.shape[1])
    by_mass = torch.sort(mass.gather(1, shuffled), dim=1, descending=True, stable=True).indices
    return shuffled.gather(1, by_mass)


def foreground(mass: Float[Tensor, "n p"], order: Int[Tensor, "n p"], *, share: float) -> Bool[Tensor, "n p"]:
    """Mark the smallest set of patches that holds this share of the mass of its image.

    Sums are exact: masses count as whole 2^-30ths of the total, shares as fractions. An image without any mass
    is taken as one whose patches are all alike.

    Args:
        mass: Not negative; :func:`patch_mass`.
        order: By falling mass; :func:`salient_order`.
        share: Of the mass, in [0, 1].

    Raises:
        ParameterError: share outside [0, 1].
    """
    total = mass.sum(dim=1, keepdim=True)
    relative = torch.where(total > 0, mass / total, 1 / mass.shape[1])
    units = (relative.float() * UNITS).round().long().gather(1, order)
    before = units.cumsum(dim=1) - units  # what the patches ahead of this one hold
    part = exact(share)
    wanted = before * part.denominator < part.numerator * units.sum(dim=1, keepdim=True)
    return wanted.gather(1, order.argsort(dim=1))


def _patch_size(h: int, w: int, grid: int) -> tuple[int, int]:
    if grid < 1:
        raise ParameterError(f"patch_drop: grid must be at least 1; got {grid}.")
    if h % grid or w % grid:
        raise ShapeError(f"patch_drop: grid must divide height and width; got {grid} for {h}x{w}. Change it.")
    return h // grid, w // grid
