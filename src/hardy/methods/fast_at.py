"""Fast adversarial training: one signed gradient step from a random point of the ball.

Wong, Rice, Kolter. "Fast is better than free: revisiting adversarial training". ICLR 2020,
https://arxiv.org/abs/2001.03994 (Algorithm 3).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from hardy import surgery
from hardy.errors import ParameterError
from hardy.methods._card import Card
from hardy.methods._checks import in_range
from hardy.methods._search import SearchInsert, SearchNorm, check_search_alone, cross_entropy

__all__ = ["CARD", "FastAdversarialTraining"]

CARD = Card(
    name="fast_at",
    summary="Train on images of one gradient step from a random point of the ball: adversarial training at twice the "
    "cost of plain training.",
    paper="Wong et al., ICLR 2020",
    url="https://arxiv.org/abs/2001.03994",
    kind="input",
    live=False,
    attaches="the input, pixels in [0, 1]",
    defaults_from="eps 8/255 and a step of 1.25 eps: the authors' CIFAR-10 code (8 and 10 gray levels).",
    deviations=(
        "The search sees the net as it is at test time; the authors' code takes its gradient in training mode, which "
        "also updates the running statistics of batch norms.",
        "The budget is in pixels in [0, 1] for all channels; their code divides by the standard deviations and draws "
        "the start of all channels up to that of the first.",
    ),
    notes=(
        "Catastrophic overfitting: with long training or a larger eps the net can, within an epoch, learn to answer "
        "single steps only; its accuracy under PGD then falls to almost 0 while that under FGSM rises. Watch PGD "
        "accuracy on validation images and prefer a short schedule. The authors' code can stop early for this reason; "
        "here nothing does.",
        "A step costs 2 forward and backward passes; the first computes no gradients of weights.",
        "The training accuracy and loss are of the adversarial images.",
        "With train.compile the search is not compiled.",
    ),
)


class FastAdversarialTrainingInsert(SearchInsert):
    """Replaces training images by adversarial ones."""

    def inputs(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return self.search(x, key, lambda z: cross_entropy(z, y), random_start=True), y


@dataclass(frozen=True, kw_only=True)
class FastAdversarialTraining:
    """Fast adversarial training as a method, in linf.

    Attributes:
        eps: Largest change of a pixel, in pixels in [0, 1].
        alpha: Length of the step in units of eps, above 0.
    """

    eps: float = 8 / 255
    alpha: float = 1.25

    norm: ClassVar[SearchNorm] = "linf"
    steps: ClassVar[int] = 1

    def __post_init__(self) -> None:
        in_range("FastAdversarialTraining", "eps", self.eps, 0, 1)
        if self.eps == 0 or not 0 < self.alpha < 1000:
            raise ParameterError(
                f"FastAdversarialTraining: eps and alpha must be above 0; got {self.eps} and {self.alpha}."
            )

    @property
    def step_size(self) -> float:
        """Length of the step in pixels in [0, 1]."""
        return self.alpha * self.eps

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Change the batches that ``Objective`` gives to the model; changes no layer.

        Raises:
            AttachError: another method makes adversarial images already.
        """
        check_search_alone(model, CARD.name)
        return surgery.insert(model, FastAdversarialTrainingInsert(self, seed=seed, model=model), method=CARD.name)
