"""CutMix: paste a box of another image, and mix the labels by area.

Yun, Han, Oh, Chun, Choe, Yoo. "CutMix: Regularization strategy to train strong classifiers with localizable features".
ICCV 2019, https://arxiv.org/abs/1905.04899 (equations 1 and 2).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.methods._card import Card
from hardy.methods.mixup import Scope, check_mixing, class_count, cycle, mixing_weights, scoped, soft_labels

__all__ = ["CARD", "CutMix", "cutmix", "pasted"]

CARD = Card(
    name="cutmix",
    summary="Replace a random box of an image by the same box of another image of the batch and mix the labels by "
    "area, so that no pixel is wasted as in cutout.",
    paper="Yun et al., ICCV 2019",
    url="https://arxiv.org/abs/1905.04899",
    kind="input",
    live=False,
    attaches="the input, pixels in [0, 1], and the labels, which become soft",
    defaults_from="alpha 1 and p 0.5 are what the released code's README gives for CIFAR-100 (for ImageNet p 1).",
    deviations=(
        "Every image draws its own lambda, box and whether it is mixed; the released code draws once per batch "
        "(scope = 'batch').",
        "The partner is the next image on a random cycle through the batch, so no image is its own partner; the "
        "released code permutes the batch, which leaves one image a batch with itself on average.",
    ),
    notes=(
        "What an image is mixed with depends by definition on which images share its batch (not on their order): the "
        "same for the same seed and after a resumed run, another for another batch size or number of processes.",
        "With mixup in one recipe each mixes on its own, see there.",
        "The training accuracy is counted against the first image's label and stays low.",
    ),
)


def cutmix(
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, "n"] | Float[Tensor, "n k"],
    *,
    alpha: float,
    p: float,
    scope: Scope,
    num_classes: int,
    key: Int[Tensor, "n"],
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n k"]]:
    """Paste a box of another image of the batch into each of some random images.

    Args:
        x: Images, pixels in [0, 1].
        y: Labels, or label probabilities.
        alpha: lambda, the share that stays before the box is clipped, is drawn from Beta(alpha, alpha); above 0.
        p: Probability that an image gets a box, in [0, 1].
        scope: "sample": every image draws its box and whether it gets one; "batch": one draw for all.
        num_classes: Number of classes, the length of a soft label.
        key: Source of randomness, one per row.

    Returns:
        New images, and labels mixed by the true areas: the box may be clipped by the border.
    """
    partner = cycle(key)
    inside = pasted(scoped(key, scope), (x.shape[2], x.shape[3]), alpha=alpha, p=p)
    y = soft_labels(y, num_classes)
    share = inside.flatten(1).float().mean(1, keepdim=True).to(y.dtype)  # 1 - lambda, of what was really pasted
    inside = torch.empty_like(x, dtype=torch.bool).copy_(inside)  # in the memory format of x, which where() then keeps
    return torch.where(inside, x[partner], x), torch.lerp(y, y[partner], share)


def pasted(key: Int[Tensor, "n"], shape: tuple[int, int], *, alpha: float, p: float) -> Bool[Tensor, "n 1 h w"]:
    """Draw the box of each row: sides ``sqrt(1 - lambda)`` of the image's, centre uniform, clipped (Eq. 2).

    Half sides are rounded down to whole pixels, as in the released code.

    Returns:
        True where the other image is pasted; nowhere with probability ``1 - p``.
    """
    ratio = torch.sqrt(1 - mixing_weights(key, alpha=alpha, p=p))
    centre = seeding.uniform(key, 3, (2,))
    inside = []
    for i, length in enumerate(shape):
        half = (ratio * length // 1 // 2)[:, None]
        middle = (centre[:, i] * length // 1)[:, None]
        at = torch.arange(length, device=key.device)
        inside.append((at >= middle - half) & (at < middle + half))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


class CutMixInsert(surgery.Insert):
    """Pastes boxes in training batches."""

    def __init__(self, spec: "CutMix", *, seed: int, num_classes: int) -> None:
        super().__init__(spec, seed=seed)
        self.num_classes = num_classes

    def inputs(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        s: CutMix = self.spec
        return cutmix(x, y, alpha=s.alpha, p=s.p, scope=s.scope, num_classes=self.num_classes, key=key)


@dataclass(frozen=True, kw_only=True)
class CutMix:
    """CutMix as a method; the defaults are those for CIFAR.

    Attributes:
        alpha: lambda, the share that stays, is drawn from Beta(alpha, alpha); above 0 (1: uniform).
        p: Probability that an image gets a box, in [0, 1] (released code: 0.5 on CIFAR, 1 on ImageNet).
        scope: "sample": every image draws its box and whether it gets one; "batch": one draw for all (released code).
    """

    alpha: float = 1.0
    p: float = 0.5
    scope: Scope = "sample"

    def __post_init__(self) -> None:
        check_mixing("CutMix", alpha=self.alpha, p=self.p, scope=self.scope)

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Paste in the batches that ``Objective`` gives to the model; changes no layer."""
        held = CutMixInsert(self, seed=seed, num_classes=class_count(model, example, CARD.name))
        return surgery.insert(model, held, method=CARD.name)
