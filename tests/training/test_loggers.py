"""Loggers are made on demand, and a missing package is named with the extra that brings it."""

from pathlib import Path
from typing import Any

import pytest

from hardy.errors import ConfigError
from hardy.training import DataRecipe, ModelRecipe, Recipe
from hardy.training.loggers import make_loggers

RECIPE = Recipe(model=ModelRecipe(name="cifar_resnet8"), data=DataRecipe(name="digits"))


def test_files_go_below_the_run(tmp_path: Path) -> None:
    loggers = make_loggers(["csv", "tensorboard"], tmp_path, RECIPE)
    for logger in loggers:
        logger.log_metrics({"task": 1.0}, step=1)
        logger.finalize("done")
    assert {p.relative_to(tmp_path).parts[:2] for p in tmp_path.rglob("*") if p.is_file()} == {
        ("logs", "csv"),
        ("logs", "tensorboard"),
    }


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def importer(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("hardy.training.loggers.importlib.import_module", importer)
    with pytest.raises(ConfigError, match=rf"pip install 'hardy\[{name}\]'"):
        make_loggers([name], tmp_path, RECIPE)
