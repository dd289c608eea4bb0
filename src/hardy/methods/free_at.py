"""Free adversarial training: replay every batch, and let each backward pass step both the weights and the perturbation.

Shafahi, Najibi, Ghiasi, Xu, Dickerson, Studer, Davis, Taylor, Goldstein. "Adversarial training for free!".
NeurIPS 2019, https://arxiv.org/abs/1904.12843 (Algorithm 1).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hardy import surgery
from hardy.attacks.norms import random_start
from hardy.errors import ParameterError
from hardy.methods._card import Card
from hardy.methods._checks import in_range
from hardy.methods._search import check_search_alone, wide

__all__ = ["CARD", "FreeAdversarialTraining"]

CARD = Card(
    name="free_at",
    summary="Train on every batch several times in a row; each time one backward pass gives the step of the weights "
    "and the next step of the perturbation, so that the search costs no passes of its own.",
    paper="Shafahi et al., NeurIPS 2019",
    url="https://arxiv.org/abs/1904.12843",
    kind="input",
    live=False,
    attaches="the input, pixels in [0, 1], and the optimizer's steps",
    defaults_from="8 replays, eps 8/255 and a step of eps: the authors' CIFAR-10 code.",
    deviations=(
        "The perturbation of a batch begins at a random point of the ball. In the original it is that of whatever "
        "image had the same place in the batch before; here it would make an image's training depend on the order of "
        "the others and on the number of devices. The ascent of the last replay, which only the next batch would see, "
        "is left out.",
        "Methods with random masks draw the same ones in all replays of a batch.",
    ),
    notes=(
        "An epoch costs as many forward and backward passes as replays, and steps the optimizer as often: divide "
        "train.epochs by replays, as the authors do, for the cost of a plain training.",
        "train.ema averages once a batch, and the learning rate moves once a batch.",
        "It steps inside hardy.train only. In a loop of your own Objective alone gives images at a random point of the "
        "ball; call attached[0].insert.around_step(closure, step), then step(), as for awp.",
        "The training accuracy and loss are of the last replay.",
    ),
)


class FreeAdversarialTrainingInsert(surgery.Insert):
    """Moves training images, and replays the step."""

    def __init__(self, spec: "FreeAdversarialTraining", *, seed: int) -> None:
        super().__init__(spec, seed=seed)
        self.replaying = False
        self.delta: Tensor | None = None  # the perturbation of the batch, from its second replay on
        self.leaf: Tensor | None = None  # the perturbation that the last forward pass saw, for its gradient

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # untyped in torch; what it keeps is not of the graph
    def inputs(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        delta = self.delta
        if delta is None:
            eps = wide(x).new_full((len(x),), self.spec.eps)
            start = random_start(key, 0, x.shape[1:], eps=eps, norm="linf")
            delta = torch.empty_like(x).copy_(start)
        if self.replaying:
            delta = delta.detach().requires_grad_()
            self.leaf = delta
        return (x + delta).clamp(0, 1), y

    def around_step(self, closure: Callable[[], dict[str, Tensor]], step: Callable[[], None]) -> dict[str, Tensor]:
        self.replaying = True
        try:
            losses = closure()
            for _ in range(self.spec.replays - 1):
                self._ascend()
                step()
                losses = closure()
        finally:
            self.replaying, self.delta, self.leaf = False, None, None
        return losses

    def _ascend(self) -> None:
        assert self.leaf is not None  # noqa: S101  (the closure has run)
        eps, slope = self.spec.eps, self.leaf.grad
        if slope is not None:
            self.delta = (self.leaf.detach() + eps * slope.nan_to_num(nan=0.0).sign()).clamp(-eps, eps)

    @property
    def passes(self) -> surgery.Passes:
        return surgery.Passes(rounds=self.spec.replays)


@dataclass(frozen=True, kw_only=True)
class FreeAdversarialTraining:
    """Free adversarial training as a method, in linf.

    Attributes:
        eps: Largest change of a pixel and length of a step, in pixels in [0, 1].
        replays: How often a batch is used in a row, at least 1; the optimizer steps as often.
    """

    eps: float = 8 / 255
    replays: int = 8

    def __post_init__(self) -> None:
        in_range("FreeAdversarialTraining", "eps", self.eps, 0, 1)
        if self.replays < 1:
            raise ParameterError(f"FreeAdversarialTraining: replays must be at least 1; got {self.replays}.")

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Change the batches of ``Objective`` and the steps of the loop; changes no layer.

        Raises:
            AttachError: another method makes adversarial images, or moves weights around a step.
        """
        check_search_alone(model, CARD.name)
        return surgery.insert(model, FreeAdversarialTrainingInsert(self, seed=seed), method=CARD.name)
