"""A diagnosis comes back from its files as it was, and damaged files are named."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hardy.diagnosis import Diagnosis, Finding, Part
from hardy.errors import DataError, ParameterError
from hardy.records import Score


def made(**changes: object) -> Diagnosis:
    channels = Part(
        name="channels",
        question="Which?",
        scores=(Score(label="a", value=0.5, kind="description", n=3, level=0.0, details={"layer": "conv", "n": 1}),),
        findings=(
            Finding(code="fine", severity="good", text="Well."),
            Finding(code="bad", severity="problem", text="Ill.", remedy="Rest."),
        ),
        tensors={"correlation conv": torch.tensor([[0.5, torch.nan], [1, 0]]), "index": torch.tensor([3, 1])},
        passes={"forward": 3},
        notes=("n",),
        seconds=0.25,
    )
    other = Part(
        name="predictions",
        question="What?",
        findings=(Finding(code="meh", severity="note", text="So."),),
        tensors={"pictures": torch.zeros(1, 3, 2, 2, dtype=torch.uint8), "marks": torch.tensor([True, False])},
    )
    facts: dict[str, object] = {
        "model": "net", "class_names": ("x", "y"), "data": "digits test", "n": 3, "seed": 1, "layers": ("conv",),
        "parts": (channels, other), "options": {"top": 5, "sigma": 1.0, "joint": False, "sign": "absolute"},
    }  # fmt: skip
    return Diagnosis(**(facts | changes))


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    diagnosis = made()
    diagnosis.save(tmp_path / "a" / "diagnosis.json")
    for path in (tmp_path / "a" / "diagnosis.json", tmp_path / "a"):
        found = Diagnosis.read(path)
        assert found == diagnosis and found.to_json() == diagnosis.to_json()
        assert found.part("predictions").tensors["pictures"].dtype == torch.uint8
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["diagnosis.json", "diagnosis.safetensors"]


def test_any_difference_is_seen() -> None:
    diagnosis = made()
    first = diagnosis.parts[0]

    def changed(**tensors: torch.Tensor) -> Diagnosis:
        part = dataclasses.replace(first, tensors={**first.tensors, **tensors})
        return made(parts=(part, diagnosis.parts[1]))

    assert diagnosis == made() and diagnosis != made(seed=2) and diagnosis != 1
    assert diagnosis != changed(index=torch.tensor([3, 2]))
    assert diagnosis != changed(index=torch.tensor([3, 1], dtype=torch.int32))
    assert diagnosis != changed(more=torch.zeros(1))


def test_problems_come_first() -> None:
    assert [f.code for f in made().findings] == ["bad", "meh", "fine"]


def test_maps_parts_and_scores_are_found_by_name() -> None:
    diagnosis = made()
    assert diagnosis.correlation("conv")[1].tolist() == [1, 0]
    assert diagnosis.part("channels").score("a").value == 0.5
    with pytest.raises(ParameterError, match="did you mean 'conv'"):
        diagnosis.correlation("con")
    with pytest.raises(ParameterError, match="'attention' was not measured"):
        diagnosis.part("attention")
    with pytest.raises(ParameterError, match="no score 'b'"):
        diagnosis.part("channels").score("b")


def test_names_that_the_files_cannot_hold_are_refused() -> None:
    with pytest.raises(ParameterError, match="'/'"):
        Part(name="a/b", question="?")
    with pytest.raises(ParameterError, match="'/'"):
        Part(name="a", question="?", tensors={"b/c": torch.zeros(1)})
    with pytest.raises(ParameterError, match="CPU"):
        Part(name="a", question="?", tensors={"b": torch.zeros(1, device="meta")})
    with pytest.raises(DataError, match=r"diagnosis\.json"):
        made().save("diagnosis.safetensors")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_are_data_errors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("d")
    made().save(folder / "d.json")
    file = folder / data.draw(st.sampled_from(["d.json", "d.safetensors"]))
    whole = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        whole = whole[:place]
    else:
        whole[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(whole)
    try:
        found = Diagnosis.read(folder / "d.json")
    except DataError:
        return
    assert file.name == "d.json" and found.n >= 0  # another digit in the text is another diagnosis, and readable


def test_files_of_two_diagnoses_are_not_mixed(tmp_path: Path) -> None:
    made().save(tmp_path / "a.json")
    made(parts=()).save(tmp_path / "b.json")
    (tmp_path / "b.safetensors").replace(tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=r"not the tensors of a\.json"):
        Diagnosis.read(tmp_path / "a.json")
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(DataError, match="not a readable diagnosis"):
        Diagnosis.read(tmp_path / "a.json")


def test_what_is_no_diagnosis_is_said(tmp_path: Path) -> None:
    file = tmp_path / "d.json"
    made().save(file)
    data = json.loads(file.read_text())
    for change, words in (
        ({"format": 99}, "format 99"),
        ({"n": "three"}, "n: expected int"),
        ({"more": 1}, "more: unknown key"),
    ):
        file.write_text(json.dumps(data | change))
        with pytest.raises(DataError, match=words):
            Diagnosis.read(file)
    file.write_text("[]")
    with pytest.raises(DataError, match="JSON object"):
        Diagnosis.read(file)
    with pytest.raises(DataError):
        Diagnosis.read(tmp_path / "none.json")
