"""Treatments from end to end on digits: same start, same control, nothing twice, and refusals before any work."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hardy
from hardy import treat
from hardy.data import ArrayData, load_data
from hardy.errors import DataError, ParameterError, TrainingError
from hardy.methods import LocalFeatureMasking, ModelDoctor
from hardy.methods.model_doctor import read_relevance
from hardy.results import Result
from hardy.training import TrainRecipe, train
from hardy.training.recipe import load_recipe
from hardy.treatment.arms import fresh, spec_of

OPTIONS = TrainRecipe(epochs=2, lr=0.02, batch_size=50)
QUICK: dict[str, Any] = {"options": OPTIONS, "augment": (), "axes": ("clean", "calibration")}


class Net(nn.Module):
    """Small and normed; last convolution ``two``."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.two, self.fc = nn.Conv2d(8, 16, 3, 2, padding=1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.two(torch.relu(self.norm(self.one(x)))))
        out: Tensor = self.fc(y.mean((2, 3)))
        return out


@pytest.fixture(scope="module")
def images() -> tuple[ArrayData, ArrayData, ArrayData]:
    train_, val, test = (load_data("digits", split=split) for split in ("train", "val", "test"))  # type: ignore[arg-type]
    return train_.limit(400), val, test.limit(150)


@pytest.fixture(scope="module")
def patient(images: tuple[ArrayData, ArrayData, ArrayData], tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    torch.manual_seed(0)
    options = TrainRecipe(epochs=6, lr=0.1, batch_size=50)
    return train(Net(), images[0], options=options, augment=(), out=tmp_path_factory.mktemp("patient") / "run").model


def same(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in a.state_dict().items())


def test_control_and_treated_start_from_the_patient_and_differ_by_the_method_alone(
    patient: nn.Module, images: tuple[ArrayData, ArrayData, ArrayData], tmp_path: Path
) -> None:
    data, _, test = images
    before = copy.deepcopy(patient.state_dict())
    made = treat(patient, data, test=test, out=tmp_path / "t", seeds=(3,), noise_control=True, **QUICK)
    assert all(torch.equal(before[key], value) for key, value in patient.state_dict().items()) and not patient.training
    relevance = str(tmp_path / "t" / "relevance.safetensors")
    alone = {
        "control": [],
        "noise_control": [ModelDoctor(relevance=relevance, channel=0.0)],
        "channel": [ModelDoctor(relevance=relevance)],
    }
    for arm, methods in alone.items():
        net = copy.deepcopy(patient)
        train(net, data, methods=methods, options=OPTIONS, augment=(), seed=3, out=tmp_path / arm)
        assert same(net, hardy.load(tmp_path / "t" / arm / "seed3" / "model.safetensors", model=Net())), arm
        if arm == "channel":
            assert same(net, made.model) and not same(patient, net)
    assert read_relevance(relevance)["two"].shape == (10, 16)


def test_the_table_is_that_of_the_results(
    patient: nn.Module, images: tuple[ArrayData, ArrayData, ArrayData], tmp_path: Path
) -> None:
    data, _, test = images
    made = treat(patient, data, test=test, out=tmp_path, seeds=(0, 1, 2), how=LocalFeatureMasking(p=1.0), **QUICK)
    assert made.how == "lfm" and made.methods == (repr(LocalFeatureMasking(p=1.0)),)
    results = {
        arm: [Result.read(tmp_path / arm / f"seed{seed}" / "result.json").accuracy("clean") for seed in range(3)]
        for arm in ("control", "lfm")
    }
    clean = made.gain("clean")
    assert clean is not None and clean.over == "trainings"
    assert clean.before == pytest.approx(Result.read(tmp_path / "before" / "result.json").accuracy("clean"))
    assert clean.control == pytest.approx(sum(results["control"]) / 3)
    assert clean.difference == pytest.approx(sum(results["lfm"]) / 3 - clean.control)
    held = json.loads((tmp_path / "treatment.json").read_text())
    assert held["verdict"] == made.verdict and len(held["gains"]) == len(made.gains)
    page = (tmp_path / "report.html").read_text()
    assert "Did lfm make patient better?" in page and "Clean accuracy:" in page


def test_the_same_call_again_goes_on_and_computes_nothing_twice(
    patient: nn.Module, images: tuple[ArrayData, ArrayData, ArrayData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _, test = images
    first = treat(patient, data, test=test, out=tmp_path, **QUICK)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
    monkeypatch.setattr("hardy.treatment.relevance.class_channel_map", None)  # not called again
    again = treat(patient, data, test=test, out=tmp_path, seeds=(0, 1), **QUICK)  # a further training
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert same(first.model, again.model) and again.seeds == (0, 1)
    assert (tmp_path / "control" / "seed1" / "result.json").exists()


def test_another_question_in_the_same_folder_is_refused(
    patient: nn.Module, images: tuple[ArrayData, ArrayData, ArrayData], tmp_path: Path
) -> None:
    data, _, test = images
    treat(patient, data, test=test, out=tmp_path, **QUICK)
    with pytest.raises(TrainingError, match="holds a treatment with other how, method"):
        treat(patient, data, test=test, out=tmp_path, how="label_smoothing", **QUICK)
    with pytest.raises(TrainingError, match="other training"):
        treat(patient, data, test=test, out=tmp_path, **QUICK, epochs=3)
    other = copy.deepcopy(patient)
    next(other.parameters()).data.add_(1e-3)
    with pytest.raises(TrainingError, match="other patient"):
        treat(other, data, test=test, out=tmp_path, **QUICK)


def test_the_space_wise_constraint_sees_the_background(
    patient: nn.Module, images: tuple[ArrayData, ArrayData, ArrayData], tmp_path: Path
) -> None:
    data, _, test = images
    made = treat(patient, data, test=test, out=tmp_path, how="both", masks=lambda x, _: x[:, 0] > 64, **QUICK)
    assert "space=10.0" in made.methods[0]
    row = json.loads((tmp_path / "both" / "seed0" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["space"] > 0 and row["channel"] > 0
    plain = json.loads((tmp_path / "control" / "seed0" / "metrics.jsonl").read_text().splitlines()[-1])
    assert "space" not in plain


def test_a_student_is_new_and_learns_from_the_patient(
    patient: nn.Module, images: tuple[ArrayData, ArrayData, ArrayData], tmp_path: Path
) -> None:
    data, val, test = images
    made = treat(patient, data, test=test, val_data=val, out=tmp_path, how="distill", **QUICK)
    assert "Distillation" in made.methods[0] and not same(made.model, patient)
    a, b, c = fresh(patient, 0), fresh(patient, 0), fresh(patient, 1)
    assert same(a, b) and not same(a, c) and not same(a, patient)
    assert bool((a.get_buffer("norm.running_mean") == 0).all())


def test_rift_changes_one_layer(
    patient: nn.Module, images: tuple[ArrayData, ArrayData, ArrayData], tmp_path: Path
) -> None:
    data, val, test = images
    threat = hardy.Threat("linf", 0.02)
    made = treat(patient, data, test=test, val_data=val, out=tmp_path, how="rift", threat=threat, **QUICK)
    state = made.model.state_dict()
    changed = {
        key.rpartition(".")[0] for key, value in patient.state_dict().items() if not torch.equal(value, state[key])
    }
    assert len(changed) <= 1
    assert (tmp_path / "rift" / "seed0" / "rift.json").exists()


class TestRefusals:
    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ({"how": "chanel"}, "no treatment 'chanel'; did you mean 'channel'"),
            ({"how": "space"}, "needs to know the objects in the training images: pass masks"),
            ({"how": "channel", "masks": "folder:x"}, "channel uses no masks"),
            ({"how": "rift"}, "pass val_data"),
            ({"preset": "papre"}, "has no preset 'papre'"),
            ({"how": LocalFeatureMasking(), "preset": "paper"}, "preset must be left out"),
            ({"seeds": ()}, "seeds must be one or more different numbers"),
            ({"seeds": (1, 1)}, "seeds must be one or more different numbers"),
            ({"how": "lfm", "noise_control": True}, "noise_control must be of Model Doctor"),
        ],
    )
    def test_before_anything_is_written(
        self, more: dict[str, Any], said: str, patient: nn.Module, images: Any, tmp_path: Path
    ) -> None:
        with pytest.raises(ParameterError, match=said):
            treat(patient, images[0], test=images[2], out=tmp_path / "t", **{**QUICK, **more})
        assert not (tmp_path / "t").exists()

    def test_train_mode_and_other_classes(self, patient: nn.Module, images: Any, tmp_path: Path) -> None:
        with pytest.raises(ParameterError, match="eval"):
            treat(copy.deepcopy(patient).train(), images[0], test=images[2], out=tmp_path / "t", **QUICK)
        other = ArrayData.make(images[2].x, images[2].y % 2, class_names=("even", "odd"))
        with pytest.raises(DataError, match="test must have the size and the classes"):
            treat(patient, images[0], test=other, out=tmp_path / "t", **QUICK)
        assert not (tmp_path / "t").exists()


def test_presets_keep_what_the_word_asks_for() -> None:
    paper, space, both = (spec_of(how, "paper").method for how in ("channel", "space", "both"))
    assert isinstance(paper, ModelDoctor) and isinstance(space, ModelDoctor) and isinstance(both, ModelDoctor)
    assert (paper.channel, paper.space) == (10.0, 0.0) and (space.channel, space.space) == (0.0, 10.0)
    assert (both.channel, both.space, both.legacy_scaling) == (10.0, 10.0, True)


def test_a_failed_first_attempt_does_not_take_the_folder_and_a_run_is_not_overwritten(
    patient: nn.Module, images: tuple[ArrayData, ArrayData, ArrayData], tmp_path: Path
) -> None:
    data, _, test = images
    with pytest.raises(ParameterError, match="did you mean 'clean'"):
        treat(patient, data, test=test, out=tmp_path / "t", **{**QUICK, "axes": ("clen",)})
    with pytest.raises(hardy.HardyError, match="nope"):
        treat(patient, data, test=test, out=tmp_path / "t", how=ModelDoctor(sites=("nope",)), **QUICK)
    treat(patient, data, test=test, out=tmp_path / "t", how="label_smoothing", **QUICK)
    with pytest.raises(TrainingError, match="is the folder of a run"):
        treat(patient, data, test=test, out=tmp_path / "t" / "control" / "seed0", **QUICK)
    with pytest.raises(DataError, match="test must share no image"):
        treat(patient, data, test=data.limit(50), out=tmp_path / "u", **QUICK)


def test_a_diagnosis_of_another_net_is_refused(
    patient: nn.Module, images: tuple[ArrayData, ArrayData, ArrayData], tmp_path: Path
) -> None:
    data, _, test = images
    other = copy.deepcopy(patient)
    next(other.parameters()).data.add_(1e-3)
    found = hardy.diagnose(other, data.images(), data.y, parts=["channels"], data_name="digits train")
    with pytest.raises(ParameterError, match="it has other weights"):
        treat(patient, data, found, test=test, out=tmp_path, **QUICK)


def test_rift_and_its_control_train_by_the_same_recipe(
    patient: nn.Module, images: tuple[ArrayData, ArrayData, ArrayData], tmp_path: Path
) -> None:
    data, val, test = images
    made = treat(patient, data, test=test, val_data=val, out=tmp_path, how="rift", **QUICK)
    recipes = [load_recipe(tmp_path / place / "recipe.toml") for place in ("control/seed0", "rift/seed0/training")]
    assert recipes[0].train == OPTIONS and replace(recipes[1].train, freeze=()) == OPTIONS
    assert made.notes and "alpha" in made.notes[0] and made.notes[0] in made.verdict
    assert spec_of("rift", None).options.lr == 0.001 and spec_of("distillation", None).how == "distill"


def test_the_noise_alone_is_a_control_of_its_own(
    patient: nn.Module, images: tuple[ArrayData, ArrayData, ArrayData], tmp_path: Path
) -> None:
    data, _, test = images
    made = treat(patient, data, test=test, out=tmp_path, noise_control=True, **QUICK)
    noise = Result.read(tmp_path / "noise_control" / "seed0" / "result.json").accuracy("clean")
    assert made.over_noise[0].control == pytest.approx(noise) and "Against its noise alone" in made.verdict
