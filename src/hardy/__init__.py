"""Hardy: robust convolutional networks without adversarial training, honestly evaluated.

Names are imported on first use: ``import hardy`` costs milliseconds and does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hardy.attacks import attack as attack
    from hardy.comparing import compare as compare
    from hardy.data import ArrayData as ArrayData
    from hardy.data import Batches as Batches
    from hardy.data import load_data as load_data
    from hardy.diagnosis import diagnose as diagnose
    from hardy.errors import HardyError as HardyError
    from hardy.evaluation import evaluate as evaluate
    from hardy.io import load as load
    from hardy.io import load_model as load_model
    from hardy.io import save as save
    from hardy.objective import Objective as Objective
    from hardy.reporting import report as report
    from hardy.results import Result as Result
    from hardy.surgery import attach as attach
    from hardy.surgery import attachments as attachments
    from hardy.surgery import capture as capture
    from hardy.surgery import strip as strip
    from hardy.threats import Threat as Threat
    from hardy.topology import stages as stages
    from hardy.training import Recipe as Recipe
    from hardy.training import train as train
    from hardy.treatment import treat as treat

__version__ = "0.1.0"

HOMES = {  # name -> module it comes from
    "ArrayData": "hardy.data",
    "Batches": "hardy.data",
    "HardyError": "hardy.errors",
    "Objective": "hardy.objective",
    "Recipe": "hardy.training",
    "Result": "hardy.results",
    "Threat": "hardy.threats",
    "attach": "hardy.surgery",
    "attachments": "hardy.surgery",
    "attack": "hardy.attacks",
    "capture": "hardy.surgery",
    "compare": "hardy.comparing",
    "diagnose": "hardy.diagnosis",
    "evaluate": "hardy.evaluation",
    "load": "hardy.io",
    "load_data": "hardy.data",
    "load_model": "hardy.io",
    "report": "hardy.reporting",
    "save": "hardy.io",
    "stages": "hardy.topology",
    "strip": "hardy.surgery",
    "train": "hardy.training",
    "treat": "hardy.treatment",
}
__all__ = ["__version__", *HOMES]  # noqa: PLE0604  (all are strings)


PACKAGES = ("attacks", "corruptions", "data", "methods", "models")  # reachable as hardy.methods without an import


def __getattr__(name: str) -> Any:
    if name in PACKAGES:
        return importlib.import_module(f"hardy.{name}")
    if name not in HOMES:
        raise AttributeError(f"module 'hardy' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})
