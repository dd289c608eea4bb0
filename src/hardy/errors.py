"""Everything this library raises on purpose.

The grammar of a message: who: what must hold; what we got. What to do.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "AttachError",
    "CallError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "HardyError",
    "HardyWarning",
    "LayerNotFoundError",
    "ParameterError",
    "RankError",
    "ShapeError",
    "TrainingError",
    "did_you_mean",
]


class HardyError(Exception):
    """Base class, so callers can catch the library and nothing else."""


class ParameterError(HardyError, ValueError):
    """A hyperparameter is outside its documented range."""


class ShapeError(HardyError, ValueError):
    """A tensor does not have the documented shape."""


class LayerNotFoundError(HardyError, LookupError):
    """A site name matches no module of the model."""


class CallError(HardyError, LookupError):
    """A module was not called as a site says: not at all, not that often, or more than once."""


class AttachError(HardyError, RuntimeError):
    """Something cannot be attached, detached or used in this state of the model."""


class ConfigError(HardyError, ValueError):
    """A recipe, an override or a command-line value is wrong; the message starts with the key."""


class DataError(HardyError, ValueError):
    """Data is missing, unreadable or not in the documented format."""


class CheckpointError(HardyError, ValueError):
    """A file is not a Hardy checkpoint, is damaged, or does not fit the model."""


class TrainingError(HardyError, RuntimeError):
    """Training cannot go on: a loss is not finite, or a run folder is not what it should be."""


class RankError(HardyError, RuntimeError):
    """One of several processes that work together has died."""


class HardyWarning(UserWarning):
    """Going on may mislead you."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Say which known name is closest to ``name``, or list them all.

    Example:
        >>> did_you_mean("pdg", ["fgsm", "pgd"])
        "did you mean 'pgd'?"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
