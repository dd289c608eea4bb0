"""Channel-wise feature selection (CFS): drop channels of each image, without making up for it, during training.

Hu, Ye, Feng, Yang, Liu, Yu, Jia, Song. "Improving adversarial robustness via feature pattern consistency constraint".
IJCAI 2024, https://arxiv.org/abs/2406.08829. One of the three parts of FPCC, see :mod:`hardy.methods.fpcc`.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.errors import AttachError
from hardy.methods._blocks import BLOCKS, places
from hardy.methods._card import Card
from hardy.methods._checks import in_range, scaled, sites_given
from hardy.taps import KeyedLayer

__all__ = ["CARD", "ChannelFeatureSelection", "ChannelSelection", "channel_feature_selection"]

CARD = Card(
    name="cfs",
    summary="Drop random channels of each image while training and scale nothing up, so that the net meets weakened "
    "critical features. One of the three parts of FPCC.",
    paper="Hu et al., IJCAI 2024",
    url="https://arxiv.org/abs/2406.08829",
    kind="layer",
    live=False,
    attaches="'blocks', the default: what enters each residual branch and each convolution on a shortcut; in nets "
    "without, the outputs of all convolutions on the main path, before any norm, and of hidden linear layers; never "
    "depthwise convolutions, logits, or fewer than 8 channels",
    defaults_from="p 0.2: the released code. Its places differ from net to net; the rule for any CNN is ours.",
    deviations=(
        "The paper's body could not be read; all is from the released code.",
        "Its three nets drop at different places (see the presets of fpcc). On any residual net our rule is that of "
        "its ResNet-50; what an identity shortcut hands on is never dropped. If it were, a channel would survive nine "
        "blocks with a chance of 0.13 while training; FPCC did not learn (CIFAR-10, one seed: 28 %, plain 64 %).",
    ),
    notes=(
        "Without rescaling, the sums that a layer sees are smaller by p in training than at test time, and running "
        "statistics of norms are those of masked features; rescale = True is SpatialDropout at these places.",
        "Where both stand at one site, list pro before cfs: patterns are then those of all channels.",
        "The released code carries no licence; nothing of it was copied.",
    ),
)


def channel_feature_selection(
    x: Float[Tensor, "n c *map"], *, p: float, rescale: bool, training: bool, key: Int[Tensor, "n"]
) -> Float[Tensor, "n c *map"]:
    """Zero each channel of each row with probability ``p``.

    Args:
        x: Feature map (n, c, h, w) or features (n, c); any real values.
        p: Probability of dropping a channel, in [0, 1].
        rescale: Scale the others by 1 / (1 - p); the paper's code does not.
        training: Return ``x`` unchanged when False.
        key: Source of randomness, one per row.

    Example:
        >>> import torch
        >>> key = seeding.keys(seeding.root(0, "demo"), torch.arange(4))
        >>> channel_feature_selection(torch.ones(4, 8), p=0.5, rescale=False, training=True, key=key).unique()
        tensor([0., 1.])
    """
    if not training or p == 0:
        return x
    kept = (seeding.uniform(key, 0, (x.shape[1],)) >= p).reshape(*x.shape[:2], *[1] * (x.ndim - 2))
    return scaled(x, kept, (1 / (1 - p) if p < 1 else 0.0) if rescale else 1.0)


class ChannelSelection(KeyedLayer):
    """:func:`channel_feature_selection` as a layer: active in training mode, identity in evaluation mode."""

    def __init__(self, *, p: float, rescale: bool, seed: int, purpose: str = CARD.name) -> None:
        super().__init__(seed=seed, purpose=purpose)
        self.p, self.rescale = p, rescale

    def forward(self, x: Float[Tensor, "n c *map"]) -> Float[Tensor, "n c *map"]:
        if not self.training:
            return x
        return channel_feature_selection(x, p=self.p, rescale=self.rescale, training=True, key=self.row_keys(x))

    def extra_repr(self) -> str:
        return f"p={self.p}, rescale={self.rescale}"

    @classmethod
    def at(cls, name: str, y: Tensor, *, p: float, rescale: bool, seed: int, method: str) -> "ChannelSelection":
        """Make the layer of one site for a method, whose name is part of its random numbers.

        Raises:
            AttachError: no channels there.
        """
        if y.ndim not in (2, 4):
            raise AttachError(f"{method}: {name} must give (n, c, h, w) or (n, c); got {tuple(y.shape)}.")
        return cls(p=p, rescale=rescale, seed=seed, purpose=f"{method}:{name}")


@dataclass(frozen=True, kw_only=True)
class ChannelFeatureSelection:
    """CFS as a method.

    Attributes:
        p: Probability of dropping a channel of an image, in [0, 1] (released code).
        rescale: Scale the others by 1 / (1 - p), as SpatialDropout does (released code: no).
        sites: "blocks" (see the card), or modules.
    """

    p: float = 0.2
    rescale: bool = False
    sites: tuple[str, ...] = (BLOCKS,)

    def __post_init__(self) -> None:
        sites_given("ChannelFeatureSelection", self.sites)
        in_range("ChannelFeatureSelection", "p", self.p, 0, 1)

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Drop channels of ``sites`` while training; no parameters, no state-dict keys.

        Raises:
            AttachError: a site has no channels, or the net no place for "blocks".
        """

        def layer(name: str, y: Tensor) -> ChannelSelection:
            return ChannelSelection.at(name, y, p=self.p, rescale=self.rescale, seed=seed, method=CARD.name)

        held = surgery.Insert(self, seed=seed)
        found = places(model, example, self.sites)
        held.notes, sites = found.notes, found.put(self.sites, found.drop, CARD.name)
        return surgery.after(model, sites, layer, method=CARD.name, example=example, held=held)
