"""VMI-FGSM: momentum steps along the gradient corrected by what the neighbourhood said one step ago.

Wang, He. "Enhancing the transferability of adversarial attacks through variance tuning".
CVPR 2021, https://arxiv.org/abs/2103.15571 (Alg. 1).

Deviations: gradients are divided by the mean of their absolute values, as in the authors' code, not by the sum: the
same points. With ``stop="first_success"`` an image leaves at its first adversarial point.

A step asks about the current point and all its neighbours at once: 21 points per row. Lower the batch size where
memory is short. Neighbours may lie outside ball and box, as in the paper; there they never count as a success.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hardy import seeding
from hardy.attacks._card import Card
from hardy.attacks._momentum import Momentum, Path, own_rows
from hardy.attacks.state import Query
from hardy.errors import ParameterError

__all__ = ["CARD", "VMIFGSM"]

CARD = Card(
    name="vmi_fgsm",
    summary="Momentum steps along gradients tuned by their variance among random neighbours; costly, transfers well.",
    paper="Wang and He, CVPR 2021",
    url="https://arxiv.org/abs/2103.15571",
    deviations=("an image leaves at the first adversarial point of its path",),
)


@dataclass(frozen=True, kw_only=True)
class VMIFGSM(Momentum):
    """VMI-FGSM and its defaults, which are the paper's.

    Steps, their length, momentum (``decay``) and ``stop`` are those of ``Momentum``.

    Attributes:
        neighbors: Random points around the current one per step, at least 1 (N).
        beta: Half the side of the cube that they are drawn from, in units of eps, above 0.
    """

    neighbors: int = 20
    beta: float = 1.5

    name: ClassVar[str] = CARD.name

    def __post_init__(self) -> None:
        Momentum.__post_init__(self)
        if self.neighbors < 1:
            raise ParameterError(f"VMIFGSM: neighbors must be at least 1; got {self.neighbors}. Without any: MIFGSM.")
        if not 0 < self.beta < float("inf"):
            raise ParameterError(f"VMIFGSM: beta must be above 0 and finite; got {self.beta}.")

    def ask(self, state: Path) -> Query:
        """Ask for the gradient at each current point, then at its neighbours."""
        key, shape = seeding.fold(state.key, state.step), state.x.shape[1:]
        radius = self.beta * state.threat.eps[:, None, None, None]
        draws = (seeding.uniform(key, i, shape) for i in range(self.neighbors))  # one by one: int64 inside
        points = torch.stack([state.x_adv, *(state.x_adv + (2 * u - 1) * radius for u in draws)], dim=1)
        return Query(points.flatten(0, 1), own_rows(state).repeat_interleave(self.neighbors + 1), gradient=True)

    def tell(
        self,
        state: Path,
        logits: Float[Tensor, "m k"],  # noqa: ARG002  (the contract)
        gradient: Float[Tensor, "m c h w"] | None,
    ) -> Path:
        """Step along the gradient corrected by the last variance (v in the paper); take the new one."""
        assert gradient is not None  # noqa: S101  (asked for)
        found = gradient.reshape(len(state.key), self.neighbors + 1, *gradient.shape[1:])
        own, around = found[:, 0], found[:, 1:].mean(dim=1)
        return replace(self.advance(state, own), correction=around - own)
