"""Adversarial weight perturbation: take the gradient where a small change of the weights has made the loss worst.

Wu, Xia, Wang. "Adversarial weight perturbation helps robust generalization". NeurIPS 2020,
https://arxiv.org/abs/2004.05884 (Eq. 8 to 12, Algorithm 1).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hardy import surgery
from hardy.errors import AttachError
from hardy.methods._card import Card
from hardy.methods._checks import in_range
from hardy.methods._search import check_search_alone, searched_once
from hardy.perturbed import WeightBall, perturbable
from hardy.sites import BOX, check_plain

__all__ = ["CARD", "AdversarialWeightPerturbation"]

CARD = Card(
    name="awp",
    summary="Move the weights of every layer a small step up the loss, take the gradient there, and step from where "
    "they were. Flattens the loss over the weights; made to go with pgd_at, trades or mart.",
    paper="Wu et al., NeurIPS 2020",
    url="https://arxiv.org/abs/2004.05884",
    kind="loss",
    live=False,
    attaches="the weights of all convolutions and linear layers, around a training step",
    defaults_from="gamma 0.005 and one step: the authors' TRADES-AWP code. That code begins with it in epoch 10; here "
    "it is on from the first.",
    deviations=(
        "That the move is one step, of a length relative to each layer's weights, is from memory of the paper and its "
        "code, not read again.",
        "The weights go back, to the last bit, before the optimizer steps; the authors' code steps at the moved "
        "weights and goes back after, so that weight decay sees the moved ones.",
        "The gradient that moves the weights is that of the whole training loss, also of terms other methods add.",
        "The direction is that of a second pass in the same net; the authors' code keeps a second net for it. Running "
        "statistics see the pass at the moved weights only, as there.",
    ),
    notes=(
        "A step runs forward and backward twice; adversarial images are searched once and used in both.",
        "Alone it trains on plain images: a method for flatness, not for robustness to changed images.",
        "It works inside hardy.train; Objective alone is not changed. In a loop of your own, with closure() that "
        "zeroes gradients and runs forward and backward, and step() that steps the optimizer: "
        "attached[0].insert.around_step(closure, step), then step().",
        "The training accuracy and loss are those at the moved weights.",
        "It cannot be combined with free_at, which steps the weights between its replays.",
    ),
)


class AdversarialWeightPerturbationInsert(surgery.Insert):
    """Moves the weights around a step. It looks at its model, which a copy of the model copies along."""

    def __init__(self, spec: "AdversarialWeightPerturbation", *, seed: int, model: nn.Module) -> None:
        super().__init__(spec, seed=seed)
        self.held = (model,)  # in a tuple, as a module that is its own descendant cannot be walked through

    def around_step(self, closure: Callable[[], dict[str, Tensor]], step: Callable[[], None]) -> dict[str, Tensor]:
        model = self.held[0]
        with searched_once(model):
            buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
            closure()
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            with moved_weights(model, gamma=self.spec.gamma):
                return closure()

    @property
    def passes(self) -> surgery.Passes:
        return surgery.Passes(rounds=2)


@contextmanager
def moved_weights(model: nn.Module, *, gamma: float) -> Iterator[None]:
    """Run the block with every layer's weights moved along their gradient by ``gamma`` times their length.

    Afterwards they are as they were to the last bit, also if the block raises; gradients stay those of the block.
    Weights without a gradient (frozen ones), and those of methods, do not move.
    """
    weights = {
        name: weight
        for name, weight in perturbable(model).items()
        if weight.grad is not None and not name.startswith(f"{BOX}.")
    }
    slopes = {
        name: weight.grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        for name, weight in weights.items()
        if weight.grad is not None
    }
    deltas = WeightBall.around(weights, radius=gamma).steepest(slopes)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.add_(deltas[name])
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])


@dataclass(frozen=True, kw_only=True)
class AdversarialWeightPerturbation:
    """Adversarial weight perturbation as a method.

    Attributes:
        gamma: Length of the move of each layer's weights, relative to theirs, in [0, 1].
    """

    gamma: float = 0.005

    def __post_init__(self) -> None:
        in_range("AdversarialWeightPerturbation", "gamma", self.gamma, 0, 1)

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Change the steps of the training loop; changes no layer.

        Raises:
            AttachError: the net has no convolutions and linear layers, weights that are computed, or free_at.
        """
        check_plain(model)
        if not perturbable(model):
            raise AttachError(
                f"{CARD.name}: the net must have convolutions or linear layers; got {type(model).__name__} with none."
            )
        check_search_alone(model, CARD.name)
        return surgery.insert(
            model, AdversarialWeightPerturbationInsert(self, seed=seed, model=model), method=CARD.name
        )
