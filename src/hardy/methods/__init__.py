"""One file per paper. These tables are the registry; nothing registers itself on import."""

from hardy.methods import defective_conv, gaussian_noise, label_smoothing, lfm, random_erasing, spatial_dropout
from hardy.methods._card import Card
from hardy.methods.defective_conv import DefectiveConv
from hardy.methods.gaussian_noise import GaussianNoise
from hardy.methods.label_smoothing import LabelSmoothing
from hardy.methods.lfm import LocalFeatureMasking
from hardy.methods.random_erasing import RandomErasing
from hardy.methods.spatial_dropout import SpatialDropout
from hardy.surgery import Method

__all__ = [
    "CARDS",
    "METHODS",
    "Card",
    "DefectiveConv",
    "GaussianNoise",
    "LabelSmoothing",
    "LocalFeatureMasking",
    "Method",
    "RandomErasing",
    "SpatialDropout",
]

METHODS = {
    "lfm": LocalFeatureMasking,
    "defective_conv": DefectiveConv,
    "spatial_dropout": SpatialDropout,
    "random_erasing": RandomErasing,
    "gaussian_noise": GaussianNoise,
    "label_smoothing": LabelSmoothing,
}
CARDS = {
    module.CARD.name: module.CARD
    for module in (lfm, defective_conv, spatial_dropout, random_erasing, gaussian_noise, label_smoothing)
}
