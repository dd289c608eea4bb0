r"""How features of classes lie to each other: sums over all pairs without a table of them, with jackknife bounds.

With unit vectors :math:`z_i` of class :math:`y_i`, :math:`s_k` the sum and :math:`\mu_k` the mean of class k (of
:math:`n_k` images), and :math:`\mu` the mean of all:

    intra     :math:`\sum_k (|s_k|^2 - n_k) / \sum_k n_k (n_k - 1)`, the mean of :math:`z_i \cdot z_j` over pairs
              of one class
    inter     :math:`\frac{1}{K} \sum_k |\mu_k - \mu|^2`
    within    :math:`\frac{1}{n} \sum_i |z_i - \mu_{y_i}|^2`
    J         inter / within, which with classes of equal size is tr S_b / tr S_w.

That low similarity within classes and little variance between them mark adversarially trained nets is the abstract of
Li, Liu, Xu, Wang, Tang. "Enhancing adversarial training with feature separability". 2022,
https://arxiv.org/abs/2205.00637. Its method could not be read: the formulas are Hardy's reading of the two quantities.

Bounds are Student's t around the value with the standard error of the delete-one jackknife (Efron, Stein, Annals of
Statistics 9, 1981): every quantity is computed again without each image, in O(n k d) together.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from scipy.special import stdtrit
from torch import Tensor

from hardy.errors import DataError, ShapeError

__all__ = ["Cross", "Estimate", "Geometry", "class_geometry", "cross_similarity", "paired_classes", "unit"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A number and what it is without each image, in float64.

    Attributes:
        value: Of all images; NaN where there is nothing to take it of.
        without: The same number without image i.
    """

    value: float
    without: Float[Tensor, "n"]

    def bounds(self, *, level: float = 0.95) -> tuple[float | None, float | None]:
        """Give the interval of the jackknife; none where the number cannot be had without some image."""
        n = len(self.without)
        if n < 2 or not bool(self.without.isfinite().all()):
            return None, None
        spread = float((self.without - self.without.mean()).square().sum()) * (n - 1) / n
        half = float(stdtrit(n - 1, 0.5 + level / 2)) * math.sqrt(spread)
        return self.value - half, self.value + half

    def minus(self, other: "Estimate") -> "Estimate":
        """Give the difference, on the same images."""
        return Estimate(self.value - other.value, self.without - other.without)


@dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """What :func:`class_geometry` finds; the names are those of the formulas above."""

    intra: Estimate
    inter: Estimate
    within: Estimate
    ratio: Estimate


@dataclass(frozen=True, kw_only=True, eq=False)
class Cross:
    """What :func:`cross_similarity` finds: mean cosines of an image and its twin, of twins of one class, of two."""

    own: Estimate
    same: Estimate
    other: Estimate


