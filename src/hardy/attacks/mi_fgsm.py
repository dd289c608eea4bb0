"""MI-FGSM: small steps along an accumulated gradient, whose direction transfers better than that of the last one.

Dong, Liao, Pang, Su, Zhu, Hu, Li. "Boosting adversarial attacks with momentum".
CVPR 2018, https://arxiv.org/abs/1710.06081 (Alg. 1; for l2 its MI-FGM).

Deviations: gradients are divided by the mean of their absolute values, as in the authors' code, not by the sum: the
same points. With ``stop="first_success"`` an image leaves at its first adversarial point.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy.attacks._card import Card
from hardy.attacks._momentum import Path, advance, begin, check, own_rows
from hardy.attacks.goal import Goal
from hardy.attacks.losses import Loss, cross_entropy
from hardy.attacks.state import Ball, Query, Stop
from hardy.threats import Norm

__all__ = ["CARD", "MIFGSM"]

CARD = Card(
    name="mi_fgsm",
    summary="Steps along the accumulated gradient (momentum); made to transfer between nets.",
    paper="Dong et al., CVPR 2018",
    url="https://arxiv.org/abs/1710.06081",
    deviations=("an image leaves at the first adversarial point of its path",),
)


@dataclass(frozen=True, kw_only=True)
class MIFGSM:
    """MI-FGSM and its defaults, which are the paper's.

    Attributes:
        steps: Gradient steps, at least 1.
        step_size: Length of a step in pixels in [0, 1], in the norm of the threat. None: eps / steps.
        decay: What a step keeps of the gradients before it, at least 0 (mu); 0 is the iterative FGSM.
        stop: When an image leaves; see :class:`hardy.attacks.state.Attack`.
    """

    steps: int = 10
    step_size: float | None = None
    decay: float = 1.0
    stop: Stop = "first_success"

    name: ClassVar[str] = CARD.name
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    targeted: ClassVar[bool] = False
    hard_label: ClassVar[bool] = False
    restarts: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check("MIFGSM", steps=self.steps, step_size=self.step_size, decay=self.decay)

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
        """Ask for the gradient at each current point."""
        return Query(state.x_adv, own_rows(state), gradient=True)

    def tell(
        self,
        state: Path,
        logits: Float[Tensor, "n k"],  # noqa: ARG002  (the contract)
        gradient: Float[Tensor, "n c h w"] | None,
    ) -> Path:
        """Accumulate, step and project."""
        assert gradient is not None  # noqa: S101  (asked for)
        return advance(state, gradient, decay=self.decay)

    def finished(self, state: Path) -> Bool[Tensor, "n"]:
        """Say which rows have done all steps."""
        return state.step >= self.steps

    def result(self, state: Path) -> Float[Tensor, "n c h w"]:
        """Give the current points."""
        return state.x_adv
