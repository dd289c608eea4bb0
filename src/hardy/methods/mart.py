"""MART: adversarial training that looks harder at images which the net gets wrong without any attack.

Wang, Zou, Yi, Bailey, Ma, Gu. "Improving adversarial robustness requires revisiting misclassified examples".
ICLR 2020, https://openreview.net/forum?id=rklOg6EFwS (Algorithm 1).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy import surgery
from hardy.methods._card import Card
from hardy.methods._checks import in_range
from hardy.methods._search import (
    NEAR,
    SearchInsert,
    check_budget,
    check_search_alone,
    cross_entropy,
    kl_divergence,
    wide,
)

__all__ = ["CARD", "MART", "boosted_cross_entropy", "doubt"]

CARD = Card(
    name="mart",
    summary="Train on adversarial images with a cross-entropy that also lowers the best wrong class, and keep the "
    "answers to them close to those of the images, the more the less sure the net is of the image itself.",
    paper="Wang et al., ICLR 2020",
    url="https://openreview.net/forum?id=rklOg6EFwS",
    kind="loss",
    live=False,
    attaches="the input, pixels in [0, 1], the task loss and a loss term",
    defaults_from="weight 5, the default of the authors' script for ResNet-18 (their loss function itself has 6); eps "
    "8/255 and 10 steps of 2/255 as in pgd_at, so that methods can be compared. Their script has 0.031 and 0.007.",
    deviations=(
        "log(1 - p) is computed from the logits, without the small numbers that the authors' code adds inside its "
        "logarithms and to the weight.",
        "For l2 the steps are those of PGD from a start near the image; the authors' code has linf only.",
    ),
    notes=(
        "A step costs steps + 2 forward and backward passes; those of the search compute no gradients of weights.",
        "It defines the task loss, so label_smoothing cannot be beside it.",
        "Of soft labels q, p_y becomes the sum of q_k p_k, the cross-entropy the soft one, and the wrong classes all "
        "but the one with the largest q.",
        "Put it after methods that change images; what comes later changes the adversarial images.",
        "The training accuracy is of the adversarial images.",
        "With train.compile the search is not compiled.",
    ),
)


def boosted_cross_entropy(
    logits: Float[Tensor, "n k"], y: Int[Tensor, "n"] | Float[Tensor, "n k"]
) -> Float[Tensor, "n"]:
    r"""Compute :math:`-\log p_y - \log(1 - \max_{k \ne y} p_k)` of each row, in nats.

    Args:
        logits: Of adversarial images; at least 2 classes.
        y: Labels, or label probabilities.

    Returns:
        float32 or wider, at least 0, with gradients.
    """
    log_p = wide(logits).log_softmax(1)
    label = y if y.ndim == 1 else y.argmax(1)
    wrong = log_p.detach().scatter(1, label[:, None], -torch.inf).argmax(1)
    others = log_p.scatter(1, wrong[:, None], -torch.inf)
    return cross_entropy(logits, y) - others.logsumexp(1)


def doubt(logits: Float[Tensor, "n k"], y: Int[Tensor, "n"] | Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
    """Compute one minus the probability of the label, with gradients; for soft labels q, 1 - sum_k q_k p_k."""
    p = wide(logits).softmax(1)
    return 1 - (p.gather(1, y[:, None])[:, 0] if y.ndim == 1 else (y.to(p.dtype) * p).sum(1))


class MARTInsert(SearchInsert):
    """Replaces training images by adversarial ones, and the loss by that of the paper."""

    def __init__(self, spec: "MART", *, seed: int, model: nn.Module) -> None:
        super().__init__(spec, seed=seed, model=model)
        self.clean: Tensor | None = None  # the images, from the inputs of a step to its terms

    def inputs(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        self.clean = x
        return self.search(x, key, lambda z: cross_entropy(z, y), near=NEAR), y

    def task(self, logits: Tensor, y: Tensor) -> Tensor:
        return boosted_cross_entropy(logits, y)

    def terms(self, context: surgery.Context) -> dict[str, Tensor]:
        x, self.clean = self.clean, None
        assert x is not None  # noqa: S101  (Objective asks for inputs first)
        clean = context.forward(x)
        divergence = kl_divergence(clean, context.logits) * doubt(clean, context.y)
        return {CARD.name: self.spec.weight * divergence.mean()}

    @property
    def passes(self) -> surgery.Passes:
        steps = self.spec.steps
        return surgery.Passes(forward=1, backward=1, search_forward=steps, search_backward=steps)


@dataclass(frozen=True, kw_only=True)
class MART:
    """MART as a method.

    Attributes:
        weight: Of the divergence, beside a boosted cross-entropy of weight 1, at least 0 (lambda).
        norm: "linf" or "l2".
        eps: Radius of the ball, in pixels in [0, 1].
        steps: Steps of the search, at least 1.
        step_size: Length of a step, in pixels in [0, 1], in the norm.
    """

    weight: float = 5.0
    norm: Literal["linf", "l2"] = "linf"
    eps: float = 8 / 255
    steps: int = 10
    step_size: float = 2 / 255

    def __post_init__(self) -> None:
        in_range("MART", "weight", self.weight, 0, 1e6)
        check_budget("MART", norm=self.norm, eps=self.eps, steps=self.steps, step_size=self.step_size)

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Change the batches and the losses of ``Objective``; changes no layer.

        Raises:
            AttachError: another method makes adversarial images already.
        """
        check_search_alone(model, CARD.name)
        return surgery.insert(model, MARTInsert(self, seed=seed, model=model), method=CARD.name)
