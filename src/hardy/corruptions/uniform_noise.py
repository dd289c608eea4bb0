"""Uniform noise: independent uniform noise on every value.

As in Geirhos, Temme, Rauber, Schuett, Bethge, Wichmann. "Generalisation in humans and deep neural networks".
NeurIPS 2018, https://arxiv.org/abs/1808.08750, but on every channel by itself and at the contrast of the image.
"""

from jaxtyping import Float, Int
from torch import Tensor

from hardy import seeding
from hardy.errors import ParameterError

__all__ = ["uniform_noise"]


def uniform_noise(
    x: Float[Tensor, "n c h w"], *, width: float, key: Int[Tensor, "n"], counter: int = 0
) -> Float[Tensor, "n c h w"]:
    """Add noise that is uniform in [-width, width] and clamp to the box.

    With the same key the noise of a larger width is the same pattern, scaled. Its standard deviation before clamping
    is ``width / sqrt(3)``.

    Args:
        x: Pixels in [0, 1].
        width: Largest change before clamping, in units of pixels in [0, 1], at least 0.
        key: One int64 per row, the source of its noise.
        counter: Which draw of these keys.

    Returns:
        Pixels in [0, 1], like ``x``.

    Raises:
        ParameterError: a negative width.
    """
    if not width >= 0:
        raise ParameterError(f"uniform_noise: width must be at least 0; got {width}.")
    pattern = 2 * seeding.uniform(key, counter, x.shape[1:]) - 1
    return (x + width * pattern.to(x.dtype)).clamp(0, 1)
