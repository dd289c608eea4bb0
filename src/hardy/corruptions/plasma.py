"""Plasma: fractal height maps by the diamond-square algorithm, for a whole batch at once.

Fournier, Fussell, Carpenter. "Computer rendering of stochastic models". CACM 1982; here in the periodic form that the
generators of CIFAR-10-C and ImageNet-C use for fog (https://github.com/hendrycks/robustness).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hardy import seeding
from hardy.errors import ParameterError

__all__ = ["plasma"]


def plasma(key: Int[Tensor, "n"], counter: int, *, size: int, decay: float) -> Float[Tensor, "n size size"]:
    """Make one height map per key, scaled so that its lowest point is 0 and its highest 1.

    From one point on, the grid is halved until it has ``size`` points a side: centres get the mean of their four
    corners, then the middles of the edges the mean of their four neighbours (the map wraps around), and each of them a
    uniform number in [-a, a). With every halving a is divided by ``decay`` twice, as the published code does by
    scaling both the draw and the factor before it.

    Args:
        key: One int64 per map.
        counter: Which draw of these keys.
        size: Points a side, a power of two.
        decay: Above 1: smoother. The published fog has 1.4 to 3.

    Returns:
        float32 in [0, 1] on the key's device.

    Raises:
        ParameterError: ``size`` is no power of two above 1.
    """
    if size < 2 or size & (size - 1):
        raise ParameterError(f"plasma: size must be a power of two above 1; got {size}. Make it larger and crop.")
    wobble = seeding.uniform(key, counter, (size * size - 1,)).mul_(2).sub_(1)
    heights, side, amplitude = key.new_zeros(len(key), 1, 1, dtype=torch.float32), 1, 1.0
    while side < size:
        drawn = wobble[:, side * side - 1 : 4 * side * side - 1].reshape(-1, 3, side, side)
        heights = _halved(heights, drawn.mul_(amplitude))
        side, amplitude = 2 * side, amplitude / decay**2
    low, high = heights.amin(dim=(1, 2), keepdim=True), heights.amax(dim=(1, 2), keepdim=True)
    return heights.sub_(low).div_(high - low)


def _halved(corner: Float[Tensor, "n g g"], wobble: Float[Tensor, "n 3 g g"]) -> Float[Tensor, "n k k"]:
    """Halve the grid: centres between four corners, then the edges right of and below each corner."""
    n, side, _ = corner.shape
    right, below = corner.roll(-1, 2), corner.roll(-1, 1)
    fine = corner.new_empty(n, side, 2, side, 2)
    centre = (corner + right).add_(below).add_(right.roll(-1, 1)).mul_(0.25).add_(wobble[:, 0])
    fine[:, :, 0, :, 0], fine[:, :, 1, :, 1] = corner, centre
    edge = (corner + right).add_(centre).add_(centre.roll(1, 1)).mul_(0.25)
    torch.add(edge, wobble[:, 1], out=fine[:, :, 0, :, 1])
    edge = below.add_(corner).add_(centre).add_(centre.roll(1, 2)).mul_(0.25)
    torch.add(edge, wobble[:, 2], out=fine[:, :, 1, :, 0])
    return fine.reshape(n, 2 * side, 2 * side)
