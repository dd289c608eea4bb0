"""Random noise of the same budget: the control that every gradient attack must beat.

Carlini et al. "On evaluating adversarial robustness". 2019, https://arxiv.org/abs/1902.06705 (Sec. 4).

linf alternates uniform noise in the ball with random corners (every value +eps or -eps); l2 draws uniform directions of
length eps; l1 draws uniformly from the ball. The worst of several draws is kept.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy import seeding
from hardy.attacks._card import Card
from hardy.attacks.goal import Goal
from hardy.attacks.losses import Loss, cross_entropy
from hardy.attacks.norms import on_sphere, project, random_start
from hardy.attacks.state import Ball, Query, Stop
from hardy.errors import ParameterError
from hardy.threats import Norm

__all__ = ["CARD", "Noise", "NoiseState"]

CARD = Card(
    name="noise",
    summary="The worst of several random perturbations; a control, not an attack.",
    paper="Carlini et al., 2019",
    url="https://arxiv.org/abs/1902.06705",
)


@dataclass(frozen=True)
class NoiseState:
    """Rows of the control: images, the worst point so far with its margin, goals, budgets, keys and draws done."""

    x: Float[Tensor, "n c h w"]
    x_adv: Float[Tensor, "n c h w"]
    margin: Float[Tensor, "n"]
    goal: Goal
    threat: Ball
    key: Int[Tensor, "n"]
    draw: Int[Tensor, "n"]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The control and its defaults.

    Attributes:
        draws: Random perturbations per image, at least 1.
        stop: When an image leaves; see :class:`hardy.attacks.state.Attack`.
    """

    draws: int = 10
    stop: Stop = "first_success"

    name: ClassVar[str] = CARD.name
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    targeted: ClassVar[bool] = False
    hard_label: ClassVar[bool] = False
    restarts: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ParameterError(f"Noise: draws must be at least 1; got {self.draws}.")

    @property
    def loss(self) -> Loss:
        """Cross-entropy; never asked for."""
        return cross_entropy

    def start(self, x: Float[Tensor, "n c h w"], y: Goal, threat: Ball, key: Int[Tensor, "n"]) -> NoiseState:
        """Begin with the image and a margin that every draw beats."""
        margin = torch.full_like(threat.eps, torch.inf)
        return NoiseState(x, x, margin, y, threat, key, torch.zeros_like(key))

    def ask(self, state: NoiseState) -> Query:
        """Draw each row's next point."""
        return Query(_draw(state), torch.arange(len(state.x), device=state.x.device), gradient=False)

    def tell(
        self,
        state: NoiseState,
        logits: Float[Tensor, "n k"],
        gradient: Float[Tensor, "n c h w"] | None,  # noqa: ARG002  (the contract)
    ) -> NoiseState:
        """Keep the point if it is the worst so far."""
        margin = state.goal.margin(logits)
        worse = margin < state.margin
        x_adv = torch.where(worse[:, None, None, None], _draw(state), state.x_adv)
        return replace(state, x_adv=x_adv, margin=torch.where(worse, margin, state.margin), draw=state.draw + 1)

    def finished(self, state: NoiseState) -> Bool[Tensor, "n"]:
        """Say which rows have drawn all."""
        return state.draw >= self.draws

    def result(self, state: NoiseState) -> Float[Tensor, "n c h w"]:
        """Give the worst points so far."""
        return state.x_adv


def _draw(state: NoiseState) -> Float[Tensor, "n c h w"]:
    """Give point number ``draw`` of each row; a function of the key, so it need not be stored."""
    shape, ball = state.x.shape[1:], state.threat
    if ball.norm == "l2":
        delta = on_sphere(state.key, state.draw, shape, eps=ball.eps)
    elif ball.norm == "l1":
        delta = random_start(seeding.fold(state.key, state.draw), 0, shape, eps=ball.eps, norm="l1")
    else:
        values = 2 * seeding.uniform(seeding.fold(state.key, state.draw), 0, shape) - 1
        corner = (state.draw % 2 == 1)[:, None, None, None]
        delta = torch.where(corner, torch.where(values < 0, -1.0, 1.0), values) * ball.eps[:, None, None, None]
    return project(state.x + delta, x=state.x, eps=ball.eps, norm=ball.norm)
