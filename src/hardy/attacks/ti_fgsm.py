"""TI-FGSM: gradients blurred by a Gaussian, as if summed over shifted copies of the image.

Dong, Pang, Su, Zhu. "Evading defenses to transferable adversarial examples by translation-invariant attacks".
CVPR 2019, https://arxiv.org/abs/1904.02884 (TI-MI-FGSM with the Gaussian kernel).

Deviations: with ``stop="first_success"`` an image leaves at its first adversarial point. Momentum is on, as in the
authors' code; ``decay=0`` is TI-BIM. Input diversity (their TI-DIM) is left to :mod:`hardy.attacks.di_fgsm`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy.attacks._card import Card
from hardy.attacks._momentum import Path, advance, begin, check, own_rows
from hardy.attacks.goal import Goal
from hardy.attacks.losses import Loss, cross_entropy
from hardy.attacks.state import Ball, Query, Stop
from hardy.errors import ParameterError
from hardy.threats import Norm

__all__ = ["CARD", "TIFGSM", "gaussian_blur"]

CARD = Card(
    name="ti_fgsm",
    summary="Momentum steps along blurred gradients; made to transfer to nets that look elsewhere.",
    paper="Dong et al., CVPR 2019",
    url="https://arxiv.org/abs/1904.02884",
    deviations=(
        "the variant with momentum and without input diversity",
        "an image leaves at the first adversarial point of its path",
    ),
)


def gaussian_blur(values: Float[Tensor, "n c h w"], *, kernel_size: int, reach: float) -> Float[Tensor, "n c h w"]:
    """Convolve every channel with a Gaussian kernel of sum 1; outside the image is 0.

    Args:
        values: Any real values.
        kernel_size: Side of the kernel in pixels, odd.
        reach: Standard deviations from the kernel's centre to its border, above 0.
    """
    place = torch.linspace(-reach, reach, kernel_size, device=values.device, dtype=values.dtype)
    weights = torch.softmax(-0.5 * place**2, dim=0)  # the exponential, divided by its sum
    n, c, h, w = values.shape
    half, planes = kernel_size // 2, values.reshape(n * c, 1, h, w)
    planes = F.conv2d(planes, weights[None, None, :, None], padding=(half, 0))  # separable: columns, then rows
    return F.conv2d(planes, weights[None, None, None, :], padding=(0, half)).reshape(n, c, h, w)


@dataclass(frozen=True, kw_only=True)
class TIFGSM:
    """TI-FGSM and its defaults, which are those of the authors' code.

    Attributes:
        steps: Gradient steps, at least 1.
        step_size: Length of a step in pixels in [0, 1]. None: eps / steps.
        decay: What a step keeps of the gradients before it, at least 0 (mu); 0 is TI-BIM.
        kernel_size: Side of the blur in pixels, odd; 1 is no blur. The paper's 15 is for images of 299 pixels, a
            twentieth of the side; on small images take less, such as 3 or 5 for 32 pixels, of which 15 would mix half.
        reach: Standard deviations from the kernel's centre to its border, above 0. The paper's 3 with 15 pixels is a
            standard deviation of 7/3 pixels.
        stop: When an image leaves; see :class:`hardy.attacks.state.Attack`.
    """

    steps: int = 10
    step_size: float | None = None
    decay: float = 1.0
    kernel_size: int = 15
    reach: float = 3.0
    stop: Stop = "first_success"

    name: ClassVar[str] = CARD.name
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    targeted: ClassVar[bool] = False
    hard_label: ClassVar[bool] = False
    restarts: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check("TIFGSM", steps=self.steps, step_size=self.step_size, decay=self.decay)
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ParameterError(f"TIFGSM: kernel_size must be odd and at least 1; got {self.kernel_size}.")
        if not 0 < self.reach < float("inf"):
            raise ParameterError(f"TIFGSM: reach must be above 0 and finite; got {self.reach}.")

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
        """Blur, accumulate, step and project."""
        assert gradient is not None  # noqa: S101  (asked for)
        blurred = gaussian_blur(gradient, kernel_size=self.kernel_size, reach=self.reach)
        return advance(state, blurred, decay=self.decay)

    def finished(self, state: Path) -> Bool[Tensor, "n"]:
        """Say which rows have done all steps."""
        return state.step >= self.steps

    def result(self, state: Path) -> Float[Tensor, "n c h w"]:
        """Give the current points."""
        return state.x_adv
