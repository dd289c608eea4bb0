"""Margin bound: keep the margin above what perturbations of the input and of the weights together can take from it.

Inspired by Tsai, Hsu, Yu, Chen. "Non-singular adversarial robustness of neural networks". ICASSP 2021,
https://arxiv.org/abs/2102.11935: a bound on the loss of margin, in norms of the weights, as a regulariser. The bound is
derived in :mod:`hardy.margin`.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy import surgery
from hardy.chain import Chain, check_alone, read_chain
from hardy.margin import norm_margin
from hardy.methods._card import Card
from hardy.methods._checks import in_range

__all__ = ["CARD", "MarginBound", "margin_penalty"]

CARD = Card(
    name="margin_bound",
    summary="Penalise images whose margin is smaller than what small changes of the pixels and of the weights together "
    "could take from it, by a bound in norms of the weights. For small feed-forward nets.",
    paper="inspired by Tsai et al., ICASSP 2021",
    url="https://arxiv.org/abs/2102.11935",
    kind="loss",
    live=False,
    attaches="a loss term, on nets that are a chain of linear layers, convolutions, batch norms, activations and "
    "pooling (LeNet, VGG); others are an error",
    defaults_from="ours, tried on the embedded digits only (means of 3 seeds). A net of two convolutions had 0.90 "
    "clean accuracy with them, 0.93 without; 0.74 of its images, not 0.08, were certified at eps 0.02 by the interval "
    "form. A perceptron of three layers: 0.89 clean, not 0.91; 0.51 certified, not 0.24. Accuracy under PGD at eps "
    "0.05 did not change: 0.78 and 0.73.",
    deviations=(
        "A reconstruction: the regulariser of the paper could not be read; this is a hinge on a bound that was derived "
        "anew, on a logarithmic scale, without which a LeNet-5 stayed at chance (measured on the digits at 32 pixels).",
        "Biases, convolutions and batch norms are our addition; the paper is about multilayer perceptrons.",
        "The bound is of the net as it is at test time: batch norms with running statistics, no train-only masks.",
        "Of mixed labels, the class with the larger part counts.",
    ),
    notes=(
        "The bound multiplies the norms of all layers. Of a net with more than a few layers it is far above any real "
        "loss of margin; the penalty then shrinks weights and says little about robustness.",
        "It is no certificate: measure with hardy.certificates.margin_bound, whose interval form is tighter.",
        "A step costs one further forward and backward pass, and work with the weights: for these small nets two to "
        "three times a plain step in all.",
    ),
)


def margin_penalty(bound: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Compute the logarithm of 1 plus how far each certified margin is below 0, which is what it lacks.

    Close to 0 that is the hinge. Far below, where the bound is a product of the norms of many layers, its gradient is
    that of the sum of their logarithms, and does not drown the cross-entropy.
    """
    return (-bound).relu().log1p()


class MarginBoundInsert(surgery.Insert):
    """Adds the penalty. It looks at the layers of its model, which a copy of the model copies along."""

    def __init__(self, spec: "MarginBound", *, seed: int, model: nn.Module, chain: Chain) -> None:
        super().__init__(spec, seed=seed)
        self.chain = chain
        self.held = (model,)  # in a tuple, as a module that is its own descendant cannot be walked through

    def terms(self, context: surgery.Context) -> dict[str, Tensor]:
        model, spec = self.held[0], self.spec
        check_alone(model, who=CARD.name)
        body, head = self.chain.layers(model)
        y: Int[Tensor, "n"] = context.y if context.y.ndim == 1 else context.y.argmax(dim=1)
        bound = norm_margin(body, head, context.x, y, eps=spec.eps, weight_eps=spec.weight_eps)
        return {CARD.name: spec.weight * margin_penalty(bound).mean()}

    @property
    def passes(self) -> surgery.Passes:
        return surgery.Passes(forward=1, backward=1)  # through the layers, batch norms folded


@dataclass(frozen=True, kw_only=True)
class MarginBound:
    """Margin bound as a method.

    Attributes:
        weight: Of the penalty, beside a cross-entropy of weight 1, at least 0.
        eps: Largest change of a pixel that the margin should bear, in pixels in [0, 1].
        weight_eps: Largest change of every weight of a linear layer or convolution, at the same time, at least 0.
    """

    weight: float = 0.3
    eps: float = 2 / 255
    weight_eps: float = 0.0003

    def __post_init__(self) -> None:
        in_range("MarginBound", "weight", self.weight, 0, 1e6)
        in_range("MarginBound", "eps", self.eps, 0, 1)
        in_range("MarginBound", "weight_eps", self.weight_eps, 0, 1e6)

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Add a loss term to ``Objective``; changes no layer."""
        chain = read_chain(model, example, who=CARD.name)
        return surgery.insert(model, MarginBoundInsert(self, seed=seed, model=model, chain=chain), method=CARD.name)
