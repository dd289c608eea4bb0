"""PGD adversarial training: train on the worst images that a few steps of PGD find around the training images.

Madry, Makelov, Schmidt, Tsipras, Vladu. "Towards deep learning models resistant to adversarial attacks". ICLR 2018,
https://arxiv.org/abs/1706.06083 (Eq. 2.1).
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from hardy import surgery
from hardy.methods._card import Card
from hardy.methods._search import SearchInsert, check_budget, check_search_alone, cross_entropy

__all__ = ["CARD", "PGDAdversarialTraining"]

CARD = Card(
    name="pgd_at",
    summary="Train on adversarial images, which PGD searches anew around every batch. The baseline of adversarial "
    "training: robust, and several times as expensive as plain training.",
    paper="Madry et al., ICLR 2018",
    url="https://arxiv.org/abs/1706.06083",
    kind="input",
    live=False,
    attaches="the input, pixels in [0, 1]",
    defaults_from="eps 8/255, a step size of 2/255 and a random start: the configuration file of the authors' CIFAR-10 "
    "challenge. Its 10 steps are for training here; for training the paper names 7 (from memory, not read again).",
    deviations=(
        "The search sees the net as it is at test time: running statistics of batch norms, which it leaves alone, and "
        "no train-only methods. The images it finds then train the net as usual.",
        "Pixels are in [0, 1]; the authors' code has [0, 255].",
    ),
    notes=(
        "A step costs steps + 1 forward and backward passes; those of the search compute no gradients of weights.",
        "Of soft labels (mixup before it in the recipe), the search increases the soft cross-entropy.",
        "Put it after methods that change images; what comes later changes the adversarial images.",
        "The training accuracy and loss are of the adversarial images.",
        "With train.compile the search is not compiled.",
    ),
)


class PGDAdversarialTrainingInsert(SearchInsert):
    """Replaces training images by adversarial ones."""

    def inputs(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return self.search(x, key, lambda z: cross_entropy(z, y), random_start=self.spec.random_start), y


@dataclass(frozen=True, kw_only=True)
class PGDAdversarialTraining:
    """PGD adversarial training as a method.

    Attributes:
        norm: "linf" or "l2".
        eps: Radius of the ball, in pixels in [0, 1].
        steps: Steps of the search, at least 1.
        step_size: Length of a step, in pixels in [0, 1], in the norm.
        random_start: Begin at a random point of the ball; otherwise at the image.
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: float = 8 / 255
    steps: int = 10
    step_size: float = 2 / 255
    random_start: bool = True

    def __post_init__(self) -> None:
        check_budget("PGDAdversarialTraining", norm=self.norm, eps=self.eps, steps=self.steps, step_size=self.step_size)

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Change the batches that ``Objective`` gives to the model; changes no layer.

        Raises:
            AttachError: another method makes adversarial images already.
        """
        check_search_alone(model, CARD.name)
        return surgery.insert(model, PGDAdversarialTrainingInsert(self, seed=seed, model=model), method=CARD.name)
