"""Where metrics go besides the run folder: the loggers of Lightning Fabric, made on demand."""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hardy.errors import ConfigError
from hardy.training.recipe import Recipe

__all__ = ["make_loggers"]

EXTRAS = {  # logger -> module, class, extra that installs what it needs
    "csv": ("lightning_fabric.loggers", "CSVLogger", ""),
    "tensorboard": ("lightning_fabric.loggers", "TensorBoardLogger", "tensorboard"),
    "wandb": ("lightning.pytorch.loggers", "WandbLogger", "wandb"),
    "mlflow": ("lightning.pytorch.loggers", "MLFlowLogger", "mlflow"),
}


def make_loggers(names: Sequence[str], folder: Path, recipe: Recipe) -> list[Any]:
    """Make loggers that write below ``folder/logs`` (W&B and MLflow where they are configured to).

    Raises:
        ConfigError: what a logger needs is not installed; the message says which extra brings it.
    """
    return [_make(name, folder, recipe) for name in names]


def _make(name: str, folder: Path, recipe: Recipe) -> Any:
    module, cls, extra = EXTRAS[name]
    try:
        make = getattr(importlib.import_module(module), cls)
        if name in {"csv", "tensorboard"}:
            return make(root_dir=folder / "logs", name=name, version="")
        if name == "wandb":
            return make(name=folder.name, project="hardy", save_dir=str(folder / "logs"))
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        own = f"sqlite:///{(folder / 'logs' / 'mlflow.db').resolve()}"  # current MLflow refuses plain folders
        uri = os.environ.get("MLFLOW_TRACKING_URI", own)
        return make(experiment_name="hardy", run_name=folder.name, tracking_uri=uri)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"train.loggers: {name!r} needs a package that is not installed ({error.name or error}). "
            f"pip install 'hardy[{extra}]', or leave it out of the recipe (model {recipe.model.name})."
        ) from error
