"""Soft threshold: shrink every value towards zero by a learned amount per channel, so that weak responses vanish.

The activation of unfolded sparse coding, ``S_lam(u) = sign(u) max(|u| - lam, 0)``, put into a CNN. Inspired by
Shultzman, Azar, Rodrigues, Eldar. "Generalization and estimation error bounds for model-based neural networks". ICLR
2023, https://arxiv.org/abs/2304.09802, whose released code was read; its theorem is about the recovery of sparse
vectors and says nothing about image classifiers.
"""

import math
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hardy import surgery
from hardy.errors import AttachError, ParameterError, ShapeError
from hardy.methods._card import Card
from hardy.methods._checks import one_of, sites_given
from hardy.methods._places import Position, outputs

__all__ = ["CARD", "Shrinkage", "SoftThreshold", "shrinkage_slope", "soft_threshold"]

SHARPNESS = 8.0  # of the slope of the twin: it is 1 / (1 + e^8) at 0, 1/2 at the threshold
LEAK = 1e-6  # share of a value that the twin lets through, so that a ReLU behind it still sees its sign

CARD = Card(
    name="soft_threshold",
    summary="Shrink the early features towards zero by a learned threshold per channel, so that weak responses vanish, "
    "in training and at test time.",
    paper="inspired by Shultzman et al., ICLR 2023 (arXiv 2304.09802)",
    url="https://arxiv.org/abs/2304.09802",
    kind="layer",
    live=True,
    twin="The same values, but for a millionth of its input added, and in the backward pass a smooth slope: sigmoid(8 "
    "(|u| - threshold) / threshold) instead of the step from 0 to 1. What is silent thus has a gradient, the larger "
    "the closer it is to waking up. The identity, the usual stand-in, was tried first: on small nets on the digits it "
    "led PGD astray and broke fewer images than the gradient of the net itself.",
    attaches="the outputs of convolutions with a kernel above 1 (all, if there are none) in the stem and the first "
    "half of the stages, after their norm and before the activation",
    defaults_from="ours, not tuned: behind a norm values have a variance near 1 at first, and 0.1 silences about 8 % "
    "of them. The released code begins with 3.3, for other data.",
    deviations=(
        "In the paper it takes the place of the ReLU in nets that unfold an iterative algorithm, with one threshold "
        "per layer; here it comes before the activation of any CNN, with one per channel.",
        "The thresholds are the softplus of what is trained, so that they stay above 0.",
        "The convolutional form of the algorithm itself (LISTA) is left out.",
    ),
    notes=(
        "A masking warning: where values are cut off, the gradient is exactly zero, and attacks that follow it "
        "overrate the net. hardy.evaluate attacks through the twin as well; elsewhere, use queries and transfer.",
        "Between a norm and a ReLU only its positive side is left: ReLU(S(u)) = ReLU(u - threshold), which a lower "
        "bias of the norm gives as well. It does more where a shortcut is added or another activation follows, and at "
        "position 'post_conv', before the norm, where its size has to fit the scale of the outputs.",
        "It enlarges no difference between two inputs (1-Lipschitz in every lp norm), so bounds on a net can go "
        "through it.",
        "Thresholds are vectors: hardy.train applies no weight decay to them.",
        "No gain in robustness has been measured.",
    ),
)


