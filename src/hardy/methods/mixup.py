"""Mixup: train on weighted sums of two images and of their labels.

Zhang, Cisse, Dauphin, Lopez-Paz. "mixup: Beyond empirical risk minimization". ICLR 2018,
https://arxiv.org/abs/1710.09412 (section 2). The draw of lambda follows Bailey. "Polar generation of random variates
with the t-distribution". Mathematics of Computation 1994.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.errors import AttachError, ParameterError
from hardy.methods._card import Card
from hardy.methods._checks import in_range, one_of
from hardy.sites import check_plain

__all__ = [
    "CARD",
    "Mixup",
    "Scope",
    "check_mixing",
    "class_count",
    "cycle",
    "mixing_weights",
    "mixup",
    "scoped",
    "soft_labels",
    "symmetric_beta",
]

Scope = Literal["sample", "batch"]

CARD = Card(
    name="mixup",
    summary="Train on weighted sums of two images of the batch and of their labels, so that the net changes linearly "
    "between images.",
    paper="Zhang et al., ICLR 2018",
    url="https://arxiv.org/abs/1710.09412",
    kind="input",
    live=False,
    attaches="the input, pixels in [0, 1], and the labels, which become soft",
    defaults_from="alpha 1, which makes lambda uniform, is the default of the released CIFAR-10 code; "
    "every image is mixed, as there.",
    deviations=(
        "One lambda per image; the released code draws one per batch (scope = 'batch').",
        "The partner is the next image on a random cycle through the batch, so no image is its own partner; the "
        "released code permutes the batch, which leaves one image a batch with itself on average.",
    ),
    notes=(
        "What an image is mixed with depends by definition on which images share its batch (not on their order): the "
        "same for the same seed and after a resumed run, another for another batch size or number of processes.",
        "With cutmix in one recipe each mixes on its own: at p = 0.5 each, a quarter of the images are untouched and a "
        "quarter mixed twice. Chances p and q with p + (1 - p) q = 1 mix every image at least once.",
        "The training accuracy is counted against the first image's label and stays low.",
    ),
)


def mixup(
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, "n"] | Float[Tensor, "n k"],
    *,
    alpha: float,
    p: float,
    scope: Scope,
    num_classes: int,
    key: Int[Tensor, "n"],
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n k"]]:
    """Mix each of some random images with another one of the batch: ``lambda a + (1 - lambda) b``, labels alike.

    Args:
        x: Images, pixels in [0, 1].
        y: Labels, or label probabilities.
        alpha: lambda is drawn from Beta(alpha, alpha); above 0. Small: one of the two images dominates.
        p: Probability that an image is mixed, in [0, 1].
        scope: "sample": every image draws its lambda and whether it is mixed; "batch": one draw for all.
        num_classes: Number of classes, the length of a soft label.
        key: Source of randomness, one per row.

    Returns:
        Mixed images and soft labels; those that are not mixed are bit-equal.
    """
    partner = cycle(key)
    share = 1 - mixing_weights(scoped(key, scope), alpha=alpha, p=p)  # of the partner
    y = soft_labels(y, num_classes)
    mixed = torch.lerp(x, x[partner], share[:, None, None, None].to(x.dtype))
    return mixed, torch.lerp(y, y[partner], share[:, None].to(y.dtype))


def scoped(key: Int[Tensor, "n"], scope: Scope) -> Int[Tensor, "n"]:
    """Give each row its own key, or all rows the key of one of them, whatever their order."""
    return key if scope == "sample" else key[_order(key)[:1]].expand(len(key))


def mixing_weights(key: Int[Tensor, "n"], *, alpha: float, p: float) -> Float[Tensor, "n"]:
    """Draw lambda, the share of the image itself: from Beta(alpha, alpha) with probability p, otherwise 1."""
    return symmetric_beta(key, 2, alpha).where(seeding.uniform(key, 0, ()) < p, 1.0)


def cycle(key: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Give each row its successor on a random cycle through all rows; the order of the rows does not matter."""
    order = _order(key)
    return torch.empty_like(order).scatter_(0, order, order.roll(-1))


