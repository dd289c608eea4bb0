"""FGSM: one step of full size along the steepest direction.

Goodfellow, Shlens, Szegedy. "Explaining and harnessing adversarial examples".
ICLR 2015, https://arxiv.org/abs/1412.6572 (Sec. 4).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy.attacks._card import Card
from hardy.attacks.goal import Goal
from hardy.attacks.losses import Loss, cross_entropy
from hardy.attacks.norms import project, steepest_step
from hardy.attacks.state import Ball, Query, Stop
from hardy.threats import Norm

__all__ = ["CARD", "FGSM", "FGSMState"]

CARD = Card(
    name="fgsm",
    summary="One gradient step of full size; the optimum on a linear net, weak on others.",
    paper="Goodfellow et al., ICLR 2015",
    url="https://arxiv.org/abs/1412.6572",
    deviations=("defined for l2 too, with the normalised gradient",),
)


@dataclass(frozen=True)
class FGSMState:
    """Rows of FGSM: images, current points, budgets, and whether the step is done."""

    x: Float[Tensor, "n c h w"]
    x_adv: Float[Tensor, "n c h w"]
    threat: Ball
    done: Bool[Tensor, "n"]


@dataclass(frozen=True, kw_only=True)
class FGSM:
    """FGSM has nothing to set but where it aims.

    Attributes:
        targeted: Aim at the most likely wrong class.
        stop: When an image leaves; see :class:`hardy.attacks.state.Attack`.
    """

    targeted: bool = False
    stop: Stop = "first_success"

    name: ClassVar[str] = CARD.name
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    hard_label: ClassVar[bool] = False
    restarts: ClassVar[int] = 1

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
    ) -> FGSMState:
        """Begin at the image."""
        return FGSMState(x, x, threat, torch.zeros_like(key, dtype=torch.bool))

    def ask(self, state: FGSMState) -> Query:
        """Ask for the gradient at the image."""
        return Query(state.x, torch.arange(len(state.x), device=state.x.device), gradient=True)

    def tell(
        self,
        state: FGSMState,
        logits: Float[Tensor, "n k"],  # noqa: ARG002  (the contract)
        gradient: Float[Tensor, "n c h w"] | None,
    ) -> FGSMState:
        """Step to the border of the ball, then clamp to the box."""
        assert gradient is not None  # noqa: S101  (asked for)
        ball = state.threat
        moved = state.x + ball.eps[:, None, None, None] * steepest_step(gradient, norm=ball.norm)
        x_adv = project(moved, x=state.x, eps=ball.eps, norm=ball.norm)
        return replace(state, x_adv=x_adv, done=torch.ones_like(state.done))

    def finished(self, state: FGSMState) -> Bool[Tensor, "n"]:
        """Say which rows have stepped."""
        return state.done

    def result(self, state: FGSMState) -> Float[Tensor, "n c h w"]:
        """Give the current points."""
        return state.x_adv
