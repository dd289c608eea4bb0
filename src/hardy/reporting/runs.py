"""Read run folders: the result, and whatever else lies beside it."""

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hardy.errors import DataError, ParameterError
from hardy.results import Result

__all__ = ["Run", "read_runs"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trained and evaluated net.

    Attributes:
        name: Name of its folder; longer where two folders share it.
        path: The ``result.json``.
        result: What was measured.
        recipe: The resolved recipe as text; empty where there is none.
        environment: Versions and devices of the training.
        metrics: One mapping of finite numbers per epoch, in order of epochs.
    """

    name: str
    path: Path
    result: Result
    recipe: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    metrics: tuple[dict[str, float], ...] = ()

    @property
    def train_seconds(self) -> float | None:
        """Sum of the seconds of all epochs, None where an epoch has none."""
        seconds = [row.get("seconds") for row in self.metrics]
        known = [value for value in seconds if value is not None]
        return sum(known) if known and len(known) == len(seconds) else None

    @property
    def methods(self) -> str:
        """Names of the methods without their settings."""
        return " + ".join(method.partition("(")[0] for method in self.result.methods) or "no method"

    @property
    def arm(self) -> str:
        """What runs that differ only in their seed have in common: the recipe and the methods."""
        recipe = {key: value for key, value in self._recipe().items() if key not in ("seed", "out")}
        return repr((recipe or self.result.model, self.result.methods))

    @property
    def seed(self) -> str:
        """The seed of the training where the recipe tells it, else the path, so that runs count as different."""
        return str(self._recipe().get("seed", self.path))

    def _recipe(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self.recipe)
        except tomllib.TOMLDecodeError:
            return {}


def read_runs(paths: Sequence[str | Path], base: str | Path | None) -> tuple[Run, ...]:
    """Read runs, the baseline first.

    Args:
        paths: Run folders or ``result.json`` files, at least one, each once.
        base: The baseline: one of ``paths``, the name of one, or a further run. None takes the first.

    Raises:
        ParameterError: no runs, a string in place of a list, or the same run twice.
        DataError: a run has no readable result, environment or metrics.
    """
    if isinstance(paths, str | Path):
        raise ParameterError(f"report: runs must be a list of run folders; got {str(paths)!r}. Write [{str(paths)!r}].")
    files = [_result_file(Path(path)) for path in paths]
    if not files:
        raise ParameterError("report: at least one run is needed; got none. Give run folders or result.json files.")
    if base is not None:
        files = _base_first(files, base)
    for i, file in enumerate(files):
        if file in files[:i]:
            raise ParameterError(f"report: every run must be given once; got {file} twice. Leave one out.")
    runs = [_read(file) for file in files]
    return tuple(replace(run, name=name) for run, name in zip(runs, _names(files), strict=True))


def _result_file(path: Path) -> Path:
    if not path.exists():
        raise DataError(
            f"{path}: no such run folder or result file. Train and evaluate first: hardy train, hardy evaluate."
        )
    file = path / "result.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{path}: a run folder must hold a result.json; it does not. Run: hardy evaluate {path}")
    return file.resolve()


def _base_first(files: list[Path], base: str | Path) -> list[Path]:
    named = [file for file, name in zip(files, _names(files), strict=True) if name == str(base)]
    first = named[0] if named else _result_file(Path(base))
    return [first, *(file for file in files if file != first)]


def _names(files: list[Path]) -> list[str]:
    """Name every run by its folder, with as many parents as it takes to tell them apart."""
    parts = [
        (*file.parent.parts[1:],) if file.name == "result.json" else (*file.parent.parts[1:], file.stem)
        for file in files
    ]
    names = []
    for own in parts:
        for depth in range(1, len(own) + 1):
            if sum(other[-depth:] == own[-depth:] for other in parts) == 1 or depth == len(own):
                names.append("/".join(own[-depth:]))
                break
        else:
            names.append("run")  # a result in the root folder
    return names


def _read(file: Path) -> Run:
    folder = file.parent
    recipe = folder / "recipe.toml"
    return Run(
        name=folder.name,
        path=file,
        result=Result.read(file),
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
        environment=_environment(folder / "env.json"),
        metrics=_metrics(folder / "metrics.jsonl"),
    )


def _environment(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    data = _json(file.read_bytes(), f"{file}")
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in data.items()}


def _metrics(file: Path) -> tuple[dict[str, float], ...]:
    """Read one row per epoch; a resumed run may have written an epoch twice, then the later row counts."""
    if not file.is_file():
        return ()
    lines = file.read_bytes().split(b"\n")
    complete, rest = lines[:-1], lines[-1]  # a killed run may end in half a line
    if rest.strip().endswith(b"}"):
        complete.append(rest)
    rows: dict[float, dict[str, float]] = {}
    for number, line in enumerate(complete, start=1):
        if line.strip():
            row = {key: float(v) for key, v in _json(line, f"{file}:{number}").items() if _is_number(v)}
            rows[row.get("epoch", float(number))] = row
    return tuple(rows[epoch] for epoch in sorted(rows))


def _json(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}). The file is damaged; remove it to leave it out.") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON object must stand here; got {type(value).__name__}.")
    return value


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)