def _order(key: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    return torch.argsort(seeding.fold(key, 1))  # 64 bits: no two are equal


def symmetric_beta(key: Int[Tensor, "n"], counter: int, alpha: float) -> Float[Tensor, "n"]:
    r"""Draw one number from Beta(alpha, alpha) for each key, exactly and without rejection.

    If T is t-distributed with :math:`2\alpha` degrees of freedom, then :math:`(1 + T / \sqrt{2\alpha + T^2}) / 2` is
    Beta(alpha, alpha); and :math:`T^2 = 2\alpha (U^{-1/\alpha} - 1) \cos^2 2\pi V` with U, V uniform (Bailey). With
    :math:`w = U^{1/\alpha}` and c the cosine, the smaller of the number and its complement is
    :math:`q / (2 (1 + \sqrt{1 - q}))`, :math:`q = w / (w + (1 - w) c^2)`: no cancellation near 0.

    Args:
        key: Source of randomness, one per row.
        counter: Which draw this is.
        alpha: Above 0.

    Returns:
        float32 in [0, 1].
    """
    u = seeding.uniform(key, counter, (2,))
    log_w = torch.log(u[:, 0] + 2.0**-25) / alpha  # the shift keeps the logarithm finite
    w, rest = torch.exp(log_w), -torch.expm1(log_w)
    c = torch.cos(2 * math.pi * u[:, 1])
    q = w / (w + rest * c.square())
    small = q / (2 * (1 + torch.sqrt((1 - q).clamp(min=0))))
    return small.where(c < 0, 1 - small)


def soft_labels(y: Int[Tensor, "n"] | Float[Tensor, "n k"], num_classes: int) -> Float[Tensor, "n k"]:
    """Turn labels into rows of probabilities; soft labels stay as they are."""
    return y if y.is_floating_point() else F.one_hot(y, num_classes).float()


def class_count(model: nn.Module, example: Tensor, method: str) -> int:
    """Read the number of classes from the logits of one traceless forward pass.

    Raises:
        AttachError: the model is compiled or wrapped, or does not return logits (n, k).
    """
    check_plain(model)
    with surgery.without_trace(model, example):
        logits = model(example[:1].clone())
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise AttachError(f"{method}: the model must return logits (n, k); got {got}. Return the logits only.")
    return logits.shape[1]


class MixupInsert(surgery.Insert):
    """Mixes training batches."""

    def __init__(self, spec: "Mixup", *, seed: int, num_classes: int) -> None:
        super().__init__(spec, seed=seed)
        self.num_classes = num_classes

    def inputs(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        s: Mixup = self.spec
        return mixup(x, y, alpha=s.alpha, p=s.p, scope=s.scope, num_classes=self.num_classes, key=key)


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """Mixup as a method; the defaults are those for CIFAR-10.

    Attributes:
        alpha: lambda is drawn from Beta(alpha, alpha); above 0 (1: uniform).
        p: Probability that an image is mixed, in [0, 1].
        scope: "sample": every image draws its lambda and if it is mixed; "batch": one draw for all (released code).
    """

    alpha: float = 1.0
    p: float = 1.0
    scope: Scope = "sample"

    def __post_init__(self) -> None:
        check_mixing("Mixup", alpha=self.alpha, p=self.p, scope=self.scope)

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Mix the batches that ``Objective`` gives to the model; changes no layer."""
        held = MixupInsert(self, seed=seed, num_classes=class_count(model, example, CARD.name))
        return surgery.insert(model, held, method=CARD.name)


def check_mixing(method: str, *, alpha: float, p: float, scope: str) -> None:
    """Raise ParameterError unless the three are in range."""
    if not 0 < alpha < math.inf:
        raise ParameterError(f"{method}: alpha must be above 0 and finite; got {alpha}.")
    in_range(method, "p", p, 0, 1)
    one_of(method, "scope", scope, ("sample", "batch"))
