"""What Square draws from: how large its windows are, the patterns it puts there, and where they lie.

Andriushchenko et al. ECCV 2020, https://arxiv.org/abs/1912.00049 (Sec. 3.3 and 3.4, Alg. 3).
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hardy.threats import Norm

__all__ = ["constant", "pattern_table", "sides", "stage", "tile_grid", "tiles", "window"]

STAGES = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # after each of these steps the area is halved


def stage(step: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Say how often the area has been halved at each step, 0 to 9."""
    return torch.bucketize(step, constant(STAGES, step.device))


@lru_cache(maxsize=64)
def constant(values: tuple[int, ...], device: torch.device) -> Int[Tensor, "k"]:
    """Put numbers on a device, once; copying them at every step would make it wait."""
    return torch.tensor(values, device=device)


def sides(height: int, width: int, *, p_init: float, norm: Norm) -> tuple[int, ...]:
    """Give the side of the square in pixels at each of the ten stages.

    Args:
        height: Of the image.
        width: Of the image.
        p_init: Share of the image that the first squares cover, (0, 1].
        norm: linf: at least 1; else odd and at least 3. Never more than the image has.
    """
    out = []
    for halved in range(len(STAGES) + 1):
        side = round(math.sqrt(p_init / 2**halved * height * width))
        side = max(side, 1) if norm == "linf" else max(side, 3) + (max(side, 3) + 1) % 2
        out.append(min(side, height, width))
    return tuple(out)


@lru_cache(maxsize=16)
def pattern_table(sides: tuple[int, ...], norm: Norm, device: torch.device) -> Float[Tensor, "k 2 s s"]:
    """Draw the pattern of each side, upright and lying, in the top left corner of squares of the largest side.

    A pattern is two pyramids, the lower one negative; its norm is 1.
    """
    table = torch.zeros(len(sides), 2, max(sides), max(sides))
    for row, side in zip(table, sides, strict=True):
        power = 2 if norm == "l2" else 4
        half = torch.cat([_pyramid(side // 2, side, power), -_pyramid(side - side // 2, side, power)])
        halves = [part / _length(part, norm) for part in (half[: side // 2], half[side // 2 :])]
        whole = torch.cat(halves)
        whole = whole / _length(whole, norm)
        row[0, :side, :side], row[1, :side, :side] = whole, whole.T
    return table.to(device)


def tiles(u: Float[Tensor, "n t k"], shape: tuple[int, int, int], norm: Norm) -> Float[Tensor, "n c h w"]:
    """Cover images with tiles of a fifth of their height, each with the pattern, upright or lying, of random sign.

    Args:
        u: Uniform numbers, for each tile (:func:`tile_grid`) one for its direction and one for the sign of a channel.
        shape: Of one image.
        norm: Of the patterns.
    """
    channels, height, width = shape
    side, margin, rows, columns = tile_grid(height, width)
    lying = (u[:, :, 0] > 0.5).long()
    sign = torch.where(u[:, :, 1:] < 0.5, -1.0, 1.0)
    tile = pattern_table((side,), norm, u.device)[0, lying][:, :, None] * sign[..., None, None]  # n t c s s
    grid = tile.reshape(-1, rows, columns, channels, side, side).permute(0, 3, 1, 4, 2, 5)
    out = torch.zeros(len(u), *shape, device=u.device)
    covered = grid.reshape(-1, channels, rows * side, columns * side)
    out[:, :, margin : margin + rows * side, margin : margin + columns * side] = covered
    return out


def tile_grid(height: int, width: int) -> tuple[int, int, int, int]:
    """Give the side of a tile, where the first one begins, and how many rows and columns fit."""
    side = min(max(height // 5, 1), width)
    margin = max((height - 5 * side) // 2, 0)
    return side, margin, (height - margin) // side, max((width - margin) // side, 1)


def window(at: Float[Tensor, "n"], side: Int[Tensor, "n"], size: int) -> Int[Tensor, "n size"]:
    """Number the pixels of an axis from where the window begins, a uniform number ``at`` saying where.

    Numbers from 0 to ``side - 1`` are inside the window; every window inside the image is equally likely.
    """
    begin = torch.minimum((at * (size - side + 1)).long(), size - side)
    return torch.arange(size, device=at.device) - begin[:, None]


def _pyramid(height: int, width: int, power: int) -> Tensor:
    """Add up centred squares of side 1, 3, 5, ..., the k-th of height 1 / k ** power."""
    down, right = (torch.arange(n) - n // 2 for n in (height, width))
    ring = torch.maximum(down.abs()[:, None], right.abs()[None])
    steps = torch.arange(1, max(height // 2, width // 2) + 2).double() ** -power
    return steps.flip(0).cumsum(0).flip(0)[ring].float()


def _length(pattern: Tensor, norm: Norm) -> Tensor:
    size = pattern.square().sum().sqrt() if norm == "l2" else pattern.abs().sum()
    return size.clamp(min=1e-12)
