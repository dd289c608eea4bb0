"""Feature pattern consistency constraint (FPCC): noise on pixels, dropped channels, and a pattern for every class.

Hu, Ye, Feng, Yang, Liu, Yu, Jia, Song. "Improving adversarial robustness via feature pattern consistency constraint".
IJCAI 2024, https://arxiv.org/abs/2406.08829. Only the abstract, summaries and the released code were readable: clean
training on images with noise (:mod:`hardy.methods.sfm`), through layers that lose channels (:mod:`hardy.methods.cfs`),
with a loss that keeps the patterns of features as they are in the class (:mod:`hardy.methods.pro`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, cast

from torch import Tensor, nn

from hardy import surgery
from hardy.errors import ParameterError
from hardy.methods._blocks import BLOCKS, places
from hardy.methods._card import Card
from hardy.methods._checks import some
from hardy.methods.cfs import ChannelFeatureSelection, ChannelSelection
from hardy.methods.pro import PatternConsistency, PatternInsert
from hardy.methods.sfm import SpatialFeatureModification, spatial_feature_modification
from hardy.taps import After, Tap

__all__ = ["CARD", "FPCC", "PRESETS"]

CARD = Card(
    name="fpcc",
    summary="Train on clean images with noise on every pixel (SFM) and channels dropped in every branch (CFS), while "
    "the relative sizes of the channels are pulled towards a pattern of the class (PRO). Nothing is left at test time.",
    paper="Hu et al., IJCAI 2024",
    url="https://arxiv.org/abs/2406.08829",
    kind="layer",
    live=False,
    attaches="the input; 'blocks', the default: channels are dropped from what enters each residual block, patterns "
    "are those of the last convolution of its branch and of convolutions on shortcuts, before their norms; in nets "
    "without, both at all convolutions of the main path (patterns not at the first) and at hidden linear layers; never "
    "at depthwise convolutions, logits, or fewer than 8 channels",
    defaults_from="the released code: eps 8/255, p 0.2, weight 1. Its places differ from net to net (presets); the "
    "rule for any CNN is ours.",
    deviations=(
        "The paper's body and tables could not be read: all is from the released code and from summaries, and no "
        "figure of the paper is quoted. Which of its three knobs, eps, lambda and gamma, is p is our reading (gamma).",
        "The released code has three finished nets: VGG-16 with batch norms, WRN-28-10, ResNet-50; its presets are "
        "here. Its ResNet-18 is unfinished, so that any other residual net gets our rule.",
        "At one site patterns are those of all channels, before some are dropped, as in the released VGG.",
        "The released recipe picks the epoch by test accuracy; ours by validation images, or the last.",
    ),
    notes=(
        "The parts can be had alone and in pairs: sfm, cfs, pro. Beside fpcc they act once more.",
        "The released code carries no licence; nothing of it was copied.",
    ),
)


class FPCCInsert(PatternInsert):
    """Changes training batches and adds the loss term."""

    def inputs(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return spatial_feature_modification(x, eps=self.spec.eps, noise=self.spec.noise, key=key), y


@dataclass(frozen=True, kw_only=True)
class FPCC:
    """FPCC as a method; the defaults are those of its parts.

    Attributes:
        eps: Of SFM: largest change of a pixel, in pixels in [0, 1]; 0: no SFM.
        noise: Of SFM: "sign" or "uniform".
        p: Of CFS: probability of dropping a channel of an image, in [0, 1]; 0: no CFS.
        rescale: Of CFS: scale the channels that stay by 1 / (1 - p).
        weight: Of PRO: of the sum of its losses, beside a cross-entropy of weight 1.
        normalise: Of PRO: "zscore" or "minmax".
        distance: Of PRO: "l1", "l2" or "cosine".
        patterns: Of PRO: "learned" or "ema".
        momentum: Of PRO: share of the old average that a batch leaves; with "ema".
        weight_decay: Of PRO: decay learned patterns like weights.
        drop_sites: Of CFS: "blocks" (see the card), or modules.
        pattern_sites: Of PRO: "blocks", or modules.
    """

    eps: float = SpatialFeatureModification.eps
    noise: Literal["sign", "uniform"] = SpatialFeatureModification.noise
    p: float = ChannelFeatureSelection.p
    rescale: bool = ChannelFeatureSelection.rescale
    weight: float = PatternConsistency.weight
    normalise: Literal["zscore", "minmax"] = PatternConsistency.normalise
    distance: Literal["l1", "l2", "cosine"] = PatternConsistency.distance
    patterns: Literal["learned", "ema"] = PatternConsistency.patterns
    momentum: float = PatternConsistency.momentum
    weight_decay: bool = PatternConsistency.weight_decay
    drop_sites: tuple[str, ...] = (BLOCKS,)
    pattern_sites: tuple[str, ...] = (BLOCKS,)

    def __post_init__(self) -> None:
        try:
            _ = self.sfm, self.cfs, self.pro  # which check themselves
        except ParameterError as error:
            raise ParameterError(f"FPCC: {str(error).partition(': ')[2]}") from None

    @property
    def sfm(self) -> SpatialFeatureModification:
        """The first part."""
        return SpatialFeatureModification(eps=self.eps, noise=self.noise)

    @property
    def cfs(self) -> ChannelFeatureSelection:
        """The second part."""
        return ChannelFeatureSelection(p=self.p, rescale=self.rescale, sites=self.drop_sites)

    @property
    def pro(self) -> PatternConsistency:
        """The third part."""
        return PatternConsistency(
            weight=self.weight,
            normalise=self.normalise,
            distance=self.distance,
            patterns=self.patterns,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            sites=self.pattern_sites,
        )

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Attach the three parts as one; learned patterns live below ``_hardy``.

        Raises:
            AttachError: a site has no channels, or the net no place for "blocks".
        """
        found = places(model, example, (*self.drop_sites, *self.pattern_sites))
        drop = found.put(self.drop_sites, found.drop, CARD.name)
        compare = found.put(self.pattern_sites, found.compare, CARD.name)

        def layer(name: str, calls: tuple[int, ...], total: int, y: Tensor) -> Tap:
            return After(name, calls, total, _selection(self, name, y, seed))

        held = FPCCInsert(self, seed=seed, term=CARD.name, weight=self.weight)
        patterns = held.taps_at(model, compare, self.pro, example=example)
        drops = surgery.taps_at(model, drop, layer, method=CARD.name, example=example)
        held.notes = (*found.notes, f"patterns of {some([tap.name for tap in patterns])}")
        held.input_shape = cast("tuple[int, int, int]", tuple(example.shape[1:]))
        return surgery.insert(model, held, method=CARD.name, taps=[*patterns, *drops])


def _selection(spec: FPCC, name: str, y: Tensor, seed: int) -> ChannelSelection:
    return ChannelSelection.at(name, y, p=spec.p, rescale=spec.rescale, seed=seed, method=CARD.name)


PRESETS: Mapping[str, FPCC] = MappingProxyType(
    {
        "repo-vgg16_bn": FPCC(),  # the rule for nets without residual blocks is the released VGG's
        "repo-wrn28_10": FPCC(
            drop_sites=("conv1", "layer?.*.conv1", "layer?.?"),
            pattern_sites=("layer?.*.conv1", "layer?.*.conv2", "layer?.*.downsample"),
        ),
        "repo-resnet50": FPCC(
            drop_sites=("layer?.*.conv1@input", "layer?.*.downsample.0@input"),
            pattern_sites=("layer?.*.conv3", "layer?.*.downsample.0"),
        ),
    }
)
