"""VMI-FGSM: momentum steps along the gradient corrected by what the neighbourhood said one step ago.

Wang, He. "Enhancing the transferability of adversarial attacks through variance tuning".
CVPR 2021, https://arxiv.org/abs/2103.15571 (Alg. 1).

Deviations: gradients are divided by the mean of their absolute values, as in the authors' code, not by the sum: the
same points. With ``stop="first_success"`` an image leaves at its first adversarial point.

A step asks about the current point and all its neighbours at once: 21 points per row. Lower the batch size where
memory is short. Neighbours may lie outside ball and box, as in the paper; there they never count as a success.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy import seeding
from hardy.attacks._card import Card
from hardy.attacks._momentum import Path, advance, begin, check, own_rows
from hardy.attacks.goal import Goal
from hardy.attacks.losses import Loss, cross_entropy
from hardy.attacks.state import Ball, Query, Stop
from hardy.errors import ParameterError
from hardy.threats import Norm

__all__ = ["CARD", "VMIFGSM", "VMIFGSMState"]

CARD = Card(
    name="vmi_fgsm",
    summary="Momentum steps along gradients tuned by their variance among random neighbours; costly, transfers well.",
    paper="Wang and He, CVPR 2021",
    url="https://arxiv.org/abs/2103.15571",
    deviations=("an image leaves at the first adversarial point of its path",),
)


@dataclass(frozen=True)
class VMIFGSMState:
    """Rows of VMI-FGSM: paths, gradient variances of the last step (v in the paper) and keys."""

    path: Path
    variance: Float[Tensor, "n c h w"]
    key: Int[Tensor, "n"]


@dataclass(frozen=True, kw_only=True)
class VMIFGSM:
    """VMI-FGSM and its defaults, which are the paper's.

    Attributes:
        steps: Gradient steps, at least 1; each costs ``neighbors + 1`` passes.
        step_size: Length of a step in pixels in [0, 1]. None: eps / steps.
        decay: What a step keeps of the gradients before it, at least 0 (mu).
        neighbors: Random points around the current one per step, at least 1 (N).
        beta: Half the side of the cube that they are drawn from, in units of eps, above 0.
        stop: When an image leaves; see :class:`hardy.attacks.state.Attack`.
    """

    steps: int = 10
    step_size: float | None = None
    decay: float = 1.0
    neighbors: int = 20
    beta: float = 1.5
    stop: Stop = "first_success"

    name: ClassVar[str] = CARD.name
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    targeted: ClassVar[bool] = False
    hard_label: ClassVar[bool] = False
    restarts: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check("VMIFGSM", steps=self.steps, step_size=self.step_size, decay=self.decay)
        if self.neighbors < 1:
            raise ParameterError(f"VMIFGSM: neighbors must be at least 1; got {self.neighbors}. Without any: MIFGSM.")
        if not 0 < self.beta < float("inf"):
            raise ParameterError(f"VMIFGSM: beta must be above 0 and finite; got {self.beta}.")

    @property
    def loss(self) -> Loss:
        """Cross-entropy."""
        return cross_entropy

    def start(
        self,
        x: Float[Tensor, "n c h w"],
        y: Goal,  # noqa: ARG002  (the engine takes the loss)
        threat: Ball,
        key: Int[Tensor, "n"],
    ) -> VMIFGSMState:
        """Begin at the image, with no variance."""
        return VMIFGSMState(begin(x, threat, steps=self.steps, step_size=self.step_size), torch.zeros_like(x), key)

    def ask(self, state: VMIFGSMState) -> Query:
        """Ask for the gradient at each current point, then at its neighbours."""
        path, key = state.path, seeding.fold(state.key, state.path.step)
        shape, radius = path.x.shape[1:], self.beta * path.threat.eps[:, None, None, None]
        draws = (seeding.uniform(key, i, shape) for i in range(self.neighbors))  # one by one: int64 inside
        points = torch.stack([path.x_adv, *(path.x_adv + (2 * u - 1) * radius for u in draws)], dim=1)
        rows = own_rows(path).repeat_interleave(self.neighbors + 1)
        return Query(points.flatten(0, 1), rows, gradient=True)

    def tell(
        self,
        state: VMIFGSMState,
        logits: Float[Tensor, "m k"],  # noqa: ARG002  (the contract)
        gradient: Float[Tensor, "m c h w"] | None,
    ) -> VMIFGSMState:
        """Correct by the last variance, accumulate, step and project; take the new variance."""
        assert gradient is not None  # noqa: S101  (asked for)
        found = gradient.reshape(len(state.key), self.neighbors + 1, *gradient.shape[1:])
        own, around = found[:, 0], found[:, 1:].mean(dim=1)
        path = advance(state.path, own + state.variance, decay=self.decay)
        return VMIFGSMState(path, around - own, state.key)

    def finished(self, state: VMIFGSMState) -> Bool[Tensor, "n"]:
        """Say which rows have done all steps."""
        return state.path.step >= self.steps

    def result(self, state: VMIFGSMState) -> Float[Tensor, "n c h w"]:
        """Give the current points."""
        return state.path.x_adv
