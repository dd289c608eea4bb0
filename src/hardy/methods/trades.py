"""TRADES: cross-entropy on the images, plus how far the answer moves within their balls.

Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan. "Theoretically principled trade-off between robustness and accuracy".
ICML 2019, https://arxiv.org/abs/1901.08573 (Eq. 5, Algorithm 1).
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.methods._card import Card
from hardy.methods._checks import in_range
from hardy.methods._search import NEAR, SearchInsert, check_budget, check_search_alone, kl_divergence

__all__ = ["CARD", "TRADES"]

CARD = Card(
    name="trades",
    summary="Add to the cross-entropy of the images the divergence between the answers to an image and to the one in "
    "its ball that the net answers most differently. beta trades accuracy for robustness.",
    paper="Zhang et al., ICML 2019",
    url="https://arxiv.org/abs/1901.08573",
    kind="loss",
    live=False,
    attaches="a loss term",
    defaults_from="beta 6 is 1/lambda of the paper's CIFAR-10 table (from memory) and the default of the TRADES code "
    "of the AWP authors, as are eps 8/255 and 10 steps of 2/255. The original code has eps 0.031 and 10 steps; the "
    "default step of its loss function is 0.003.",
    deviations=(
        "The search sees the net as it is at test time, as in the code of the AWP authors; an early version of the "
        "original code searches in training mode.",
        "The search comes after the pass over the images, whose statistics the batch norms then hold a share of.",
        "The original runs the clean images twice in the loss; here one pass serves both terms.",
        "For l2 the steps are those of PGD: normalised and projected, from a start near the image.",
    ),
    notes=(
        "A step costs steps + 2 forward passes for the search and the adversarial images beside the plain one, and "
        "steps + 1 backward passes; those of the search compute no gradients of weights.",
        "The term needs no labels: soft ones change the cross-entropy only.",
        "Batch norms see the images and the adversarial ones in two passes and update their running statistics twice "
        "a step, as in the original code.",
        "With train.compile the search is not compiled.",
    ),
)


class TRADESInsert(SearchInsert):
    """Adds the divergence."""

    def terms(self, context: surgery.Context) -> dict[str, Tensor]:
        x = context.x.detach()
        clean: list[Tensor] = []

        def loss(logits: Tensor) -> Tensor:
            if not clean:  # with gradients, as autocast keeps the weights that it casts for the training pass too
                clean.append(self.held[0](x).detach())
            return kl_divergence(clean[0], logits)

        x_adv = self.search(x, seeding.fold(context.key, self.root), loss, near=NEAR)
        divergence = kl_divergence(context.logits, context.forward(x_adv))
        return {CARD.name: self.spec.beta * divergence.mean()}

    @property
    def passes(self) -> surgery.Passes:
        steps = self.spec.steps
        return surgery.Passes(forward=1, backward=1, search_forward=steps + 1, search_backward=steps)


@dataclass(frozen=True, kw_only=True)
class TRADES:
    """TRADES as a method.

    Attributes:
        beta: Weight of the divergence beside a cross-entropy of weight 1, at least 0 (1/lambda of the paper).
        norm: "linf" or "l2".
        eps: Radius of the ball, in pixels in [0, 1].
        steps: Steps of the search, at least 1.
        step_size: Length of a step, in pixels in [0, 1], in the norm.
    """

    beta: float = 6.0
    norm: Literal["linf", "l2"] = "linf"
    eps: float = 8 / 255
    steps: int = 10
    step_size: float = 2 / 255

    def __post_init__(self) -> None:
        in_range("TRADES", "beta", self.beta, 0, 1e6)
        check_budget("TRADES", norm=self.norm, eps=self.eps, steps=self.steps, step_size=self.step_size)

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Add a loss term to ``Objective``; changes no layer.

        Raises:
            AttachError: another method makes adversarial images already.
        """
        check_search_alone(model, CARD.name)
        return surgery.insert(model, TRADESInsert(self, seed=seed, model=model), method=CARD.name)
