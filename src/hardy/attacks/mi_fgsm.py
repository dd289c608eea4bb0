"""MI-FGSM: small steps along an accumulated gradient, whose direction transfers better than that of the last one.

Dong, Liao, Pang, Su, Zhu, Hu, Li. "Boosting adversarial attacks with momentum".
CVPR 2018, https://arxiv.org/abs/1710.06081 (Alg. 1; for l2 its MI-FGM).

Deviations: gradients are divided by the mean of their absolute values, as in the authors' code, not by the sum: the
same points. With ``stop="first_success"`` an image leaves at its first adversarial point.
"""

from dataclasses import dataclass
from typing import ClassVar

from hardy.attacks._card import Card
from hardy.attacks._momentum import Momentum
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
class MIFGSM(Momentum):
    """MI-FGSM with its paper's defaults, those of ``Momentum``; ``decay=0`` is the iterative FGSM."""

    name: ClassVar[str] = CARD.name
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
