"""Projected gradient descent: steps along the steepest direction, projected back into ball and box.

Madry, Makelov, Schmidt, Tsipras, Vladu. "Towards deep learning models resistant to adversarial attacks".
ICLR 2018, https://arxiv.org/abs/1706.06083 (Sec. 2.1). For l1 the sparse steps of Tramer, Boneh. "Adversarial training
and robustness for multiple perturbations". NeurIPS 2019, https://arxiv.org/abs/1904.13000 (Sec. 5, SLIDE).

Deviations: with ``stop="first_success"`` an image leaves at its first adversarial point instead of the last step. The
verdicts are the same or stronger: any point on the path that fools the net is an adversarial example. For l1 the
projection gives the closest point of ball and box together.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy.attacks._card import Card
from hardy.attacks.goal import Goal
from hardy.attacks.losses import Loss, cross_entropy
from hardy.attacks.norms import project, random_start, steepest_step
from hardy.attacks.state import Ball, Query, Stop
from hardy.errors import ParameterError
from hardy.threats import Norm

__all__ = ["CARD", "PGD", "PGDState"]

CARD = Card(
    name="pgd",
    summary="Iterated gradient steps with projection, from random starts.",
    paper="Madry et al., ICLR 2018",
    url="https://arxiv.org/abs/1706.06083",
    deviations=("an image leaves at the first adversarial point of its path",),
)


@dataclass(frozen=True)
class PGDState:
    """Rows of PGD: images, current points, budgets, step sizes and steps done."""

    x: Float[Tensor, "n c h w"]
    x_adv: Float[Tensor, "n c h w"]
    threat: Ball
    step_size: Float[Tensor, "n"]
    step: Int[Tensor, "n"]


@dataclass(frozen=True, kw_only=True)
class PGD:
    """PGD and its defaults.

    Attributes:
        steps: Gradient steps per restart, at least 1.
        step_size: Length of a step in pixels in [0, 1], in the norm of the threat. None: 2.5 * eps / steps, so that a
            straight path can cross the ball and turn (the rule of the authors' ``robustness`` library).
        restarts: Runs per image, from different starting points.
        random_start: Begin at a uniform point of the ball; otherwise at the image, and restarts are equal.
        l1_share: For l1, the share of values, in (0, 1], that move in a step: those with the largest gradient that the
            box lets move (1 - q of SLIDE; its authors' code has q = 99 %).
        targeted: Restart r aims at the r-th most likely wrong class.
        stop: When an image leaves; see :class:`hardy.attacks.state.Attack`.
    """

    steps: int = 20
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    l1_share: float = 0.01
    targeted: bool = False
    stop: Stop = "first_success"

    name: ClassVar[str] = CARD.name
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    hard_label: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ParameterError(f"PGD: steps and restarts must be at least 1; got {self.steps} and {self.restarts}.")
        if self.step_size is not None and not self.step_size > 0:
            raise ParameterError(
                f"PGD: step_size must be above 0, or None for 2.5 * eps / steps; got {self.step_size}."
            )
        if not 0 < self.l1_share <= 1:
            raise ParameterError(f"PGD: l1_share must be in (0, 1], a share of all values; got {self.l1_share}.")

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
    ) -> PGDState:
        """Begin at a random point of the ball (clamped to the box), or at the image."""
        x_adv = x
        if self.random_start:
            delta = random_start(key, 0, x.shape[1:], eps=threat.eps, norm=threat.norm)
            x_adv = project(x + delta, x=x, eps=threat.eps, norm=threat.norm)
        size = 2.5 * threat.eps / self.steps if self.step_size is None else torch.full_like(threat.eps, self.step_size)
        return PGDState(x, x_adv, threat, size, torch.zeros_like(key))

    def ask(self, state: PGDState) -> Query:
        """Ask for the gradient at each current point."""
        return Query(state.x_adv, torch.arange(len(state.x), device=state.x.device), gradient=True)

    def tell(
        self,
        state: PGDState,
        logits: Float[Tensor, "n k"],  # noqa: ARG002  (the contract)
        gradient: Float[Tensor, "n c h w"] | None,
    ) -> PGDState:
        """Take a step and project."""
        assert gradient is not None  # noqa: S101  (asked for)
        ball = state.threat
        moved = state.x_adv + state.step_size[:, None, None, None] * self._direction(state, gradient)
        return replace(state, x_adv=project(moved, x=state.x, eps=ball.eps, norm=ball.norm), step=state.step + 1)

    def _direction(self, state: PGDState, gradient: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if state.threat.norm != "l1":
            return steepest_step(gradient, norm=state.threat.norm)
        blocked = torch.where(gradient > 0, state.x_adv >= 1, state.x_adv <= 0)  # by the box
        share = torch.full_like(state.step_size, self.l1_share)
        return steepest_step(gradient.masked_fill(blocked, 0), norm="l1", share=share)

    def finished(self, state: PGDState) -> Bool[Tensor, "n"]:
        """Say which rows have done all steps."""
        return state.step >= self.steps

    def result(self, state: PGDState) -> Float[Tensor, "n c h w"]:
        """Give the current points."""
        return state.x_adv
