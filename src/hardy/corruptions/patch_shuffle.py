"""Patch shuffle: cut an image into a grid and permute the pieces, which keeps texture and destroys shape.

As in "Random mask: towards robust convolutional neural networks", https://arxiv.org/abs/2007.14249 (random shuffle,
k in {2, 4, 8}).
"""

from jaxtyping import Float, Int
from torch import Tensor

from hardy import seeding
from hardy.errors import ParameterError, ShapeError

__all__ = ["patch_shuffle"]


def patch_shuffle(
    x: Float[Tensor, "n c h w"], *, grid: int, key: Int[Tensor, "n"], counter: int = 0
) -> Float[Tensor, "n c h w"]:
    """Permute the ``grid`` x ``grid`` pieces of each image at random; all channels of a piece move together.

    Args:
        x: Images; any real values.
        grid: Pieces per side, at least 1; must divide height and width. 1 changes nothing.
        key: One int64 per row, the source of its permutation.
        counter: Which draw of these keys.

    Returns:
        Images with the same values in other places.

    Raises:
        ParameterError: a grid below 1.
        ShapeError: the grid does not divide height or width.
    """
    n, c, h, w = x.shape
    if grid < 1:
        raise ParameterError(f"patch_shuffle: grid must be at least 1; got {grid}.")
    if h % grid or w % grid:
        raise ShapeError(
            f"patch_shuffle: grid must divide height and width; got {grid} for {h}x{w}. Resize or change it."
        )
    order = seeding.permutation(key, counter, grid * grid)
    pieces = x.reshape(n, c, grid, h // grid, grid, w // grid).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    moved = pieces.gather(1, order[:, :, None, None, None].expand_as(pieces))
    back = moved.reshape(n, grid, grid, c, h // grid, w // grid).permute(0, 3, 1, 4, 2, 5)
    return back.reshape(n, c, h, w)
