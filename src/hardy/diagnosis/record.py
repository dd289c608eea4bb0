"""What a diagnosis says: numbers with intervals, maps and pictures, and in words what is wrong and what to try.

A diagnosis is two files: ``diagnosis.json`` and, beside it, ``diagnosis.safetensors`` with the maps and pictures.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from hardy.config import build
from hardy.errors import DataError, HardyError, ParameterError, did_you_mean
from hardy.records import Score
from hardy.safefile import read_tensors, write_pair

__all__ = ["CORRELATION", "FORMAT", "Diagnosis", "Finding", "Part", "Severity"]

FORMAT = 1
CORRELATION = "correlation "  # before the name of a layer: the tensor of its map in the part "channels"
DIGEST = "safetensors"  # its key, in the file only
Severity = Literal["good", "note", "problem"]
ORDER: tuple[Severity, ...] = ("problem", "note", "good")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that the numbers of a part say, in words.

    Attributes:
        code: Stable name, such as ``dead_channels``.
        severity: "problem": it costs accuracy or trust, and something can be tried; "note": worth knowing; "good".
        text: What was seen, with its figures.
        remedy: What to try; empty where there is nothing to mend.
    """

    code: str
    severity: Severity
    text: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """The answer to one question.

    Attributes:
        name: Name of the part, such as ``channels``; without "/".
        question: The question in plain words.
        scores: Numbers with their intervals; those of one ``series`` with a ``level`` make a curve.
        findings: What they say, in words.
        tensors: Maps (float32), pictures (uint8, n c h w) and indices, on the CPU; names without "/".
        level_name: What ``level`` of the scores is, with its unit; empty where there is none.
        notes: How it was measured and what it does not say.
        passes: Forward and backward passes spent, summed over images.
        seconds: Time it took.

    Raises:
        ParameterError: a "/" in the name, or in the name of a tensor; or a tensor that is not on the CPU.
    """

    name: str
    question: str
    scores: tuple[Score, ...] = ()
    findings: tuple[Finding, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    level_name: str = ""
    notes: tuple[str, ...] = ()
    passes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in (self.name, *self.tensors):
            if "/" in name:
                raise ParameterError(f"Part: names must be without '/', which divides part and tensor; got {name!r}.")
        for name, tensor in self.tensors.items():
            if tensor.device.type != "cpu":
                raise ParameterError(f"Part: tensors must be on the CPU; {name!r} is on {tensor.device}. Call .cpu().")

    def score(self, label: str) -> Score:
        """Give the score of that label.

        Raises:
            ParameterError: there is none.
        """
        for score in self.scores:
            if score.label == label:
                return score
        raise ParameterError(
            f"diagnosis: {self.name} has no score {label!r}; {did_you_mean(label, [s.label for s in self.scores])}"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosis:
    """What ``hardy.diagnose`` returns; ``Diagnosis.read(path)`` of ``diagnosis.save(path)`` is equal to it.

    Attributes:
        model: Name of the model, in words.
        class_names: Names of its classes, in label order.
        data: Name of the images and their split.
        n: Number of images.
        seed: Seed of everything random.
        layers: Sites that were looked at, in model order: modules, with their call where there are several.
        parts: The answers.
        map_data: Name of the images behind the maps of class and channel, where they are others than ``data``.
        map_n: How many those are; 0 where they are the same.
        options: What was asked for: top, sign, draws, sigma, joint, threat.
        notes: What was asked for and could not be looked at.
        command: Shell command or call that repeats it.
        environment: Versions, device, git commit.
        seconds: Time it took.
        format: Number of this schema.
    """

    model: str
    class_names: tuple[str, ...]
    data: str
    n: int
    seed: int
    layers: tuple[str, ...]
    parts: tuple[Part, ...]
    map_data: str = ""
    map_n: int = 0
    options: dict[str, str | int | float | bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    command: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    format: int = FORMAT

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, problems first, else in the order of the parts."""
        found = [finding for part in self.parts for finding in part.findings]
        return tuple(sorted(found, key=lambda finding: ORDER.index(finding.severity)))

    def part(self, name: str) -> Part:
        """Give the part of that name.

        Raises:
            ParameterError: it was not measured.
        """
        for part in self.parts:
            if part.name == name:
                return part
        raise ParameterError(
            f"diagnosis: part {name!r} was not measured; {did_you_mean(name, [part.name for part in self.parts])}"
        )

    def correlation(self, layer: str) -> Float[Tensor, "k c"]:
        """Give the map of a layer: how much the score of each class depends on each channel, at least 0.

        The row of a class without images that were classified right is NaN.

        Raises:
            ParameterError: the part ``channels`` was not measured, or it has no such layer.
        """
        tensors = self.part("channels").tensors
        if CORRELATION + layer not in tensors:
            known = [name.removeprefix(CORRELATION) for name in tensors if name.startswith(CORRELATION)]
            raise ParameterError(f"diagnosis: no map of layer {layer!r}; {did_you_mean(layer, known)}")
        return tensors[CORRELATION + layer]

    def save(self, path: str | Path) -> None:
        """Write ``path`` (JSON) and, beside it, the ``.safetensors`` of the same name; both or neither.

        Raises:
            DataError: the folder cannot be written, or the disk is full.
        """
        path = _json_path(path)
        tensors = {f"{part.name}/{name}": value for part in self.parts for name, value in part.tensors.items()}
        data = safetensors.torch.save({name: value.contiguous().clone() for name, value in tensors.items()})
        text = json.dumps({**self.to_json(), DIGEST: _digest(data)}, indent=2, allow_nan=False) + "\n"
        write_pair(
            path.with_suffix(".safetensors"),
            lambda file: file.write(data),
            path,
            lambda file: file.write(text.encode()),
        )

    def to_json(self) -> dict[str, Any]:
        """Give the content of ``diagnosis.json``: everything but the tensors."""
        data: dict[str, Any] = _plain(self)
        return data

    @staticmethod
    def read(path: str | Path) -> "Diagnosis":
        """Read what :meth:`save` wrote, by the JSON file or its folder. Executes nothing.

        Raises:
            DataError: missing, damaged, or of a newer format.
        """
        path = Path(path)
        path = path / "diagnosis.json" if path.is_dir() else _json_path(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(data, dict):
                raise DataError(f"{path}: a diagnosis is a JSON object; got {type(data).__name__}.")
            if data.get("format") not in range(1, FORMAT + 1):
                raise DataError(
                    f"{path}: format {data.get('format')!r} is not known to this version (it writes {FORMAT})."
                )
            beside = path.with_suffix(".safetensors")
            if data.pop(DIGEST, None) != _digest(beside.read_bytes()):
                raise DataError(
                    f"{beside}: not the tensors of {path.name}; a process was killed between the two, or one was "
                    "copied alone or damaged. Repeat the diagnosis."
                )
            return _with_tensors(build(Diagnosis, data), read_tensors(beside))
        except (OSError, ValueError, TypeError, RecursionError, HardyError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: not a readable diagnosis ({error}).") from error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Diagnosis):
            return NotImplemented
        return self.to_json() == other.to_json() and all(
            a.tensors.keys() == b.tensors.keys() and all(_same(a.tensors[n], b.tensors[n]) for n in a.tensors)
            for a, b in zip(self.parts, other.parts, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]  # holds tensors


def _json_path(path: str | Path) -> Path:
    """Demand a name whose tensors get another name.

    Raises:
        DataError: it ends in ``.safetensors``.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        raise DataError(f"{path}: a diagnosis is named by its JSON file, as {path.with_suffix('.json').name}.")
    return path


def _with_tensors(diagnosis: Diagnosis, tensors: Mapping[str, Tensor]) -> Diagnosis:
    """Give every part its tensors.

    Raises:
        DataError: a tensor of no part.
    """
    if alien := [name for name in tensors if name.partition("/")[0] not in {part.name for part in diagnosis.parts}]:
        raise DataError(f"diagnosis: tensor {alien[0]!r} belongs to no part. The file is damaged.")
    parts = (
        dataclasses.replace(
            part,
            tensors={n.partition("/")[2]: t for n, t in tensors.items() if n.partition("/")[0] == part.name},
        )
        for part in diagnosis.parts
    )
    return dataclasses.replace(diagnosis, parts=tuple(parts))


def _plain(value: Any) -> Any:
    """Bring a record into the types of JSON, without tensors and what is None."""
    if dataclasses.is_dataclass(value):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.name != "tensors")
        return {name: _plain(each) for name, each in pairs if each is not None}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items() if each is not None}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _same(a: Tensor, b: Tensor) -> bool:
    """Compare tensors by bits, but for the sign of 0; NaN equals NaN."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    equal = a == b
    return bool((equal | (a.isnan() & b.isnan()) if torch.is_floating_point(a) else equal).all())
