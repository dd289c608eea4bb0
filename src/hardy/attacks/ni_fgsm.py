"""NI-FGSM: momentum that looks ahead (Nesterov); with several ``scales`` SI-NI-FGSM, which averages over dimmed copies.

Lin, Song, He, Wang, Hopcroft. "Nesterov accelerated gradient and scale invariance for adversarial attacks".
ICLR 2020, https://arxiv.org/abs/1908.06281 (Alg. 1).

Deviations: the look-ahead uses gradients divided by the mean of their absolute values, as the authors' code does; with
the sum, as the paper writes, it would hardly be longer than rounding. Pixels are scaled in [0, 1], so copies fade to
black (in the authors' code, which works in [-1, 1], to gray).

The points asked about are not the points reached: they lie ahead of them, often outside the ball. They count as a
success only inside it; otherwise an image leaves at the end of its path.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy.attacks._card import Card
from hardy.attacks._momentum import Path, advance, begin, check, own_rows
from hardy.attacks.goal import Goal
from hardy.attacks.losses import Loss, cross_entropy
from hardy.attacks.state import Ball, Query, Stop
from hardy.errors import ParameterError
from hardy.threats import Norm

__all__ = ["CARD", "NIFGSM"]

CARD = Card(
    name="ni_fgsm",
    summary="Momentum steps with the gradient taken ahead (Nesterov), on request over dimmed copies (SI-NI).",
    paper="Lin et al., ICLR 2020",
    url="https://arxiv.org/abs/1908.06281",
    deviations=(
        "gradients are divided by their mean absolute value, as in the authors' code, where the paper has the sum",
        "copies are dimmed in [0, 1], to black, where the authors' code dims in [-1, 1], to gray",
    ),
)


@dataclass(frozen=True, kw_only=True)
class NIFGSM:
    """NI-FGSM and its defaults, which are the paper's.

    Attributes:
        steps: Gradient steps, at least 1.
        step_size: Length of a step in pixels in [0, 1]. None: eps / steps.
        decay: What a step keeps of the gradients before it, at least 0 (mu).
        scales: Copies of each point, the i-th times 2^-i, whose gradients are averaged; from 1, NI-FGSM, to 32. The
            paper's SI-NI-FGSM is 5 (m). Each costs a pass.
        stop: When an image leaves; see :class:`hardy.attacks.state.Attack`.
    """

    steps: int = 10
    step_size: float | None = None
    decay: float = 1.0
    scales: int = 1
    stop: Stop = "first_success"

    name: ClassVar[str] = CARD.name
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    targeted: ClassVar[bool] = False
    hard_label: ClassVar[bool] = False
    restarts: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check("NIFGSM", steps=self.steps, step_size=self.step_size, decay=self.decay)
        if not 1 <= self.scales <= 32:
            raise ParameterError(f"NIFGSM: scales must be from 1 to 32; got {self.scales}.")

    @property
    def loss(self) -> Loss:
        """Cross-entropy."""
        return cross_entropy

    def start(
        self,
        x: Float[Tensor, "n c h w"],
        y: Goal,  # noqa: ARG002  (the engine takes the loss)
        threat: Ball,
        key: Int[Tensor, "n"],  # noqa: ARG002  (nothing is random)
    ) -> Path:
        """Begin at the image."""
        return begin(x, threat, steps=self.steps, step_size=self.step_size)

    def ask(self, state: Path) -> Query:
        """Ask for the gradient ahead of each current point, at full and at dimmed brightness."""
        ahead = state.x_adv + self.decay * state.step_size[:, None, None, None] * state.momentum
        copies = ahead[:, None] * self._factors(state)
        return Query(copies.flatten(0, 1), own_rows(state).repeat_interleave(self.scales), gradient=True)

    def tell(
        self,
        state: Path,
        logits: Float[Tensor, "m k"],  # noqa: ARG002  (the contract)
        gradient: Float[Tensor, "m c h w"] | None,
    ) -> Path:
        """Average over the copies, accumulate, step from the current point and project."""
        assert gradient is not None  # noqa: S101  (asked for)
        found = gradient.reshape(len(state.x), self.scales, *gradient.shape[1:])
        pulled = (found * self._factors(state)).mean(dim=1)  # d(x / 2^i) / dx = 2^-i
        return advance(state, pulled, decay=self.decay)

    def finished(self, state: Path) -> Bool[Tensor, "n"]:
        """Say which rows have done all steps."""
        return state.step >= self.steps

    def result(self, state: Path) -> Float[Tensor, "n c h w"]:
        """Give the current points."""
        return state.x_adv

    def _factors(self, state: Path) -> Float[Tensor, "s 1 1 1"]:
        powers = torch.arange(self.scales, device=state.x.device, dtype=state.x.dtype)
        return torch.exp2(-powers)[:, None, None, None]
