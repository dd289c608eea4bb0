"""What the momentum attacks share: the path of a row, one step along its accumulated gradient, and the moves around."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy.attacks.goal import Goal
from hardy.attacks.losses import Loss, cross_entropy
from hardy.attacks.norms import project, steepest_step
from hardy.attacks.state import Ball, Query, Stop
from hardy.errors import ParameterError
from hardy.threats import Norm

__all__ = ["Momentum", "Path", "own_rows"]


@dataclass(frozen=True)
class Path:
    """Rows of a momentum attack.

    Attributes:
        x: Images.
        x_adv: Current points.
        momentum: Accumulated gradients.
        correction: What is added to the next gradient before it is accumulated; 0 but in VMI-FGSM.
        threat: Budgets.
        step_size: Lengths of a step.
        step: Steps done.
        key: One int64 per row.
    """

    x: Float[Tensor, "n c h w"]
    x_adv: Float[Tensor, "n c h w"]
    momentum: Float[Tensor, "n c h w"]
    correction: Float[Tensor, "n c h w"]
    threat: Ball
    step_size: Float[Tensor, "n"]
    step: Int[Tensor, "n"]
    key: Int[Tensor, "n"]


@dataclass(frozen=True, kw_only=True)
class Momentum:
    """An attack that steps along accumulated gradients; a paper says where they are taken and how they are mended.

    Attributes:
        steps: Gradient steps, at least 1.
        step_size: Length of a step in pixels in [0, 1], in the norm of the threat. None: eps / steps, so that all steps
            together reach the border.
        decay: What a step keeps of the gradients before it, at least 0 (mu); 0 for no momentum.
        stop: When an image leaves; see :class:`hardy.attacks.state.Attack`.
    """

    steps: int = 10
    step_size: float | None = None
    decay: float = 1.0
    stop: Stop = "first_success"

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    targeted: ClassVar[bool] = False
    hard_label: ClassVar[bool] = False
    restarts: ClassVar[int] = 1

    def __post_init__(self) -> None:
        who = type(self).__name__
        if self.steps < 1:
            raise ParameterError(f"{who}: steps must be at least 1; got {self.steps}.")
        if self.step_size is not None and not self.step_size > 0:
            raise ParameterError(f"{who}: step_size must be above 0, or None for eps / steps; got {self.step_size}.")
        if not 0 <= self.decay < float("inf"):
            raise ParameterError(f"{who}: decay must be at least 0 and finite, 0 for no momentum; got {self.decay}.")

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
    ) -> Path:
        """Begin at the image, with no momentum."""
        size = threat.eps / self.steps if self.step_size is None else torch.full_like(threat.eps, self.step_size)
        still = torch.zeros_like(x)
        return Path(x, x, still, still, threat, size, torch.zeros_like(key), key)

    def ask(self, state: Path) -> Query:
        """Ask for the gradient at each current point."""
        return Query(state.x_adv, own_rows(state), gradient=True)

    def mend(self, state: Path, gradient: Float[Tensor, "m c h w"]) -> Float[Tensor, "n c h w"]:  # noqa: ARG002  (paper)
        """Turn the gradients at the points asked about into one gradient per row, at its current point."""
        return gradient

    def tell(
        self,
        state: Path,
        logits: Float[Tensor, "m k"],  # noqa: ARG002  (the contract)
        gradient: Float[Tensor, "m c h w"] | None,
    ) -> Path:
        """Mend and advance."""
        assert gradient is not None  # noqa: S101  (asked for)
        return self.advance(state, self.mend(state, gradient))

    def advance(self, state: Path, gradient: Float[Tensor, "n c h w"]) -> Path:
        """Accumulate, step and project.

        g <- decay * g + gradient / mean(|gradient|), then one step of length ``step_size`` along the sign of g (linf)
        or along g / ||g||_2 (l2). The papers divide by the sum of absolute values, their code by the mean: with both, g
        points the same way, but only with the mean is it of the order of 1 per value, which NI-FGSM's look-ahead needs.
        """
        total = gradient + state.correction
        size = total.abs().mean(dim=(1, 2, 3), keepdim=True)
        momentum = self.decay * state.momentum + total / torch.where(size > 0, size, 1)
        ball = state.threat
        moved = state.x_adv + state.step_size[:, None, None, None] * steepest_step(momentum, norm=ball.norm)
        x_adv = project(moved, x=state.x, eps=ball.eps, norm=ball.norm)
        return replace(state, x_adv=x_adv, momentum=momentum, step=state.step + 1)

    def finished(self, state: Path) -> Bool[Tensor, "n"]:
        """Say which rows have done all steps."""
        return state.step >= self.steps

    def result(self, state: Path) -> Float[Tensor, "n c h w"]:
        """Give the current points."""
        return state.x_adv


def own_rows(path: Path) -> Int[Tensor, "n"]:
    """Number the rows: what ``Query.row`` is where every row asks for one point."""
    return torch.arange(len(path.x), device=path.x.device)
