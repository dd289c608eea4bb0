r"""SPSA: gradient steps without gradients, estimated from pairs of forward passes along random signs.

Uesato, O'Donoghue, van den Oord, Kohli. "Adversarial risk and the dangers of evaluating against weak attacks".
ICML 2018, https://arxiv.org/abs/1802.05666 (Algorithm 1).

With random signs v in {-1, 1}^d, :math:`(m(x + \delta v) - m(x - \delta v)) / (2 \delta) \cdot v` is an estimate of
the margin's gradient; the mean over many v feeds Adam. What has no useful gradient still has these differences.

Deviations: with ``stop="first_success"`` an image leaves at its first adversarial point, which may be one of a pair;
for this the current point is asked for too, once per step. As published, points of a pair may lie up to delta outside
ball and box (such points are never a success).
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
from hardy.attacks.norms import project
from hardy.attacks.state import Ball, Query, Stop, select
from hardy.errors import ParameterError
from hardy.threats import Norm

__all__ = ["CARD", "SPSA", "SPSAState"]

CARD = Card(
    name="spsa",
    summary="Gradient estimated from pairs of forward passes, followed by Adam; needs no gradients.",
    paper="Uesato et al., ICML 2018",
    url="https://arxiv.org/abs/1802.05666",
    deviations=("an image leaves at the first adversarial point that was asked for",),
)

PAIRS = 16  # pairs a row asks for at once: bounds the memory, changes nothing else
BETA1, BETA2, TINY = 0.9, 0.999, 1e-8  # Adam


@dataclass(frozen=True)
class SPSAState:
    """Rows of SPSA.

    Attributes:
        x: Images.
        x_adv: Current points.
        goal: What each row wants.
        threat: Budgets.
        key: Source of the random signs.
        step: Steps done.
        pair: Pairs of this step that were told.
        total: Sum of their estimates.
        mean: Adam's running mean of gradients.
        square: Adam's running mean of squared gradients.
    """

    x: Float[Tensor, "n c h w"]
    x_adv: Float[Tensor, "n c h w"]
    goal: Goal
    threat: Ball
    key: Int[Tensor, "n"]
    step: Int[Tensor, "n"]
    pair: Int[Tensor, "n"]
    total: Float[Tensor, "n c h w"]
    mean: Float[Tensor, "n c h w"]
    square: Float[Tensor, "n c h w"]


@dataclass(frozen=True, kw_only=True)
class SPSA:
    """SPSA and its defaults. A full run costs about 2 * samples * steps = 12,800 forward passes per image.

    Attributes:
        steps: Steps, at least 1.
        samples: Pairs of points per step, at least 1; 64 pairs are the 128 points of the authors' code in CleverHans.
            More make a better gradient: against strong nets use thousands.
        delta: Half the distance of a pair, per pixel in [0, 1], above 0; as in the authors' code.
        step_size: Adam's learning rate, or the length of a sign step, in pixels in [0, 1], above 0; as in the authors'
            code.
        adam: Follow the estimate with Adam; otherwise with its sign.
        stop: When an image leaves; see :class:`hardy.attacks.state.Attack`.
    """

    steps: int = 100
    samples: int = 64
    delta: float = 0.01
    step_size: float = 0.01
    adam: bool = True
    stop: Stop = "first_success"

    name: ClassVar[str] = CARD.name
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    targeted: ClassVar[bool] = False
    hard_label: ClassVar[bool] = False
    restarts: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.samples < 1:
            raise ParameterError(f"SPSA: steps and samples must be at least 1; got {self.steps} and {self.samples}.")
        if not (self.delta > 0 and self.step_size > 0):
            raise ParameterError(f"SPSA: delta and step_size must be above 0; got {self.delta} and {self.step_size}.")

    @property
    def loss(self) -> Loss:
        """Cross-entropy; never asked for: the estimate is of the margin, from the logits."""
        return cross_entropy

    def start(self, x: Float[Tensor, "n c h w"], y: Goal, threat: Ball, key: Int[Tensor, "n"]) -> SPSAState:
        """Begin at the image."""
        zero, none = torch.zeros_like(x), torch.zeros_like(key)
        return SPSAState(x, x, y, threat, key, step=none, pair=none, total=zero, mean=zero, square=zero)

    def ask(self, state: SPSAState) -> Query:
        """Ask for each row's next pairs and, once per step, for its current point."""
        row, k = self._pending(state).nonzero(as_tuple=True)
        shift = self.delta * _signs(state, self._at_once)[row, k]
        moved = ((state.pair == 0) & (state.step > 0)).nonzero()[:, 0]
        here = state.x_adv[row]
        return Query(
            torch.cat([here + shift, here - shift, state.x_adv[moved]]), torch.cat([row, row, moved]), gradient=False
        )

    def tell(
        self,
        state: SPSAState,
        logits: Float[Tensor, "m k"],
        gradient: Float[Tensor, "m c h w"] | None,  # noqa: ARG002  (the contract)
    ) -> SPSAState:
        """Add up the pairs' estimates; with all of a step's pairs, take the step and project."""
        pending = self._pending(state)
        row = pending.nonzero()[:, 0]
        margin = select(state.goal, torch.cat([row, row])).margin(logits[: 2 * len(row)])
        rise = torch.zeros_like(pending, dtype=state.x.dtype)
        rise[pending] = torch.nan_to_num((margin[: len(row)] - margin[len(row) :]) / (2 * self.delta))
        total = state.total + (rise[:, :, None, None, None] * _signs(state, self._at_once)).sum(dim=1)
        pair = state.pair + pending.sum(dim=1)
        state = replace(state, total=total, pair=pair)
        return self._step(state, ready=pair >= self.samples)

    def finished(self, state: SPSAState) -> Bool[Tensor, "n"]:
        """Say which rows have done all steps."""
        return state.step >= self.steps

    def result(self, state: SPSAState) -> Float[Tensor, "n c h w"]:
        """Give the current points."""
        return state.x_adv

    @property
    def _at_once(self) -> int:
        return min(self.samples, PAIRS)

    def _pending(self, state: SPSAState) -> Bool[Tensor, "n p"]:
        """Say which of the next pairs belong to the current step."""
        return state.pair[:, None] + torch.arange(self._at_once, device=state.x.device) < self.samples

    def _step(self, state: SPSAState, ready: Bool[Tensor, "n"]) -> SPSAState:
        """Move the rows that are ready down the mean estimate of the margin's slope."""
        slope = state.total / self.samples
        step = state.step + 1
        mean = BETA1 * state.mean + (1 - BETA1) * slope
        square = BETA2 * state.square + (1 - BETA2) * slope**2
        direction = slope.sign()
        if self.adam:
            bias1, bias2 = (1 - b ** step.to(slope.dtype)[:, None, None, None] for b in (BETA1, BETA2))
            direction = (mean / bias1) / ((square / bias2).sqrt() + TINY)
        ball, image = state.threat, ready[:, None, None, None]
        moved = project(state.x_adv - self.step_size * direction, x=state.x, eps=ball.eps, norm=ball.norm)
        return replace(
            state,
            x_adv=torch.where(image, moved, state.x_adv),
            step=torch.where(ready, step, state.step),
            pair=torch.where(ready, 0, state.pair),
            total=torch.where(image, 0, state.total),
            mean=torch.where(image, mean, state.mean),
            square=torch.where(image, square, state.square),
        )


def _signs(state: SPSAState, count: int) -> Float[Tensor, "n p c h w"]:
    """Draw the signs of each row's next pairs; functions of key, step and pair, so they need not be stored."""
    n, shape = len(state.x), state.x.shape[1:]
    number = state.pair[:, None] + torch.arange(count, device=state.x.device)
    key = seeding.fold(state.key, state.step).repeat_interleave(count)
    bits = seeding.uniform(seeding.fold(key, number.flatten()), 0, shape) < 0.5
    return torch.where(bits, -1.0, 1.0).to(state.x.dtype).reshape(n, count, *shape)
