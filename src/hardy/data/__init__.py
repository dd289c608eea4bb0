"""Data: labelled images in memory or on the disk, and the pipelines that turn them into batches."""

from hardy.data.array import ArrayData
from hardy.data.augment import Augment
from hardy.data.cue_conflict import CueConflict, cue_conflict, shapes_conflict
from hardy.data.load import LOADERS, load_data
from hardy.data.masks import MaskSource, object_masks, with_background
from hardy.data.opening import open_data
from hardy.data.pipeline import Batches
from hardy.data.rows import Rows, Split
from hardy.data.stream import StreamData
from hardy.data.stream_batches import StreamBatches, make_batches
from hardy.data.workers import named_worker_errors

__all__ = [
    "LOADERS",
    "ArrayData",
    "Augment",
    "Batches",
    "CueConflict",
    "MaskSource",
    "Rows",
    "Split",
    "StreamBatches",
    "StreamData",
    "cue_conflict",
    "load_data",
    "make_batches",
    "named_worker_errors",
    "object_masks",
    "open_data",
    "shapes_conflict",
    "with_background",
]
