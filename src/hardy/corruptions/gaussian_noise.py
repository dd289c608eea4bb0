"""Gaussian noise: independent normal noise on every value.

Hendrycks, Dietterich. "Benchmarking neural network robustness to common corruptions and perturbations".
ICLR 2019, https://arxiv.org/abs/1903.12261. Here sigma is free, so that accuracy becomes a curve over it.
"""

from jaxtyping import Float, Int
from torch import Tensor

from hardy import seeding
from hardy.errors import ParameterError

__all__ = ["gaussian_noise"]


def gaussian_noise(
    x: Float[Tensor, "n c h w"], *, sigma: float, key: Int[Tensor, "n"], counter: int = 0
) -> Float[Tensor, "n c h w"]:
    """Add normal noise of standard deviation ``sigma`` and clamp to the box.

    With the same key the noise of a larger sigma is the same pattern, scaled.

    Args:
        x: Pixels in [0, 1].
        sigma: Standard deviation before clamping, in units of pixels in [0, 1], at least 0.
        key: One int64 per row, the source of its noise.
        counter: Which draw of these keys.

    Returns:
        Pixels in [0, 1], like ``x``.

    Raises:
        ParameterError: a negative sigma.
    """
    if not sigma >= 0:
        raise ParameterError(f"gaussian_noise: sigma must be at least 0; got {sigma}.")
    return (x + sigma * seeding.normal(key, counter, x.shape[1:]).to(x.dtype)).clamp(0, 1)
