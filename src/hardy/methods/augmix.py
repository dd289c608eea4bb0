"""AugMix: mix an image with chains of simple augmentations of it, and ask for consistent answers.

Hendrycks, Mu, Cubuk, Zoph, Gilmer, Lakshminarayanan. "AugMix: A simple data processing method to improve robustness
and uncertainty". ICLR 2020, https://arxiv.org/abs/1912.02781 (section 3, Algorithm). Ranges and sizes of the operations
follow the released code. Autocontrast and equalize are torchvision's; the others take other numbers for every image, so
they are a few batched lines each.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy import special
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.errors import AttachError, ParameterError
from hardy.methods._card import Card
from hardy.methods._checks import in_range
from hardy.methods.mixup import symmetric_beta

__all__ = ["CARD", "COLOURS", "WARPS", "AugMix", "augmix", "jensen_shannon", "warp", "warp_matrix"]

CARD = Card(
    name="augmix",
    summary="Mix every training image with a few random chains of simple augmentations of it, and keep the answers for "
    "the image and two such mixtures together. Made for robustness to corruptions.",
    paper="Hendrycks et al., ICLR 2020",
    url="https://arxiv.org/abs/1912.02781",
    kind="input",
    live=False,
    attaches="the input, pixels in [0, 1], gray or RGB; with jsd above 0 the loss instead",
    defaults_from="severity 3, 3 chains of 1 to 3 operations, alpha 1 and weight 12 are the defaults of the released "
    "CIFAR code (its four operations that overlap with the corruption benchmarks are off there, and absent here).",
    deviations=(
        "The three views go through the net one after the other; the paper puts them into one batch, so here batch "
        "norm sees each view alone, and updates its running statistics three times a step.",
        "An image stays in floating point between operations; the released code rounds to 8 bits after each.",
        "Half a pixel around the border, warps blend into the black outside, as torchvision does; the released code "
        "repeats the border pixel there.",
        "The views are made of the image as the other methods in the recipe left it.",
    ),
    notes=(
        "Making a mixture takes about 0.4 ms for an RGB image of 32 pixels on one CPU core (measured), a fifth of "
        "torchvision's AugMix, which shares its draws in a batch and so has to be called image by image.",
        "With jsd = 0 the net trains on one mixture of each image, without the consistency loss.",
        "With jsd above 0 a step costs three forward and backward passes, as in the paper; layers with random masks "
        "mask the three views alike.",
    ),
)


# What is done to which image changes from batch to batch, so there is nothing to compile.
@torch.compiler.disable  # type: ignore[untyped-decorator]  # untyped in torch
@torch.no_grad()
def augmix(
    x: Float[Tensor, "n c h w"],
    *,
    severity: float,
    width: int,
    depth: tuple[int, int],
    alpha: float,
    key: Int[Tensor, "n"],
) -> Float[Tensor, "n c h w"]:
    """Mix each image with random chains of augmentations of it: ``(1 - m) x + m sum_j w_j chain_j(x)``.

    m is drawn from Beta(alpha, alpha), w from Dirichlet(alpha, ..., alpha).

    Args:
        x: Images, pixels in [0, 1], with 1 or 3 channels.
        severity: Upper end of the strength of each operation, 1 to 10.
        width: Number of chains, at least 1.
        depth: Smallest and largest number of operations in a chain, at least 1.
        alpha: Parameter of both distributions, above 0.
        key: Source of randomness, one per row.

    Returns:
        New images in [0, 1], without gradients.
    """
    n, own, (low, high) = len(x), key.cpu(), depth  # what to do is decided on the CPU: one transfer a batch
    lengths = low + _below(own, 1, high - low + 1, (width,))
    which = _below(own, 2, len(COLOURS) + len(WARPS), (width, high))
    level = 0.1 + (severity - 0.1) * seeding.uniform(own, 3, (width, high))
    signed = level.where(seeding.uniform(own, 4, (width, high)) < 0.5, -level)
    which = which.where(torch.arange(high) < lengths[..., None], -1).reshape(n * width, high)
    signed = signed.reshape(n * width, high)
    chains = x.float().repeat_interleave(width, dim=0)
    for step in range(high):
        for number, colour in enumerate(COLOURS.values()):
            if len(rows := (which[:, step] == number).nonzero()[:, 0]):
                at = rows.to(x.device)
                chains[at] = colour(chains[at], signed[rows, step].abs().to(x.device))
        if len(rows := (which[:, step] >= len(COLOURS)).nonzero()[:, 0]):
            at = rows.to(x.device)
            matrix = warp_matrix(which[rows, step] - len(COLOURS), signed[rows, step], (x.shape[2], x.shape[3]))
            chains[at] = warp(chains[at], matrix.to(x.device))
    chains = chains.reshape(n, width, *x.shape[1:])
    m = symmetric_beta(own, 5, alpha)
    weights = torch.cat([1 - m[:, None], m[:, None] * _dirichlet(own, 6, alpha, width)], dim=1).to(x.device)
    mixed = weights[:, 0, None, None, None] * x
    for j in range(width):  # one after the other, so that a row does not depend on how a sum is split up
        mixed = mixed + weights[:, j + 1, None, None, None] * chains[:, j]
    return torch.empty_like(x).copy_(mixed.clamp(0, 1))


def _below(key: Tensor, counter: int, size: int, shape: tuple[int, ...]) -> Tensor:
    """Draw whole numbers from 0 to ``size - 1``."""
    return (seeding.uniform(key, counter, shape) * size).long()


def _dirichlet(key: Tensor, counter: int, alpha: float, size: int) -> Tensor:
    """Draw from Dirichlet(alpha, ..., alpha): gamma numbers, by the inverse of their distribution, over their sum."""
    u = seeding.uniform(key, counter, (size,)).double() + 2.0**-25  # the shift keeps the sum above 0
    gamma = torch.from_numpy(special.gammaincinv(alpha, u.numpy())).clamp(min=torch.finfo(torch.float64).tiny)
    return (gamma / gamma.sum(1, keepdim=True)).float()


def _autocontrast(x: Tensor, _level: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional as tv  # only here: importing it takes longer than this library

    return tv.autocontrast(x)  # type: ignore[attr-defined]  # no __all__ in torchvision


def _equalize(x: Tensor, _level: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional as tv

    return tv.equalize((255 * x).round().to(torch.uint8)).float() / 255  # type: ignore[attr-defined]  # likewise


def _posterize(x: Tensor, level: Tensor) -> Tensor:
    """Keep ``4 - int(0.4 level)`` bits of the 8."""
    step = 2.0 ** (4 + torch.floor(0.4 * level))[:, None, None, None]
    return torch.floor((255 * x).round() / step) * step / 255


def _solarize(x: Tensor, level: Tensor) -> Tensor:
    """Invert the pixels from ``256 - int(25.6 level)`` of 255 up."""
    threshold = (256 - torch.floor(25.6 * level))[:, None, None, None]
    return torch.where((255 * x).round() >= threshold, 1 - x, x)


COLOURS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "posterize": _posterize,
    "solarize": _solarize,
}
WARPS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def warp_matrix(kind: Int[Tensor, "n"], level: Float[Tensor, "n"], shape: tuple[int, int]) -> Float[Tensor, "n 2 3"]:
    """Give the affine map from a pixel of the warped image to where it comes from, from the top left corner.

    Args:
        kind: Number of the operation in ``WARPS``.
        level: Signed strength, -10 to 10: rotation by ``int(3 level)`` degrees about the centre, shear by
            ``0.03 level``, translation by ``int(level / 30)`` of the side.
        shape: Height and width in pixels.
    """
    h, w = shape
    zero = torch.zeros_like(level)
    angle = torch.deg2rad(torch.trunc(3 * level)).where(kind == 0, zero)
    shear_x, shear_y = ((0.03 * level).where(kind == i, zero) for i in (1, 2))
    move_x, move_y = (torch.trunc(level * side / 30).where(kind == i, zero) for i, side in ((3, w), (4, h)))
    cos, sin = torch.cos(angle), torch.sin(angle)
    first = [cos, shear_x - sin, move_x + (w - cos * w + sin * h) / 2]
    second = [shear_y + sin, cos, move_y + (h - sin * w - cos * h) / 2]
    return torch.stack([torch.stack(first, 1), torch.stack(second, 1)], 1)


def warp(x: Float[Tensor, "n c h w"], matrix: Float[Tensor, "n 2 3"]) -> Float[Tensor, "n c h w"]:
    """Sample each image at the places that its matrix gives, bilinearly, with black outside."""
    h, w = x.shape[2:]
    rows, columns = (torch.arange(side, device=x.device) + 0.5 for side in (h, w))
    a = matrix[:, :, :, None, None]  # (n, 2, 3, 1, 1); no matrix product: autocast would round it
    at = a[:, :, 0] * columns + a[:, :, 1] * rows[:, None] + a[:, :, 2]  # (n, 2, h, w)
    grid = torch.stack([2 * at[:, 0] / w - 1, 2 * at[:, 1] / h - 1], dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def jensen_shannon(logits: Sequence[Float[Tensor, "n k"]]) -> Float[Tensor, "n"]:
    r"""Measure how far several answers to one image differ: :math:`\frac1V \sum_v KL(p_v \| \bar p)`.

    Args:
        logits: Answers to V views of the same images.

    Returns:
        float32 in [0, log V], one number per image, with gradients.
    """
    log_p = torch.stack([each.float().log_softmax(1) for each in logits])
    log_mean = log_p.logsumexp(0) - math.log(len(logits))
    return (log_p.exp() * (log_p - log_mean)).sum(2).mean(0)


class AugMixInsert(surgery.Insert):
    """Replaces training images by mixtures, or adds the consistency loss of the image and two mixtures."""

    def inputs(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return (x if self.spec.jsd > 0 else self._view(x, key)), y

    def terms(self, context: surgery.Context) -> dict[str, Tensor]:
        if self.spec.jsd == 0:
            return {}
        key = seeding.fold(context.key, self.root)
        views = [context.forward(self._view(context.x, seeding.fold(key, number))) for number in (1, 2)]
        return {"jsd": self.spec.jsd * jensen_shannon([context.logits, *views]).mean()}

    @property
    def passes(self) -> surgery.Passes:
        further = 2 if self.spec.jsd > 0 else 0
        return surgery.Passes(forward=further, backward=further)

    def _view(self, x: Tensor, key: Tensor) -> Tensor:
        s: AugMix = self.spec
        mixed: Tensor = augmix(x, severity=s.severity, width=s.width, depth=s.depth, alpha=s.alpha, key=key)
        return mixed


@dataclass(frozen=True, kw_only=True)
class AugMix:
    """AugMix as a method; the defaults are those of the paper.

    Attributes:
        severity: Upper end of the strength of each operation, 1 to 10.
        width: Number of chains, at least 1.
        depth: Smallest and largest number of operations in a chain, at least 1.
        alpha: Parameter of the Beta and Dirichlet distributions of the shares, above 0.
        jsd: Weight of the consistency loss, at least 0; 0: train on mixtures only.
    """

    severity: float = 3.0
    width: int = 3
    depth: tuple[int, int] = (1, 3)
    alpha: float = 1.0
    jsd: float = 12.0

    def __post_init__(self) -> None:
        in_range("AugMix", "severity", self.severity, 1, 10)
        if self.width < 1:
            raise ParameterError(f"AugMix: width must be at least 1; got {self.width}.")
        if not 1 <= self.depth[0] <= self.depth[1]:
            raise ParameterError(f"AugMix: depth must be 1 <= low <= high; got {self.depth}.")
        if not 0 < self.alpha < math.inf:
            raise ParameterError(f"AugMix: alpha must be above 0 and finite; got {self.alpha}.")
        if not 0 <= self.jsd < math.inf:
            raise ParameterError(f"AugMix: jsd must be at least 0 and finite; got {self.jsd}.")

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Change the batches or the loss of ``Objective``; changes no layer.

        Raises:
            AttachError: the images are neither gray nor RGB.
        """
        if example.shape[1] not in (1, 3):
            raise AttachError(
                f"augmix: images must have 1 or 3 channels; got {example.shape[1]}. Autocontrast and equalize are "
                "made for photographs; use cutout, mixup or gaussian_noise on other data."
            )
        return surgery.insert(model, AugMixInsert(self, seed=seed), method=CARD.name)
