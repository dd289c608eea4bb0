r"""FMN: normalised gradient steps inside a ball whose radius grows and shrinks until it touches the boundary.

Pintor, Roli, Brendel, Biggio. "Fast minimum-norm adversarial attacks through adaptive norm constraints".
NeurIPS 2021, https://arxiv.org/abs/2102.12827 (Algorithm 1).

At a point that does not fool the net, the radius becomes the current distance plus the linear estimate of what is left,
:math:`|m| / \|\nabla m\|_q` (q dual to the norm), until a first adversarial point is known, and grows by
1 + gamma afterwards. At an adversarial point it shrinks by 1 - gamma, at least to the smallest distance so far. The
point moves along the gradient, normalised to l2 length 1 for both norms, and is projected into the ball. Step size and
gamma fall along a cosine.

Deviations: a step is clamped to the box before it is projected into the ball, not after. For linf this is the same. For
l2 the published order loses length wherever pixels are at the border of the box, and may stall short of the boundary.
A point counts with a margin of 1e-5 of the largest logit, so that it is still adversarial when predicted in another
batch; the linear estimate aims at twice that. An image for which nothing was found inside the threat's ball comes back
pulled to its border.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy.attacks._card import Card
from hardy.attacks._min_norm import pull_inside, safe_margin, surely_reached
from hardy.attacks.goal import Goal
from hardy.attacks.losses import Loss, logit_margin
from hardy.attacks.norms import norm_of, project, steepest_step
from hardy.attacks.state import Ball, Query, Stop
from hardy.errors import ParameterError
from hardy.threats import Norm

__all__ = ["CARD", "FMN", "FMNState"]

CARD = Card(
    name="fmn",
    summary="Gradient steps in a ball whose radius adapts to the decision boundary; smallest perturbation.",
    paper="Pintor et al., NeurIPS 2021",
    url="https://arxiv.org/abs/2102.12827",
    deviations=("for l2 a step is clamped to the box before it is projected into the ball, not after",),
)

LAST_STEP = 0.01  # the step size ends at this share of the first one
LAST_GAMMA = 1e-3


@dataclass(frozen=True)
class FMNState:
    """Rows of FMN.

    Attributes:
        x: Images.
        x_adv: Current points.
        goal: What each row wants.
        threat: Norm and budgets.
        radius: Radius of the adaptive ball.
        step: Steps done.
        best: Nearest adversarial point so far.
        nearest: Its distance; inf for none.
    """

    x: Float[Tensor, "n c h w"]
    x_adv: Float[Tensor, "n c h w"]
    goal: Goal
    threat: Ball
    radius: Float[Tensor, "n"]
    step: Int[Tensor, "n"]
    best: Float[Tensor, "n c h w"]
    nearest: Float[Tensor, "n"]


@dataclass(frozen=True, kw_only=True)
class FMN:
    """FMN and its defaults, those of the authors' version in Foolbox.

    Attributes:
        steps: Gradient steps, at least 1.
        step_size: l2 length of the first step in pixels in [0, 1], above 0; the last is a hundredth of it.
        gamma: Share by which the radius first grows or shrinks, in (0, 1); falls to 0.001.
        stop: When an image leaves; see :class:`hardy.attacks.state.Attack`.
    """

    steps: int = 100
    step_size: float = 1.0
    gamma: float = 0.05
    stop: Stop = "min_norm"

    name: ClassVar[str] = CARD.name
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    targeted: ClassVar[bool] = False
    hard_label: ClassVar[bool] = False
    restarts: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ParameterError(f"FMN: steps must be at least 1; got {self.steps}.")
        if not self.step_size > 0:
            raise ParameterError(f"FMN: step_size must be above 0; got {self.step_size}.")
        if not 0 < self.gamma < 1:
            raise ParameterError(f"FMN: gamma must be in (0, 1); got {self.gamma}.")

    @property
    def loss(self) -> Loss:
        """Minus the margin: best other logit minus the correct one."""
        return logit_margin

    def start(
        self,
        x: Float[Tensor, "n c h w"],
        y: Goal,
        threat: Ball,
        key: Int[Tensor, "n"],
    ) -> FMNState:
        """Begin at the image, with no bound on the radius."""
        unknown = torch.full_like(threat.eps, torch.inf)
        return FMNState(x, x, y, threat, radius=unknown, step=torch.zeros_like(key), best=x, nearest=unknown)

    def ask(self, state: FMNState) -> Query:
        """Ask for the gradient at each current point."""
        return Query(state.x_adv, torch.arange(len(state.x), device=state.x.device), gradient=True)

    def tell(
        self, state: FMNState, logits: Float[Tensor, "n k"], gradient: Float[Tensor, "n c h w"] | None
    ) -> FMNState:
        """Keep the point if it is the nearest adversarial one, adapt the radius, step and project."""
        assert gradient is not None  # noqa: S101  (asked for)
        norm, fooled = state.threat.norm, surely_reached(state.goal, logits)
        length = norm_of(state.x_adv - state.x, norm=norm)
        nearer = fooled & (length <= state.nearest)
        nearest = torch.where(nearer, length, state.nearest)
        falling = (1 + torch.cos(math.pi * state.step / self.steps)) / 2
        gamma = LAST_GAMMA + (self.gamma - LAST_GAMMA) * falling
        across = state.goal.margin(logits).abs() + 2 * safe_margin(logits)  # to the boundary and surely past it
        left = _distance_left(across, gradient, norm)
        grown = torch.where(nearest < torch.inf, state.radius * (1 + gamma), length + left)
        radius = torch.where(fooled, torch.minimum(state.radius * (1 - gamma), nearest), grown)
        radius = torch.minimum(radius, norm_of(torch.maximum(state.x, 1 - state.x), norm=norm))  # farthest box corner
        step_size = self.step_size * (LAST_STEP + (1 - LAST_STEP) * falling)[:, None, None, None]
        moved = (state.x_adv + step_size * steepest_step(gradient, norm="l2")).clamp(0, 1)
        return replace(
            state,
            x_adv=project(moved, x=state.x, eps=radius, norm=norm),
            radius=radius,
            step=state.step + 1,
            best=torch.where(nearer[:, None, None, None], state.x_adv, state.best),
            nearest=nearest,
        )

    def finished(self, state: FMNState) -> Bool[Tensor, "n"]:
        """Say which rows have done all steps."""
        return state.step >= self.steps

    def result(self, state: FMNState) -> Float[Tensor, "n c h w"]:
        """Give the nearest adversarial points, else the current ones; pulled into the ball where they are outside."""
        found = (state.nearest < torch.inf)[:, None, None, None]
        return pull_inside(torch.where(found, state.best, state.x_adv), state.x, state.threat)


def _distance_left(fall: Float[Tensor, "n"], gradient: Float[Tensor, "n c h w"], norm: Norm) -> Float[Tensor, "n"]:
    """Say how far the margin falls by so much, as if it were linear; inf for a zero gradient."""
    dual = gradient.flatten(1).abs().sum(dim=1) if norm == "linf" else norm_of(gradient, norm="l2")
    return torch.where(dual > 0, fall / torch.where(dual > 0, dual, 1), torch.inf)
