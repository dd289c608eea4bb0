"""One file per paper. These tables are the registry; nothing registers itself on import."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from hardy.methods import (
    augmix,
    awp,
    cfs,
    cutmix,
    cutout,
    defective_conv,
    distillation,
    drop_block,
    dropout,
    fast_at,
    fpcc,
    free_at,
    gaussian_noise,
    label_smoothing,
    lfm,
    margin_bound,
    mart,
    mixup,
    model_doctor,
    pgd_at,
    pro,
    random_erasing,
    row_norm,
    sfm,
    soft_threshold,
    spatial_dropout,
    stochastic_depth,
    trades,
)
from hardy.methods._card import Card
from hardy.methods._measured import measured
from hardy.methods.augmix import AugMix
from hardy.methods.awp import AdversarialWeightPerturbation
from hardy.methods.cfs import ChannelFeatureSelection
from hardy.methods.cutmix import CutMix
from hardy.methods.cutout import Cutout
from hardy.methods.defective_conv import DefectiveConv
from hardy.methods.distillation import Distillation
from hardy.methods.drop_block import DropBlock
from hardy.methods.dropout import Dropout
from hardy.methods.fast_at import FastAdversarialTraining
from hardy.methods.fpcc import FPCC
from hardy.methods.free_at import FreeAdversarialTraining
from hardy.methods.gaussian_noise import GaussianNoise
from hardy.methods.label_smoothing import LabelSmoothing
from hardy.methods.lfm import LocalFeatureMasking
from hardy.methods.margin_bound import MarginBound
from hardy.methods.mart import MART
from hardy.methods.mixup import Mixup
from hardy.methods.model_doctor import ModelDoctor
from hardy.methods.pgd_at import PGDAdversarialTraining
from hardy.methods.pro import PatternConsistency
from hardy.methods.random_erasing import RandomErasing
from hardy.methods.row_norm import RowNorm
from hardy.methods.sfm import SpatialFeatureModification
from hardy.methods.soft_threshold import SoftThreshold
from hardy.methods.spatial_dropout import SpatialDropout
from hardy.methods.stochastic_depth import StochasticDepth
from hardy.methods.trades import TRADES
from hardy.surgery import Method

__all__ = [
    "CARDS",
    "FPCC",
    "MART",
    "METHODS",
    "PRESETS",
    "TRADES",
    "AdversarialWeightPerturbation",
    "AugMix",
    "Card",
    "ChannelFeatureSelection",
    "CutMix",
    "Cutout",
    "DefectiveConv",
    "Distillation",
    "DropBlock",
    "Dropout",
    "FastAdversarialTraining",
    "FreeAdversarialTraining",
    "GaussianNoise",
    "LabelSmoothing",
    "LocalFeatureMasking",
    "MarginBound",
    "Method",
    "Mixup",
    "ModelDoctor",
    "PGDAdversarialTraining",
    "PatternConsistency",
    "RandomErasing",
    "RowNorm",
    "SoftThreshold",
    "SpatialDropout",
    "SpatialFeatureModification",
    "StochasticDepth",
    "changed_fields",
    "measured",
]

METHODS = {
    "lfm": LocalFeatureMasking,
    "defective_conv": DefectiveConv,
    "fpcc": FPCC,
    "sfm": SpatialFeatureModification,
    "cfs": ChannelFeatureSelection,
    "pro": PatternConsistency,
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
    "distillation": Distillation,
    "margin_bound": MarginBound,
    "soft_threshold": SoftThreshold,
    "row_norm": RowNorm,
    "pgd_at": PGDAdversarialTraining,
    "trades": TRADES,
    "mart": MART,
    "fast_at": FastAdversarialTraining,
    "free_at": FreeAdversarialTraining,
    "awp": AdversarialWeightPerturbation,
    "model_doctor": ModelDoctor,
}
CARDS = {
    "lfm": lfm.CARD,
    "defective_conv": defective_conv.CARD,
    "fpcc": fpcc.CARD,
    "sfm": sfm.CARD,
    "cfs": cfs.CARD,
    "pro": pro.CARD,
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
    "distillation": distillation.CARD,
    "margin_bound": margin_bound.CARD,
    "soft_threshold": soft_threshold.CARD,
    "row_norm": row_norm.CARD,
    "pgd_at": pgd_at.CARD,
    "trades": trades.CARD,
    "mart": mart.CARD,
    "fast_at": fast_at.CARD,
    "free_at": free_at.CARD,
    "awp": awp.CARD,
    "model_doctor": model_doctor.CARD,
}
PRESETS: Mapping[str, Mapping[str, Method]] = {  # method -> name of a preset -> the spec
    "lfm": lfm.PRESETS,
    "defective_conv": defective_conv.PRESETS,
    "fpcc": fpcc.PRESETS,
    "sfm": sfm.PRESETS,
    "spatial_dropout": spatial_dropout.PRESETS,
    "drop_block": drop_block.PRESETS,
    "model_doctor": model_doctor.PRESETS,
}


def changed_fields(spec: Method) -> dict[str, object]:
    """Give the fields of a spec that differ from the defaults, by name."""
    fields = dataclasses.fields(cast("Any", spec))
    return {f.name: getattr(spec, f.name) for f in fields if getattr(spec, f.name) != f.default}
