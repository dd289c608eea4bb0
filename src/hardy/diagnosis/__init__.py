"""What is wrong with a trained CNN: what it confuses, which channels and layers it relies on, where it looks.

One file per question: each has ``measure(case) -> Part``, listed in :data:`PARTS`, above plain functions on tensors.
"""

from hardy.diagnosis.case import Case
from hardy.diagnosis.correlation import (
    Correlations,
    class_channel_map,
    conv_sites,
    correlations,
    image_correlations,
    sure_images,
)
from hardy.diagnosis.record import Diagnosis, Finding, Part
from hardy.diagnosis.run import DEFAULT, PARTS, diagnose

__all__ = [
    "DEFAULT",
    "PARTS",
    "Case",
    "Correlations",
    "Diagnosis",
    "Finding",
    "Part",
    "class_channel_map",
    "conv_sites",
    "correlations",
    "diagnose",
    "image_correlations",
    "sure_images",
]
