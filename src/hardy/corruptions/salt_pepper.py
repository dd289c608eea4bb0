"""Salt and pepper noise: some pixels become white or black, the others stay.

As the impulse noise of Hendrycks and Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261, but on whole pixels where
theirs changes every channel by itself; and the share is free, so that accuracy becomes a curve over it.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hardy import seeding
from hardy.errors import ParameterError

__all__ = ["salt_pepper"]


def salt_pepper(
    x: Float[Tensor, "n c h w"], *, share: float, key: Int[Tensor, "n"], counter: int = 0
) -> Float[Tensor, "n c h w"]:
    """Make each pixel black or white, equally likely, with probability ``share``; all its channels together.

    With the same key the pixels of a smaller share are among those of a larger one, and of the same colour.

    Args:
        x: Pixels in [0, 1].
        share: Expected share of changed pixels, in [0, 1].
        key: One int64 per row, the source of its noise.
        counter: Which draw of these keys.

    Returns:
        Pixels in [0, 1], like ``x``.

    Raises:
        ParameterError: a share out of range.
    """
    if not 0 <= share <= 1:
        raise ParameterError(f"salt_pepper: share must be in [0, 1]; got {share}.")
    place, colour = seeding.uniform(key, counter, (2, 1, *x.shape[2:])).unbind(dim=1)
    return torch.where(place < share, (colour < 0.5).to(x.dtype), x)
