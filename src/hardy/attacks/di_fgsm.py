"""DI-FGSM: momentum steps along gradients taken at randomly shrunk and shifted copies of the image.

Xie, Zhang, Zhou, Bai, Wang, Ren, Yuille. "Improving transferability of adversarial examples with input diversity".
CVPR 2019, https://arxiv.org/abs/1803.06978 (M-DI2-FGSM; without momentum DI2-FGSM).

Deviations: the paper enlarges 299 pixels to at most 330 and pads to 330, for nets that take any size. Here the image
keeps its size: it is shrunk to a side of at least ``resize`` times its own, 0.9 as in 299 / 330, and padded back with
zeros (torchattacks does so too). Pixels are interpolated linearly (the authors' code takes the nearest), zero is black
(theirs, in [-1, 1], is gray), every place of the padding is possible, and every row draws its own (theirs: the batch).

The model answers at the copies. A copy is linear in the image, so its transpose brings the gradient back exactly. What
fools the net at a copy is no success unless the copy itself is inside ball and box: an image leaves at steps without
a copy, or at the end of its path.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hardy import seeding
from hardy.attacks._card import Card
from hardy.attacks._momentum import Momentum, Path, own_rows
from hardy.attacks.state import Query
from hardy.errors import ParameterError

__all__ = ["CARD", "DIFGSM", "shrink_matrix"]

CARD = Card(
    name="di_fgsm",
    summary="Momentum steps along gradients at randomly shrunk and padded copies; made to transfer.",
    paper="Xie et al., CVPR 2019",
    url="https://arxiv.org/abs/1803.06978",
    deviations=(
        "images are shrunk and padded back to their size, where the paper enlarges them",
        "linear instead of nearest interpolation; one draw per image instead of one per batch",
    ),
)


def shrink_matrix(side: int, *, size: Int[Tensor, "n"], offset: Int[Tensor, "n"]) -> Float[Tensor, "n side side"]:
    """Give, per row, the matrix that shrinks a line of pixels linearly and pads it with zeros.

    ``A @ line`` has ``line`` resized to ``size`` at ``offset``, and zeros elsewhere. Pixels are areas, interpolated
    between the two nearest (torch's ``interpolate`` with ``align_corners=False`` and no anti-aliasing).

    Args:
        side: Pixels of the line, before and after.
        size: Pixels it is resized to, from 1 to ``side``.
        offset: Zeros before them, from 0 to ``side - size``.
    """
    place = torch.arange(side, device=size.device)
    inner = place - offset[:, None]  # which of the resized pixels stands at each output place
    source = (inner + 0.5) * (side / size)[:, None] - 0.5  # where it comes from
    weight = (1 - (source[:, :, None] - place).abs()).clamp(min=0)
    return torch.where(((inner >= 0) & (inner < size[:, None]))[:, :, None], weight, 0)


@dataclass(frozen=True, kw_only=True)
class DIFGSM(Momentum):
    """DI-FGSM and its defaults, which are the paper's M-DI2-FGSM.

    Steps, their length, momentum (``decay``) and ``stop`` are those of ``Momentum``.

    Attributes:
        probability: Chance, in [0, 1], that a step looks at a copy and not at the point itself (p).
        resize: Smallest side of a copy as a share of the image's, above 0 and below 1.
    """

    probability: float = 0.5
    resize: float = 0.9

    name: ClassVar[str] = CARD.name

    def __post_init__(self) -> None:
        Momentum.__post_init__(self)
        if not 0 <= self.probability <= 1:
            raise ParameterError(f"DIFGSM: probability must be in [0, 1]; got {self.probability}.")
        if not 0 < self.resize < 1:
            raise ParameterError(f"DIFGSM: resize must be above 0 and below 1; got {self.resize}.")

    def ask(self, state: Path) -> Query:
        """Ask for the gradient at each current point or at its copy."""
        copied, rows, columns = self._draw(state)
        points = torch.where(copied, rows @ state.x_adv @ columns.mT, state.x_adv)
        return Query(points, own_rows(state), gradient=True)

    def mend(self, state: Path, gradient: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Bring the gradients back from the copies."""
        copied, rows, columns = self._draw(state)
        return torch.where(copied, rows.mT @ gradient @ columns, gradient)

    def _draw(self, state: Path) -> tuple[Tensor, Tensor, Tensor]:
        """Draw each row's copy: whether there is one, and the matrices that act on rows and on columns of pixels.

        A function of key and step, so it need not be stored. Both sides shrink by the same draw.
        """
        u = seeding.uniform(seeding.fold(state.key, state.step), 0, (4,))
        h, w = state.x.shape[2:]
        rows, columns = (_one_side(side, self.resize, u[:, 1], u[:, i]) for side, i in ((h, 2), (w, 3)))
        copied = (u[:, 0] < self.probability)[:, None, None, None]
        return copied, rows[:, None].to(state.x.dtype), columns[:, None].to(state.x.dtype)


def _one_side(side: int, resize: float, u: Float[Tensor, "n"], v: Float[Tensor, "n"]) -> Tensor:
    """Turn two uniform draws into a matrix: sizes from ``resize * side`` up to ``side - 1``, then all offsets."""
    smallest = max(1, int(resize * side))
    size = smallest + (u * (side - smallest)).long()
    return shrink_matrix(side, size=size, offset=(v * (side - size + 1)).long())
