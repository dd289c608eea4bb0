r"""How much margin a feed-forward net loses at most when its input and its weights are perturbed together: norm form.

The bound goes layer by layer. With clean activations :math:`z_k` and :math:`d_k` a bound on how far any of them can be
from its clean value, row r of a layer with weights W, each of which may change by :math:`e_r`, changes by

.. math:: (W + \Delta W) z' - W z = (W + \Delta W)(z' - z) + \Delta W z
          \le (\|W_r\|_1 + e_r n) d_{k-1} + e_r \|z_{k-1}\|_1

with n the number of weights of the row; biases cancel. Layers that are 1-Lipschitz in the largest value leave
:math:`d` as it is. The last layer is taken on differences of rows, so that the margin of class i over class j loses at
most :math:`(\|W_i - W_j\|_1 + (e_i + e_j) n) d + (e_i + e_j) \|z\|_1`.

Tsai, Hsu, Yu, Chen. "Non-singular adversarial robustness of neural networks". ICASSP 2021,
https://arxiv.org/abs/2102.11935, from whose idea this is derived anew, as their text could not be read whole: with
biases, convolutions (n is the kernel's, the norm of z that of the largest patch) and batch norms (folded).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hardy.chain import Layer, Scaled, Weighted

__all__ = ["norm_margin", "smallest_margin"]


def norm_margin(
    body: Sequence[Layer],
    head: Weighted,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, "n"],
    *,
    eps: float,
    weight_eps: float,
) -> Float[Tensor, "n"]:
    """Bound from below the margin of the true class under every perturbation of the input and the weights.

    Args:
        body: Layers of a :class:`hardy.chain.Chain` but the last.
        head: The last one.
        x: Images, pixels in [0, 1].
        y: True classes.
        eps: Largest change of a pixel, at least 0.
        weight_eps: Largest change of a weight of a linear layer or convolution, before norms are folded, at least 0.

    Returns:
        Least true logit minus other logit, float32 or wider, with gradients to weights and images. Rounding errors are
        not accounted for.
    """
    z = x.to(head.weight.dtype)
    d = z.new_full((len(z),), eps)
    for layer in body:
        d = _grown(layer, z, d, weight_eps)
        z = layer(z)
    logits, loose = head(z), weight_eps * head.scale.abs()
    drop = torch.cdist(head.weight, head.weight, p=1)[y] * d[:, None]
    drop = drop + (loose[y][:, None] + loose) * (head.fan_in * d + z.abs().sum(dim=1))[:, None]
    return smallest_margin(logits.gather(1, y[:, None]) - logits - drop, y)


def smallest_margin(margins: Float[Tensor, "n k"], y: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Take the smallest margin over the classes other than the true one; NaN where one is NaN."""
    return margins.scatter(1, y[:, None], torch.inf).amin(dim=1)


def _grown(layer: Layer, z: Tensor, d: Float[Tensor, "n"], weight_eps: float) -> Float[Tensor, "n"]:
    """Bound the change behind a layer by that before it; ``z`` is what enters it."""
    if isinstance(layer, Scaled):
        return d * layer.scale.abs().max()
    if not isinstance(layer, Weighted):
        return d
    rows = layer.weight.abs().flatten(1).sum(dim=1)
    if weight_eps == 0:
        return d * rows.max()
    loose = weight_eps * layer.scale.abs()
    patch = layer.sums(z.abs()).flatten(2).amax(dim=2) if z.ndim == 4 else layer.sums(z.abs())
    return ((rows + loose * layer.fan_in) * d[:, None] + loose * patch).amax(dim=1)
