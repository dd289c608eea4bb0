"""Loggers are made on demand, and a missing package is named with the extra that brings it."""

import csv
from pathlib import Path
from typing import Any

import pytest
from lightning_fabric.loggers import CSVLogger

from hardy.errors import ConfigError
from hardy.training import DataRecipe, ModelRecipe, Recipe
from hardy.training.loggers import Loggers, make_loggers

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


ROWS = [{"epoch": n, "step": 10 * n, "task": 1 / n, "seconds": 0.1} for n in (1, 2, 3)]


def read(folder: Path) -> list[list[str]]:
    return list(csv.reader((folder / "logs" / "csv" / "metrics.csv").read_text(encoding="utf-8").splitlines()))


def test_a_row_is_on_the_disk_at_once_and_a_resumed_csv_has_those_from_before(tmp_path: Path) -> None:
    first = Loggers(make_loggers(["csv"], tmp_path, RECIPE))
    for n in (1, 2):
        first.log(ROWS[:n])
        assert len(read(tmp_path)) == 1 + n  # not closed: the process may be killed here
    second = Loggers(make_loggers(["csv"], tmp_path, RECIPE))
    second.log(ROWS[:2])  # the second epoch is done again
    second.log(ROWS)
    second.close()
    names, *rows = read(tmp_path)
    assert [row[names.index("step")] for row in rows] == ["10", "20", "30"]
    assert [float(row[names.index("task")]) for row in rows] == [1, 1 / 2, 1 / 3]


def test_a_logger_that_cannot_write_is_left_out_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(self: CSVLogger) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CSVLogger, "save", save)
    loggers = Loggers(make_loggers(["csv", "tensorboard"], tmp_path, RECIPE))
    for n in (1, 2):
        loggers.log(ROWS[:n])
    loggers.close()
    assert [record.message for record in caplog.records] == [
        "CSVLogger is left out from now on: [Errno 28] No space left on device"
    ]
    assert list((tmp_path / "logs" / "tensorboard").glob("*tfevents*"))


def test_a_logger_that_cannot_close_does_not_hide_why_the_training_ended(caplog: pytest.LogCaptureFixture) -> None:
    class Full:
        def finalize(self, status: str) -> None:
            raise OSError(28, "No space left on device")

    Loggers([Full()]).close()
    assert "Full did not close: [Errno 28] No space left on device" in caplog.text
