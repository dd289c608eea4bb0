"""Result records: what was measured, on which images, how sure it is, and the reasons to distrust it.

A result is two files: ``result.json`` (this schema) and, beside it, ``result.npz`` with one outcome per image and
point, and the pictures that the report shows. Numbers are numbers, fractions are in [0, 1]; what was not
measured is absent.
"""

import dataclasses
import hashlib
import json
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hardy.config import build
from hardy.errors import DataError, ParameterError, did_you_mean
from hardy.records import (
    Axis,
    Check,
    Outcomes,
    Point,
    Score,
    ScoreKind,
    Status,
    Versus,
    mean_score,
    point,
)
from hardy.safefile import write_pair
from hardy.threats import Threat

__all__ = [
    "FORMAT",
    "UNREADABLE",
    "Axis",
    "Check",
    "Point",
    "Result",
    "Score",
    "ScoreKind",
    "Status",
    "Versus",
    "mean_score",
    "point",
]

FORMAT = 4  # 1: first format; 2: scores of an axis; 3: a digest of the arrays that belong to it; 4: training passes
DIGEST = "npz"  # its key, in the file only


@dataclass(frozen=True, kw_only=True)
class Result:
    """What ``hardy.evaluate`` returns; ``Result.read(path)`` of ``result.save(path)`` is equal to it.

    Attributes:
        model: Name of the model, in words.
        num_classes: Number of classes.
        class_names: Their names, in label order.
        data: Name of the data and its split.
        n: Number of images.
        threat: The threat of ``white_box`` and ``transfer``.
        seed: Seed of everything random in the evaluation.
        axes: What was measured.
        checks: Reasons to distrust it.
        versus: The verdict against the base, if one was given.
        methods: ``repr`` of the methods that made the model.
        training_passes: ``forward_passes`` and ``backward_passes`` of each training image in the whole training, those
            of a search for adversarial images included; empty where they are not known.
        command: Shell command or call that repeats the evaluation.
        environment: Versions, device, git commit.
        seconds: Time it took.
        outcomes_by_point: ``"axis/label"`` to bool outcomes (n,), True where the image is still classified right.
        arrays: Labels, predictions and pictures for the report, by name.
        format: Number of this schema.
    """

    model: str
    num_classes: int
    class_names: tuple[str, ...]
    data: str
    n: int
    threat: Threat
    seed: int
    axes: tuple[Axis, ...]
    checks: tuple[Check, ...]
    versus: tuple[Versus, ...] = ()
    methods: tuple[str, ...] = ()
    training_passes: dict[str, float] = field(default_factory=dict)
    command: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    outcomes_by_point: Mapping[str, Outcomes] = field(default_factory=dict, repr=False)
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict, repr=False)
    format: int = FORMAT

    def axis(self, name: str) -> Axis:
        """Give the axis of that name.

        Raises:
            ParameterError: it was not measured.
        """
        for axis in self.axes:
            if axis.name == name:
                return axis
        measured = [axis.name for axis in self.axes]
        raise ParameterError(f"result: axis {name!r} was not measured; {did_you_mean(name, measured)}")

    def point(self, name: str, label: str | None = None) -> Point:
        """Give one point of an axis, its headline by default.

        Raises:
            ParameterError: no such axis or point.
        """
        axis = self.axis(name)
        label = axis.headline if label is None else label
        for each in axis.points:
            if each.label == label:
                return each
        raise ParameterError(
            f"result: {name} has no point {label!r}; {did_you_mean(label, [p.label for p in axis.points])}"
        )

    def score(self, name: str, label: str | None = None) -> Score:
        """Give one score of an axis, its headline by default.

        Raises:
            ParameterError: no such axis or score.
        """
        axis = self.axis(name)
        label = axis.headline if label is None else label
        for each in axis.scores:
            if each.label == label:
                return each
        raise ParameterError(
            f"result: {name} has no score {label!r}; {did_you_mean(label, [s.label for s in axis.scores])}"
        )

    def accuracy(self, name: str, label: str | None = None) -> float:
        """Give an accuracy of an axis, in [0, 1]: its headline, or the point or mean called ``label``.

        Raises:
            ParameterError: no such axis or label, or its number is no accuracy.
        """
        axis = self.axis(name)
        label = axis.headline if label is None else label
        for score in axis.scores:
            if score.label == label:
                if score.kind == "accuracy":
                    return score.value
                raise ParameterError(
                    f"result: {name}/{label} is a score ({score.kind}), no accuracy. Use result.score({name!r})."
                )
        return self.point(name, label).accuracy

    def outcomes(self, name: str, label: str | None = None) -> Any:
        """Give the outcomes behind :meth:`accuracy` as a bool tensor (n,), True where still right."""
        import torch

        return torch.from_numpy(self.outcomes_by_point[f"{name}/{self.point(name, label).label}"].copy())

    def save(self, path: str | Path) -> None:
        """Write ``path`` (JSON) and, beside it, the ``.npz`` of the same name; both or, on a full disk, neither.

        Raises:
            DataError: the folder cannot be written, or the disk is full.
        """
        path = Path(path)
        arrays = {f"outcomes/{key}": value for key, value in self.outcomes_by_point.items()}
        arrays |= {f"arrays/{key}": value for key, value in self.arrays.items()}
        text = json.dumps({**self.to_json(), DIGEST: _digest(arrays)}, indent=2, allow_nan=False) + "\n"
        write_pair(
            path.with_suffix(".npz"),
            lambda file: np.savez_compressed(file, **arrays),  # type: ignore[arg-type]  # savez takes names
            path,
            lambda file: file.write(text.encode()),
        )

    def to_json(self) -> dict[str, Any]:
        """Give the content of ``result.json``: everything but the arrays."""
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ARRAYS}
        data: dict[str, Any] = _drop_none({**kept, **{k: _plain(v) for k, v in kept.items()}})
        return data

    @staticmethod
    def read(path: str | Path) -> "Result":
        """Read what :meth:`save` wrote. Executes nothing: plain JSON, and arrays without pickled objects.

        Raises:
            DataError: missing, damaged, or of a newer format.
        """
        path = Path(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(data, dict):
                raise DataError(f"{path}: a result is a JSON object; got {type(data).__name__}.")
            if data.get("format") not in range(1, FORMAT + 1):
                raise DataError(
                    f"{path}: format {data.get('format')!r} is not known to this version (it writes {FORMAT})."
                )
            arrays = _read_arrays(path.with_suffix(".npz"))
            if data.pop(DIGEST, None) not in {None, _digest(arrays)}:
                raise DataError(
                    f"{path.with_suffix('.npz')}: not the arrays of {path.name}; a process was killed between the two, "
                    "or one was copied alone. Repeat the evaluation with --overwrite (and --resume, if it was stopped)."
                )
            result = build(Result, data)
        except UNREADABLE as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: not a readable result ({error}).") from error
        split = {kind: _under(f"{kind}/", arrays) for kind in ("outcomes", "arrays")}
        return dataclasses.replace(result, outcomes_by_point=split["outcomes"], arrays=split["arrays"])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Result):
            return NotImplemented
        return self.to_json() == other.to_json() and all(
            getattr(self, name).keys() == getattr(other, name).keys()
            and all(np.array_equal(value, getattr(other, name)[key]) for key, value in getattr(self, name).items())
            for name in ARRAYS
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays


ARRAYS = ("outcomes_by_point", "arrays")
UNREADABLE = (  # what json, zipfile and numpy raise for damaged files
    *(OSError, ValueError, TypeError, LookupError, EOFError, SyntaxError, ArithmeticError),
    *(RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read all arrays of an ``.npz`` without unpickling anything."""
    with path.open("rb") as stream:
        file = np.load(stream, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: the arrays of a result are in an .npz; got one array.")
        arrays: dict[str, Any] = {name: file[name] for name in file.files}  # a file in it may be no array
    if alien := [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]:
        raise DataError(f"{path}: {alien[0]!r} is not an array.")
    return arrays


def _digest(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(arrays.items()):
        digest.update(f"{name} {value.dtype} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value


def _drop_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _drop_none(v) for k, v in value.items() if v is not None}
    return [_drop_none(v) for v in value] if isinstance(value, list | tuple) else value


def _under(prefix: str, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