def soft_threshold(u: Float[Tensor, "*shape"], lam: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
    """Compute ``sign(u) max(|u| - lam, 0)``, as ``u`` minus ``u`` clamped to [-lam, lam].

    Args:
        u: Any real values.
        lam: Thresholds, at least 0, of a shape that broadcasts to that of ``u``.

    Returns:
        Values no further from 0 than those of ``u``, exactly 0 where ``|u| <= lam``.

    Example:
        >>> soft_threshold(torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0]), torch.tensor([1.0]))
        tensor([-2.,  0.,  0.,  0.,  2.])
    """
    return u - u.clamp(-lam, lam)


def shrinkage_slope(u: Float[Tensor, "*shape"], lam: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
    """Compute the slope that stands in for the derivative of :func:`soft_threshold`, which is 0 or 1.

    Args:
        u: Any real values.
        lam: Thresholds, at least 0.

    Returns:
        ``sigmoid(8 (|u| - lam) / lam)``, in (0, 1]: 1/2 at the threshold, 0.0003 at 0, next to 1 from twice the
        threshold.
    """
    return torch.sigmoid(SHARPNESS * (u.abs() - lam) / lam.clamp(min=torch.finfo(lam.dtype).tiny))


class Shrinkage(nn.Module):
    """:func:`soft_threshold` with a learned threshold per channel, the same in both modes.

    Also an activation for nets of one's own; what Hardy has not attached has no twin, so give ``hardy.evaluate`` one: a
    copy of the net with ``soft = True`` in these layers.

    Args:
        channels: Number of channels.
        threshold: Initial threshold of each, above 0.

    Attributes:
        raw: What is trained; the thresholds are its softplus.
        soft: Act as the twin, for attacks: the values of the net, and a gradient where there was none.
    """

    def __init__(self, channels: int, *, threshold: float) -> None:
        super().__init__()
        start = threshold + math.log(-math.expm1(-threshold))  # softplus(start) = threshold
        self.raw = nn.Parameter(torch.full((channels,), start, dtype=torch.float32))
        self.soft = False

    @property
    def lam(self) -> Float[Tensor, "c"]:
        """The thresholds."""
        return F.softplus(self.raw)

    def forward(self, x: Float[Tensor, "n c ..."]) -> Float[Tensor, "n c ..."]:
        if x.shape[1] != len(self.raw):
            raise ShapeError(
                f"soft_threshold: the thresholds are for {len(self.raw)} channels; got {tuple(x.shape)}. Calls of one "
                "module with other channels need a method each: name one call in sites, as in 'relu#0'."
            )
        lam = self.lam.to(x.dtype).reshape(-1, *[1] * (x.ndim - 2))
        y = soft_threshold(x, lam)
        if not self.soft:
            return y
        slope = shrinkage_slope(x, lam)
        return (y + LEAK * x).detach() + slope.detach() * (x - x.detach())  # the last factor is 0, its gradient 1

    def extra_repr(self) -> str:
        mean = "" if self.raw.is_meta else f", mean threshold {self.lam.mean().item():.3g}"
        return f"{len(self.raw)}{mean}{', soft' if self.soft else ''}"


class ShrinkageInsert(surgery.Insert):
    """Holds the layers; softened, it lets gradients through what they cut off."""

    def soften(self) -> bool:
        for layer in self.taps.modules():
            if isinstance(layer, Shrinkage):
                layer.soft = True
        return True


@dataclass(frozen=True, kw_only=True)
class SoftThreshold:
    """Soft threshold as a method.

    Attributes:
        threshold: Initial threshold of every channel, above 0, in the units of the features; then it is learned.
        position: Where a stage name in ``sites`` takes its convolutions: "post_norm", "post_conv", "post_activation".
        sites: Stage names (see the card) or modules, globs included. A module's own output is taken, whatever
            ``position`` says; its channels are dimension 1.
    """

    threshold: float = 0.1
    position: Position = "post_norm"
    sites: tuple[str, ...] = ("bottom",)

    def __post_init__(self) -> None:
        sites_given("SoftThreshold", self.sites)
        one_of("SoftThreshold", "position", self.position, get_args(Position))
        if not 0 < self.threshold <= 1e6:
            raise ParameterError(f"SoftThreshold: threshold must be above 0, at most 1e6; got {self.threshold}.")

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Shrink the outputs of ``sites``; the thresholds are parameters, trained and saved with the model."""
        sites, notes = outputs(model, example, self.sites, position=self.position)

        def layer(name: str, y: Tensor) -> Shrinkage:
            if y.ndim < 2:
                raise AttachError(f"soft_threshold: {name} must give (n, c, ...); got {tuple(y.shape)}.")
            return Shrinkage(y.shape[1], threshold=self.threshold)

        held = ShrinkageInsert(self, seed=seed, live=True)
        held.notes = notes
        return surgery.after(model, sites, layer, method=CARD.name, example=example, held=held)
