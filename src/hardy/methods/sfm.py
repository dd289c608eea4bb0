"""Spatial-wise feature modification (SFM): change every pixel of every training image by at most eps.

Hu, Ye, Feng, Yang, Liu, Yu, Jia, Song. "Improving adversarial robustness via feature pattern consistency constraint".
IJCAI 2024, https://arxiv.org/abs/2406.08829. One of the three parts of FPCC, see :mod:`hardy.methods.fpcc`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.methods._card import Card
from hardy.methods._checks import in_range, one_of

__all__ = ["CARD", "NOISES", "PRESETS", "SpatialFeatureModification", "spatial_feature_modification"]

NOISES = ("sign", "uniform")

CARD = Card(
    name="sfm",
    summary="Add noise as large as an attack's budget to every pixel of every training image, so that the net meets "
    "interfering features while it learns. One of the three parts of FPCC.",
    paper="Hu et al., IJCAI 2024",
    url="https://arxiv.org/abs/2406.08829",
    kind="input",
    live=False,
    attaches="the input, pixels in [0, 1]",
    defaults_from="eps 8/255 and the sign of normal noise: the released code.",
    deviations=(
        "The paper's body could not be read: summaries of it say uniform noise (preset 'paper'), the released code "
        "adds plus or minus eps (the default).",
        "The released code undoes and repeats a normalisation with the constants of CIFAR-10 around it; here pixels "
        "are in [0, 1] and the normalisation is in the model.",
    ),
    notes=("The released code carries no licence; nothing of it was copied.",),
)


def spatial_feature_modification(
    x: Float[Tensor, "n c h w"], *, eps: float, noise: Literal["sign", "uniform"], key: Int[Tensor, "n"]
) -> Float[Tensor, "n c h w"]:
    """Add noise to every value and clip to [0, 1].

    Args:
        x: Images, pixels in [0, 1].
        eps: Largest change of a pixel, in pixels in [0, 1].
        noise: "sign": plus or minus eps with equal chances; "uniform": any number between.
        key: Source of randomness, one per row.

    Example:
        >>> x = torch.full((1, 1, 1, 4), 0.5)
        >>> spatial_feature_modification(x, eps=0.25, noise="sign", key=torch.arange(1)).unique()
        tensor([0.2500, 0.7500])
    """
    u = seeding.uniform(key, 0, x.shape[1:]).to(x.device)
    delta = torch.where(u < 0.5, -eps, eps) if noise == "sign" else (2 * u - 1) * eps
    return (x + delta.to(x.dtype)).clamp(0, 1)


class SpatialFeatureModificationInsert(surgery.Insert):
    """Changes training batches."""

    def inputs(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return spatial_feature_modification(x, eps=self.spec.eps, noise=self.spec.noise, key=key), y


@dataclass(frozen=True, kw_only=True)
class SpatialFeatureModification:
    """SFM as a method; the defaults are the released code's.

    Attributes:
        eps: Largest change of a pixel, in pixels in [0, 1] (the released code names 16/255 as an alternative).
        noise: "sign": plus or minus eps (released code); "uniform": any number between (summaries of the paper).
    """

    eps: float = 8 / 255
    noise: Literal["sign", "uniform"] = "sign"

    def __post_init__(self) -> None:
        in_range("SpatialFeatureModification", "eps", self.eps, 0, 1)
        one_of("SpatialFeatureModification", "noise", self.noise, NOISES)

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Add noise to the batches that ``Objective`` gives to the model; changes no layer."""
        return surgery.insert(model, SpatialFeatureModificationInsert(self, seed=seed), method=CARD.name)


PRESETS: Mapping[str, SpatialFeatureModification] = MappingProxyType(
    {"repo": SpatialFeatureModification(), "paper": SpatialFeatureModification(noise="uniform")}
)
