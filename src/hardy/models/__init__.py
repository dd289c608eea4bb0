"""Models: any net as a classifier with its normalisation inside, and the built-in nets for small images."""

from hardy.models.build import build, rebuild
from hardy.models.classifier import Arg, Classifier, Normalize, Source
from hardy.models.ensemble import Ensemble
from hardy.models.registry import BUILTIN, known, list_models

__all__ = [
    "BUILTIN",
    "Arg",
    "Classifier",
    "Ensemble",
    "Normalize",
    "Source",
    "build",
    "known",
    "list_models",
    "rebuild",
]
