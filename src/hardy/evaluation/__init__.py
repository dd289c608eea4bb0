"""Honest evaluation: one file per axis of robustness, and the checks that distrust it."""

from hardy.evaluation.axes import AXES
from hardy.evaluation.budget import Budget
from hardy.evaluation.checks import DERIVED, FULL
from hardy.evaluation.context import AxisProgress, Context, Measured, NotMeasured, Source
from hardy.evaluation.material import CueConflict, Material
from hardy.evaluation.run import evaluate

__all__ = [
    "AXES",
    "DERIVED",
    "FULL",
    "AxisProgress",
    "Budget",
    "Context",
    "CueConflict",
    "Material",
    "Measured",
    "NotMeasured",
    "Source",
    "evaluate",
]
