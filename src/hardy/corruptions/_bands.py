"""Linear maps along the columns and rows of images, as matrices whose entries lie near the diagonal."""

from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["map_columns", "map_rows", "smoothing"]

BLOCK = 32  # outputs of one matrix product: more of them multiply more zeros, fewer cost more calls


def map_columns(x: Float[Tensor, "*n h w"], matrix: Float[Tensor, "k h"]) -> Float[Tensor, "*n k w"]:
    """Map every column of each image, ``matrix @ x``, leaving out inputs that weigh nothing in a block of outputs."""
    matrix, planes = matrix.to(x), x.flatten(0, -3)
    out = x.new_empty(len(planes), len(matrix), x.shape[-1])
    for rows, used in _blocks(matrix):
        block = matrix[rows, used]
        torch.bmm(block.expand(len(planes), *block.shape), planes[:, used], out=out[:, rows])
    return out.view(*x.shape[:-2], *out.shape[1:])


def map_rows(x: Float[Tensor, "*n h w"], matrix: Float[Tensor, "l w"]) -> Float[Tensor, "*n h l"]:
    """Map every row of each image, ``x @ matrix.T``, likewise."""
    matrix = matrix.to(x)
    flat, out = x.flatten(0, -2), x.new_empty(*x.shape[:-1], len(matrix))
    for rows, used in _blocks(matrix):
        torch.mm(flat[:, used], matrix[rows, used].T, out=out.view(-1, len(matrix))[:, rows])
    return out


@lru_cache(maxsize=64)
def smoothing(
    size: int, sigma: float, *, truncate: float, border: Literal["nearest", "reflect"]
) -> Float[Tensor, "size size"]:
    """Build the matrix of a Gaussian along one axis, with the borders of SciPy's ``gaussian_filter1d``.

    Args:
        size: Of the axis, in pixels.
        sigma: Standard deviation in pixels; 0 changes nothing.
        truncate: Half the length of the kernel in standard deviations.
        border: "nearest" repeats the last pixel, "reflect" mirrors at its outer edge.

    Returns:
        float32 on the CPU; each row sums to 1.
    """
    reach = int(truncate * sigma + 0.5)
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-(at**2) / (2 * sigma**2)) if reach else torch.ones(1, dtype=torch.float64)
    source = torch.arange(size)[:, None] + at.long()
    if border == "nearest":
        source = source.clamp(0, size - 1)
    else:
        source = source % (2 * size)
        source = torch.minimum(source, 2 * size - 1 - source)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, source, (weights / weights.sum()).expand(size, -1)).float()


def _blocks(matrix: Float[Tensor, "k h"]) -> list[tuple[slice, slice]]:
    """Pair blocks of the matrix' rows with the columns from the first to the last that is not zero there."""
    pairs = []
    for start in range(0, len(matrix), BLOCK):
        rows = slice(start, min(start + BLOCK, len(matrix)))
        used = matrix[rows].any(dim=0).nonzero()
        pairs.append((rows, slice(int(used[0]), int(used[-1]) + 1)))
    return pairs