def unit(z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Scale every row to length 1, in float64; a row of zeros stays."""
    z = z.double()
    scaled: Tensor = z / torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min(1e-300)
    return scaled


def paired_classes(y: Int[Tensor, "n"]) -> Bool[Tensor, "n"]:
    """Say which images have another one of their class: the others have no pair, and no spread around their mean."""
    return torch.bincount(y)[y] > 1


def class_geometry(z: Float[Tensor, "n d"], y: Int[Tensor, "n"]) -> Geometry:
    """Measure how close the images of a class are and how far the classes are from each other.

    Args:
        z: Features; they are scaled to length 1.
        y: Classes; each of at least two images, see :func:`paired_classes`.

    Raises:
        ShapeError: not one class per feature.
        DataError: a feature that is not finite, a class of one image, or fewer than two classes.
    """
    z, y = _checked(z, y)
    n, k = len(z), int(y.max()) + 1
    counts = torch.bincount(y).double()
    means = torch.zeros(k, z.shape[1], dtype=z.dtype, device=z.device).index_add_(0, y, z) / counts[:, None]
    size, square = counts[y], z.square().sum(1)
    around = (z - means[y]).square().sum(1)
    centre, middle = z.mean(0), means.mean(0)

    pairs, left = (counts * (counts - 1)).sum(), -2 * (size - 1)
    lengths = (counts[:, None] * means).square().sum(1)
    own = 2 * (size * (z * means[y]).sum(1) - square)  # what pairs with image i add
    total = lengths.sum() - square.sum()
    intra = Estimate(_ratio(total, pairs), (total - own) / (pairs + left).clamp_min(0))

    spread = around.sum()
    within_without = (spread - around * size / (size - 1)) / (n - 1)
    within = Estimate(float(spread / n), within_without)

    moved = (means[y] - z) / (size - 1)[:, None]  # of the mean of its class, without image i
    lengths_without = means.square().sum() + (2 * means[y] * moved + moved.square()).sum(1)
    centre_without = (n * centre - z) / (n - 1)
    middle_without = middle + moved / k
    inter_without = lengths_without / k - (centre_without * (2 * middle_without - centre_without)).sum(1)
    inter = Estimate(float((means - centre).square().sum(1).mean()), inter_without)
    ratio = Estimate(_ratio(inter.value, within.value), inter_without / within_without)
    return Geometry(intra=intra, inter=inter, within=within, ratio=ratio)


def cross_similarity(z: Float[Tensor, "n d"], other: Float[Tensor, "n d"], y: Int[Tensor, "n"]) -> Cross:
    """Compare the features of images with those of their twins, such as attacked copies.

    Args:
        z: Features; they are scaled to length 1.
        other: Those of the twins, in the same order.
        y: Classes, as for :func:`class_geometry`.

    Returns:
        Mean cosine of image i and twin j: i = j; of one class, i != j; of two classes.

    Raises:
        ShapeError, DataError: as :func:`class_geometry`.
    """
    (a, y), (b, _) = _checked(z, y), _checked(other, y)
    n, k = len(a), int(y.max()) + 1
    counts = torch.bincount(y).double()
    sums = [torch.zeros(k, a.shape[1], dtype=a.dtype, device=a.device).index_add_(0, y, t) for t in (a, b)]
    self_, size = (a * b).sum(1), counts[y]
    own = Estimate(float(self_.mean()), (self_.sum() - self_) / (n - 1))
    # what leaves the sum over all ordered pairs (i, j) with image i: its row, its column, once itself
    class_part = (a * sums[1][y]).sum(1) + (b * sums[0][y]).sum(1) - self_
    all_part = (a * sums[1].sum(0)).sum(1) + (b * sums[0].sum(0)).sum(1) - self_
    class_total, total = (sums[0] * sums[1]).sum(), (sums[0].sum(0) * sums[1].sum(0)).sum()
    same_total, pairs = class_total - self_.sum(), (counts * (counts - 1)).sum()
    same = Estimate(
        _ratio(same_total, pairs), (same_total - (class_part - self_)) / (pairs - 2 * (size - 1)).clamp_min(0)
    )
    other_pairs = n * n - counts.square().sum()
    apart = Estimate(
        _ratio(total - class_total, other_pairs),
        (total - class_total - (all_part - class_part)) / (other_pairs - 2 * (n - size)).clamp_min(0),
    )
    return Cross(own=own, same=same, other=apart)


def _checked(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Give unit features, and classes without gaps."""
    if z.ndim != 2 or y.shape != z.shape[:1]:
        raise ShapeError(
            f"separability: features must be (n, d) and classes (n,); got {tuple(z.shape)}, {tuple(y.shape)}."
        )
    if not bool(z.isfinite().all()):
        raise DataError("separability: features must be finite; some are not. Look at the check logits.")
    found, dense, counts = torch.unique(y, return_inverse=True, return_counts=True)
    if len(found) < 2 or int(counts.min()) < 2:
        raise DataError(
            f"separability: at least 2 classes of at least 2 images must be given; got {len(found)} classes, the "
            f"smallest of {int(counts.min()) if len(counts) else 0}. Leave classes of one image out."
        )
    return unit(z), dense


def _ratio(a: Tensor | float, b: Tensor | float) -> float:
    return float(a) / float(b) if float(b) > 0 else math.nan
