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
from jaxtyping import Float
from torch import Tensor

from hardy.attacks._card import Card
from hardy.attacks._momentum import Momentum, Path, own_rows
from hardy.attacks.state import Query
from hardy.errors import ParameterError

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
class NIFGSM(Momentum):
    """NI-FGSM and its defaults, which are the paper's.

    Steps, their length, momentum (``decay``) and ``stop`` are those of ``Momentum``.

    Attributes:
        scales: Copies of each point, the i-th times 2^-i, whose gradients are averaged; from 1, NI-FGSM, to 32. The
            paper's SI-NI-FGSM is 5 (m). Each costs a pass.
    """

    scales: int = 1

    name: ClassVar[str] = CARD.name

    def __post_init__(self) -> None:
        Momentum.__post_init__(self)
        if not 1 <= self.scales <= 32:
            raise ParameterError(f"NIFGSM: scales must be from 1 to 32; got {self.scales}.")

    def ask(self, state: Path) -> Query:
        """Ask for the gradient ahead of each current point, at full and at dimmed brightness."""
        ahead = state.x_adv + self.decay * state.step_size[:, None, None, None] * state.momentum
        copies = ahead[:, None] * self._factors(state)
        return Query(copies.flatten(0, 1), own_rows(state).repeat_interleave(self.scales), gradient=True)

    def mend(self, state: Path, gradient: Float[Tensor, "m c h w"]) -> Float[Tensor, "n c h w"]:
        """Average over the copies."""
        found = gradient.reshape(len(state.x), self.scales, *gradient.shape[1:])
        return (found * self._factors(state)).mean(dim=1)  # d(x / 2^i) / dx = 2^-i

    def _factors(self, state: Path) -> Float[Tensor, "s 1 1 1"]:
        powers = torch.arange(self.scales, device=state.x.device, dtype=state.x.dtype)
        return torch.exp2(-powers)[:, None, None, None]
