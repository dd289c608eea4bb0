"""One file per paper. These tables are the registry; nothing registers itself on import."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from hardy.methods import (
    augmix,
    cutmix,
    cutout,
    defective_conv,
    drop_block,
    dropout,
    gaussian_noise,
    label_smoothing,
    lfm,
    margin_bound,
    mixup,
    random_erasing,
    row_norm,
    soft_threshold,
    spatial_dropout,
    stochastic_depth,
)
from hardy.methods._card import Card
from hardy.methods._measured import measured
from hardy.methods.augmix import AugMix
from hardy.methods.cutmix import CutMix
from hardy.methods.cutout import Cutout
from hardy.methods.defective_conv import DefectiveConv
from hardy.methods.drop_block import DropBlock
from hardy.methods.dropout import Dropout
from hardy.methods.gaussian_noise import GaussianNoise
from hardy.methods.label_smoothing import LabelSmoothing
from hardy.methods.lfm import LocalFeatureMasking
from hardy.methods.margin_bound import MarginBound
from hardy.methods.mixup import Mixup
from hardy.methods.random_erasing import RandomErasing
from hardy.methods.row_norm import RowNorm
from hardy.methods.soft_threshold import SoftThreshold
from hardy.methods.spatial_dropout import SpatialDropout
from hardy.methods.stochastic_depth import StochasticDepth
from hardy.surgery import Method

__all__ = [
    "CARDS",
    "METHODS",
    "PRESETS",
    "AugMix",
    "Card",
    "CutMix",
    "Cutout",
    "DefectiveConv",
    "DropBlock",
    "Dropout",
    "GaussianNoise",
    "LabelSmoothing",
    "LocalFeatureMasking",
    "MarginBound",
    "Method",
    "Mixup",
    "RandomErasing",
    "RowNorm",
    "SoftThreshold",
    "SpatialDropout",
    "StochasticDepth",
    "changed_fields",
    "measured",
]

METHODS = {
    "lfm": LocalFeatureMasking,
    "defective_conv": DefectiveConv,
    "dropout": Dropout,
    "spatial_dropout": SpatialDropout,
    "drop_block": DropBlock,
    "stochastic_depth": StochasticDepth,
    "cutout": Cutout,
    "random_erasing": RandomErasing,
    "mixup": Mixup,
    "cutmix": CutMix,
    "augmix": AugMix,
    "gaussian_noise": GaussianNoise,
    "label_smoothing": LabelSmoothing,
    "margin_bound": MarginBound,
    "soft_threshold": SoftThreshold,
    "row_norm": RowNorm,
}
CARDS = {
    "lfm": lfm.CARD,
    "defective_conv": defective_conv.CARD,
    "dropout": dropout.CARD,
    "spatial_dropout": spatial_dropout.CARD,
    "drop_block": drop_block.CARD,
    "stochastic_depth": stochastic_depth.CARD,
    "cutout": cutout.CARD,
    "random_erasing": random_erasing.CARD,
    "mixup": mixup.CARD,
    "cutmix": cutmix.CARD,
    "augmix": augmix.CARD,
    "gaussian_noise": gaussian_noise.CARD,
    "label_smoothing": label_smoothing.CARD,
    "margin_bound": margin_bound.CARD,
    "soft_threshold": soft_threshold.CARD,
    "row_norm": row_norm.CARD,
}
PRESETS: Mapping[str, Mapping[str, Method]] = {  # method -> name of a preset -> the spec
    "lfm": lfm.PRESETS,
    "defective_conv": defective_conv.PRESETS,
    "spatial_dropout": spatial_dropout.PRESETS,
    "drop_block": drop_block.PRESETS,
}


def changed_fields(spec: Method) -> dict[str, object]:
    """Give the fields of a spec that differ from the defaults, by name."""
    fields = dataclasses.fields(cast("Any", spec))
    return {f.name: getattr(spec, f.name) for f in fields if getattr(spec, f.name) != f.default}
