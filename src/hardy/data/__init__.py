"""Data: labelled images in memory, and the pipeline that turns them into batches."""

from hardy.data.array import ArrayData
from hardy.data.cue_conflict import CueConflict, cue_conflict, shapes_conflict
from hardy.data.load import LOADERS, load_data
from hardy.data.pipeline import Augment, Batches
from hardy.data.rows import Rows, Split

__all__ = [
    "LOADERS",
    "ArrayData",
    "Augment",
    "Batches",
    "CueConflict",
    "Rows",
    "Split",
    "cue_conflict",
    "load_data",
    "shapes_conflict",
]
