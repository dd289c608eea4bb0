r"""Do images pull the classifier in the same direction: cosines of their gradients by the last linear layer.

With probabilities :math:`p_i`, the true class as a unit vector :math:`t_i`, and :math:`h_i` what enters the last layer
(with a 1 behind it for the bias), the gradient of the cross-entropy of image i by the weights is
:math:`(p_i - t_i) h_i^T`, so that

    :math:`\cos(g_i, g_j) = \cos(p_i - t_i, p_j - t_j) \cos(h_i, h_j)`

needs no backward pass. Gradients that point against each other are interference; a table of them of low rank says that
images share directions. After Lyle, Rowland, Dabney, Kwiatkowska, Gal. "Learning dynamics and generalization in
reinforcement learning". ICML 2022, https://arxiv.org/abs/2206.02126, who look at such interference between states; its
use for classifiers here is Hardy's own.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy.diagnosis.class_geometry import Estimate, unit

__all__ = ["Interference", "interference", "residuals"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Interference:
    """What :func:`interference` finds.

    Attributes:
        within: Mean cosine over pairs of images of one class.
        between: The same over pairs of two classes.
        negative: Share of all pairs with a negative cosine.
        rank: Effective rank of the table of cosines: exp of the entropy of its eigenvalues divided by their sum (Roy,
            Vetterli, EUSIPCO 2007), in [1, number of images].
        used: Which images have a gradient that is not 0.
    """

    within: Estimate
    between: Estimate
    negative: Estimate
    rank: float
    used: Bool[Tensor, "n"]


def residuals(logits: Float[Tensor, "n k"], y: Int[Tensor, "n"]) -> Float[Tensor, "n k"]:
    """Give probabilities less the true class, in float64; that of the true class is the others' sum, which is exact."""
    p = logits.double().softmax(1)
    others = p.scatter(1, y[:, None], 0)
    return others.scatter(1, y[:, None], -others.sum(1, keepdim=True))


def interference(
    h: Float[Tensor, "n d"], logits: Float[Tensor, "n k"], y: Int[Tensor, "n"], *, bias: bool
) -> Interference:
    """Compare the gradients of all pairs of images, in O(n^2 (k + d)).

    Args:
        h: What enters the last linear layer.
        logits: What it makes of it.
        y: True classes.
        bias: Whether it has a bias, which counts among its weights.
    """
    r = residuals(logits, y)
    used = (r.abs().amax(1) > 0) & ((h.abs().amax(1) > 0) | bias)
    r, y = r[used], y[used]
    inputs = h[used].double()
    inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1) if bias else inputs
    largest = r.abs().amax(1, keepdim=True).clamp_min(1e-300)  # a square of 1e-200 would be 0
    u, v = unit(r / largest), unit(inputs)
    table = (u @ u.T) * (v @ v.T)
    pairs = ~torch.eye(len(y), dtype=torch.bool, device=y.device)
    same = (y[:, None] == y[None]) & pairs
    values = torch.linalg.eigvalsh(table).clamp_min(0) if len(y) else table.new_zeros(0)
    weights = values[values > 0] / values.sum()
    return Interference(
        within=_mean(table, same),
        between=_mean(table, pairs & ~same),
        negative=_mean((table < 0).double(), pairs),
        rank=math.exp(float(-(weights * weights.log()).sum())) if len(weights) else math.nan,
        used=used,
    )


def _mean(table: Tensor, pairs: Bool[Tensor, "n n"]) -> Estimate:
    """Take the mean of a symmetric table over some pairs, and without each image."""
    held, count = torch.where(pairs, table, 0).sum(1), pairs.sum(1).double()
    value = float(held.sum() / count.sum()) if float(count.sum()) else math.nan
    return Estimate(value, (held.sum() - 2 * held) / (count.sum() - 2 * count))
