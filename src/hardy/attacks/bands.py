r"""Bands of spatial frequency: subspaces of images that partition the spectrum and have equal dimension.

The terms of the orthonormal type-II cosine transform of each channel are ordered by radial frequency
:math:`\sqrt{(i/h)^2 + (j/w)^2}`, 1 being the highest frequency along one side (half a cycle per pixel), and cut into
shells of as many terms each. What is measured in two bands then differs by frequency alone, not by dimension as well.

The idea of asking at which frequencies a net is weak, with two sets of terms of a 224 x 224 transform: Malik, Shamshad,
Naseer, Nandakumar, Khan, Khan. "Towards evaluating the robustness of visual state space models". 2024,
https://arxiv.org/abs/2406.09407. Shells of equal dimension are ours: of the two sets there, the higher has 36 times as
many terms as the lower, and a quarter of all terms are in neither.
"""

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hardy.errors import ParameterError

__all__ = ["Band", "band_numbers", "check_band", "cosines", "make_band"]


@dataclass(frozen=True)
class Band:
    """One band of images of one size.

    Attributes:
        rows: Cosine transform of a column of pixels.
        columns: Cosine transform of a row of pixels.
        mask: 1 for the terms that belong to the band, else 0.
        low: Lowest radial frequency of its terms; 1 is half a cycle per pixel.
        high: Highest one, at most the square root of 2.
    """

    rows: Float[Tensor, "h h"]
    columns: Float[Tensor, "w w"]
    mask: Float[Tensor, "h w"]
    low: float
    high: float

    @property
    def size(self) -> int:
        """Terms of each channel in the band, its dimension."""
        return int(self.mask.sum())

    def project(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Give the closest images (or changes of images) inside the band; any real values."""
        terms = self.rows @ x @ self.columns.T
        return self.rows.T @ (terms * self.mask) @ self.columns

    def share(self, delta: Float[Tensor, "n c h w"]) -> Float[Tensor, "n"]:
        """Measure the share of the energy (sum of squares) of each change that is inside the band; 1 for no change."""
        largest = delta.flatten(1).abs().amax(dim=1)[:, None, None, None]
        scaled = delta / torch.where(largest > 0, largest, 1)  # squares of tiny values would vanish
        inside, whole = (v.flatten(1).square().sum(dim=1) for v in (self.project(scaled), scaled))
        return torch.where(whole > 0, inside / torch.where(whole > 0, whole, 1), 1).clamp(max=1)

    def describe(self) -> str:
        """Say in words which waves are in the band: how many cycles fit into the longer side.

        Example:
            >>> make_band(0, 8, height=32, width=32).describe()
            '0 to 6 cycles per 32 pixels'
        """
        side = max(len(self.rows), len(self.columns))
        low, high = (f"{radius * side / 2:.1f}".removesuffix(".0") for radius in (self.low, self.high))
        return f"{low} to {high} cycles per {side} pixels"


def make_band(
    index: int,
    count: int,
    *,
    height: int,
    width: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Band:
    """Make band ``index`` (from 0, the lowest frequencies) of ``count`` bands of images of this size.

    Raises:
        ParameterError: no such band, or more bands than pixels.
    """
    check_band(index, count, who="make_band")
    if count > height * width:
        raise ParameterError(
            f"make_band: count must be at most the number of pixels, {height * width} of {height}x{width} images; got "
            f"{count}. Ask for fewer bands."
        )
    return _made(index, count, height, width, str(device))


def check_band(index: int, count: int, *, who: str) -> None:
    """Demand that there is a band of this number.

    Raises:
        ParameterError: otherwise.
    """
    if not 0 <= index < count:
        raise ParameterError(f"{who}: a band must be from 0 to the number of bands - 1; got band {index} of {count}.")


def band_numbers(height: int, width: int, count: int) -> Int[Tensor, "h w"]:
    """Say for each term of the transform which band it belongs to.

    Terms are ordered by radial frequency, in exact integers; of equal ones the term with fewer cycles down the image
    comes first. Sizes of bands differ by at most 1.

    Args:
        height: Pixels of a column.
        width: Pixels of a row.
        count: Number of bands, from 1 to ``height * width``.

    Returns:
        Numbers from 0 to ``count - 1``, on the CPU.
    """
    rank = torch.empty(height * width, dtype=torch.int64)
    rank[_squares(height, width).flatten().argsort(stable=True)] = torch.arange(height * width)
    return (rank * count // (height * width)).reshape(height, width)


def cosines(side: int) -> Float[Tensor, "side side"]:
    """Give the orthonormal type-II cosine transform of a line of ``side`` pixels as a matrix, float64 on the CPU."""
    place = torch.arange(side)
    turns = (place[:, None] * (2 * place + 1)) % (4 * side)  # integers: the angle is exact however many cycles
    matrix = torch.cos(turns.double() * (math.pi / (2 * side))) * math.sqrt(2 / side)
    matrix[0] = math.sqrt(1 / side)
    return matrix


def _squares(height: int, width: int) -> Int[Tensor, "h w"]:
    """Give squared radial frequencies times ``(height * width)^2``."""
    down, across = torch.arange(height) * width, torch.arange(width) * height
    return down[:, None] ** 2 + across**2


@functools.lru_cache(maxsize=16)
def _made(index: int, count: int, height: int, width: int, device: str) -> Band:
    """Make a band once: a search asks for it at every step."""
    with torch.inference_mode(False):
        mask = band_numbers(height, width, count) == index
        radius = _squares(height, width)[mask].double().sqrt() / (height * width)
        rows, columns = (cosines(side).float().to(device) for side in (height, width))
        return Band(rows, columns, mask.float().to(device), float(radius.min()), float(radius.max()))
