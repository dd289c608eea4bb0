"""Where metrics go besides the run folder: the loggers of Lightning Fabric, made on demand.

They repeat what ``metrics.jsonl`` has, so one that cannot write any more (a full disk) is left out and said so in the
log; it neither stops the training nor hides why it stopped.
"""

import importlib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hardy.errors import ConfigError, DataError
from hardy.safefile import check_writable
from hardy.training.recipe import Recipe

__all__ = ["Loggers", "make_loggers"]

log = logging.getLogger(__name__)

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


class Loggers:
    """Logs to several loggers, as long as each can write.

    Args:
        made: What :func:`make_loggers` made.
    """

    def __init__(self, made: Sequence[Any]) -> None:
        self.made, self.begun = list(made), False

    def log(self, rows: Sequence[Mapping[str, int | float]]) -> None:
        """Log the last row of the run, one an epoch, and write it out; a CSV file gets those from before a stop too."""
        for logger in list(self.made):
            anew = not self.begun and type(logger).__name__ == "CSVLogger"  # it cannot append
            try:
                if hasattr(logger, "log_dir"):  # asked first: the thread of TensorBoard would die with a traceback
                    check_writable(Path(logger.root_dir) / "room")
                if anew:
                    shutil.rmtree(logger.log_dir, ignore_errors=True)
                for row in rows if anew else rows[-1:]:
                    values = {k: v for k, v in row.items() if k not in {"epoch", "step"}}
                    logger.log_metrics(values, step=int(row["step"]))
                logger.save()
            except (OSError, DataError) as error:
                self.made.remove(logger)
                log.warning("%s is left out from now on: %s", type(logger).__name__, error)
        self.begun = True

    def close(self) -> None:
        """Finish, whatever state the disk is in."""
        for logger in self.made:
            try:
                logger.finalize("done")
            except OSError as error:
                log.warning("%s did not close: %s", type(logger).__name__, error)


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
