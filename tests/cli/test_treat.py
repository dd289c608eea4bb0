"""``hardy treat``: before, control and treated from a run folder, words on stderr, JSON on stdout, errors first."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hardy import io
from hardy.cli.main import app
from hardy.cli.targets import open_data
from hardy.cli.treat import _training_part
from hardy.data import load_data
from hardy.diagnosis import Diagnosis, diagnose
from hardy.methods.model_doctor import read_relevance
from hardy.training.build import load_training_data
from hardy.training.recipe import load_recipe

RECIPE = """
[model]
name = "cifar_resnet8"
args = { width = 4 }
[data]
name = "digits"
limit = 200
augment = ["crop"]
[train]
epochs = 3
batch_size = 40
"""
FAST = ("--epochs", "1", "--set", "train.batch_size=40", "--limit", "40", "--axes", "clean,calibration")


def hardy(*args: str | Path) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "recipe.toml").write_text(RECIPE)
    assert hardy("train", folder / "recipe.toml", "--out", folder / "a", "--quiet").exit_code == 0
    return folder / "a"


def test_it_compares_before_control_and_treated_and_says_so(run: Path, tmp_path: Path) -> None:
    done = hardy("treat", run, "--out", tmp_path / "t", "--seeds", "0,1", *FAST)
    assert done.exit_code == 0 and done.stdout == ""
    said = " ".join(done.stderr.split())
    for text in ("control, seed 0: training for 1 epochs", "Clean accuracy:", "2 trainings: intervals are over images"):
        assert text in said
    files = {p.relative_to(tmp_path / "t").as_posix() for p in (tmp_path / "t").rglob("*") if p.is_file()}
    assert {"treatment.json", "report.html", "before/result.json", "channel/seed1/model.safetensors"} <= files
    kept = load_recipe(tmp_path / "t" / "channel" / "seed1" / "recipe.toml")
    assert kept.seed == 1 and kept.train.lr == 0.01 and kept.train.batch_size == 40 and kept.data.augment == ("crop",)
    assert [table["name"] for table in kept.methods] == ["model_doctor"]


def test_json_is_the_whole_of_stdout_and_fields_reach_the_method(run: Path, tmp_path: Path) -> None:
    args = ("treat", run, "--out", tmp_path / "t", "--how", "lfm", "--set", "method.p=0.5", *FAST)
    done = hardy(*args, "--json", "--quiet")
    assert done.exit_code == 0 and done.stderr == ""
    document = json.loads(done.stdout)
    assert document["how"] == "lfm" and "p=0.5" in document["methods"][0] and document["seeds"] == [0]
    assert document == {"out": str(tmp_path / "t"), **json.loads((tmp_path / "t" / "treatment.json").read_text())}
    assert {gain["axis"] for gain in document["gains"]} == {"clean", "calibration"}


def test_maps_of_a_diagnosis_are_used(run: Path, tmp_path: Path) -> None:
    data = load_data("digits", split="train").limit(100)
    model = io.load(run / "model.safetensors")
    made = diagnose(model, data.images(), data.y, parts=["channels"], data_name="digits train", rows=data.index)
    made.save(tmp_path / "d" / "diagnosis.json")
    assert hardy("treat", run, "--out", tmp_path / "t", "--diagnosis", tmp_path / "d", *FAST).exit_code == 0
    (site, used), *_ = read_relevance(tmp_path / "t" / "relevance.safetensors").items()
    assert torch.allclose(used, Diagnosis.read(tmp_path / "d").correlation(site), rtol=0, atol=0, equal_nan=True)
    assert hardy("treat", run, "--out", tmp_path / "own", *FAST).exit_code == 0
    assert not torch.equal(
        read_relevance(tmp_path / "own" / "relevance.safetensors")[site].nan_to_num(), used.nan_to_num()
    )


def test_masks_make_the_space_wise_constraint(run: Path, tmp_path: Path) -> None:
    n = 1797 - 360
    np.savez(tmp_path / "m.npz", masks_train=np.ones((n, 8, 8), np.uint8) * (np.arange(8) < 4))
    args = ("treat", run, "--out", tmp_path / "t", "--how", "space", "--masks", f"npz:{tmp_path / 'm.npz'}", *FAST)
    assert hardy(*args).exit_code == 0
    row = json.loads((tmp_path / "t" / "space" / "seed0" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["space"] > 0 and "channel" not in row


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--how", "chanel"), "no treatment 'chanel'; did you mean 'channel'?"),
        (("--how", "space"), "needs to know the objects"),
        (("--seeds", "0,x"), "--seeds: must be whole numbers"),
        (("--checks", "some"), "--checks: must be derived or full"),
        (("--set", "lr=1"), "keys must begin with train. or method."),
        (("--set", "method.nose=1"), "nose"),
        (("--how", "rift", "--set", "method.p=1"), "rift takes no fields of a method"),
        (("--eps", "8"), "Did you mean 8/255?"),
        (("--preset", "papre"), "did you mean 'paper'?"),
    ],
)
def test_mistakes_end_in_one_line_before_any_work(args: tuple[str, ...], said: str, run: Path, tmp_path: Path) -> None:
    done = hardy("treat", run, "--out", tmp_path / "t", *args)
    assert done.exit_code == 2 and said in " ".join(done.stderr.split())
    assert not (tmp_path / "t").exists()


def test_it_trains_on_the_images_that_the_patient_was_trained_on(run: Path, tmp_path: Path) -> None:
    recipe = replace(load_recipe(run / "recipe.toml"), seed=3)
    own, _ = load_training_data(recipe)
    limit, seed = _training_part(recipe, None, None)
    taken = open_data(None, recipe, split="train", limit=limit, size=None, seed=seed)
    assert torch.equal(taken.index, own.index) and len(taken) == 200
    other = open_data(None, recipe, split="train", limit=limit, size=None, seed=0)
    assert not torch.equal(other.index, own.index)  # the seed matters
    assert _training_part(recipe, "npz:x.npz", None) == (None, 0) and _training_part(recipe, None, 50) == (50, 3)


def test_a_field_beside_a_preset_leaves_the_rest_of_the_preset(run: Path, tmp_path: Path) -> None:
    args = ("treat", run, "--out", tmp_path / "t", "--preset", "repo", "--set", "method.noise=0.1", *FAST)
    assert hardy(*args).exit_code == 0
    question = json.loads((tmp_path / "t" / "question.json").read_text())
    assert question["top"] == 50 and question["how"] == "channel"
    assert "sign='positive'" in question["method"] and "noise=0.1" in question["method"]
