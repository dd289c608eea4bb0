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
from jaxtyping import Float
from torch import Tensor

from hardy.attacks._card import Card
from hardy.attacks._momentum import Momentum, Path
from hardy.errors import ParameterError

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
class TIFGSM(Momentum):
    """TI-FGSM and its defaults, which are those of the authors' code.

    Steps, their length, momentum (``decay``) and ``stop`` are those of ``Momentum``.

    Attributes:
        kernel_size: Side of the blur in pixels, odd; 1 is no blur. The paper's 15 is for images of 299 pixels, a
            twentieth of the side; on small images take less, such as 3 or 5 for 32 pixels, of which 15 would mix half.
        reach: Standard deviations from the kernel's centre to its border, above 0. The paper's 3 with 15 pixels is a
            standard deviation of 7/3 pixels.
    """

    kernel_size: int = 15
    reach: float = 3.0

    name: ClassVar[str] = CARD.name

    def __post_init__(self) -> None:
        Momentum.__post_init__(self)
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ParameterError(f"TIFGSM: kernel_size must be odd and at least 1; got {self.kernel_size}.")
        if not 0 < self.reach < float("inf"):
            raise ParameterError(f"TIFGSM: reach must be above 0 and finite; got {self.reach}.")

    def mend(self, state: Path, gradient: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:  # noqa: ARG002  (base)
        """Blur the gradients."""
        return gaussian_blur(gradient, kernel_size=self.kernel_size, reach=self.reach)
