"""What the options of ``hardy evaluate`` open: settings, references, other data, cue-conflict images."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from hardy.cli.material import budget_of, material_of, reference_of
from hardy.corruptions import ALEXNET_ERRORS
from hardy.data import load_data
from hardy.errors import ConfigError, DataError, ParameterError
from hardy.evaluation import Budget
from hardy.results import Axis, Result, point
from hardy.threats import Threat


class TestBudget:
    def test_values_have_the_kind_of_their_default(self) -> None:
        made = budget_of(
            ["severities=1, 3", "smoothing_sigma=0.25", "queries=20", "corruptions=fog,snow", "sigmas=8/255"]
        )
        assert made == Budget(
            severities=(1, 3), smoothing_sigma=0.25, queries=20, corruptions=("fog", "snow"), sigmas=(8 / 255,)
        )
        assert budget_of([]) == Budget() and budget_of([], quick=True) == Budget.quick()
        assert budget_of(["queries=7"], quick=True) == dataclasses.replace(Budget.quick(), queries=7)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("severitys=1", "did you mean 'severities'"),
            ("queries", "must be NAME=VALUE"),
            ("queries=many", "queries must be a whole number; got 'many'"),
            ("queries=1.5", "queries must be a whole number"),
            ("sigmas=0.1,x", "sigmas must be numbers; got 'x'"),
        ],
    )
    def test_a_wrong_setting_is_an_error(self, text: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            budget_of([text])

    def test_a_value_out_of_range_is_that_of_budget(self) -> None:
        with pytest.raises(ParameterError, match="Budget: severities must be some of"):
            budget_of(["severities=6"])


def result_of(axes: tuple[Axis, ...]) -> Result:
    return Result(model="plain net", num_classes=2, class_names=("a", "b"), data="d", n=4, threat=Threat("linf", 0.1),
                  seed=0, axes=axes, checks=())  # fmt: skip


def test_errors_of_another_run_are_means_over_severities(tmp_path: Path) -> None:
    right = [np.arange(4) < k for k in (4, 3, 1)]
    axes = (
        Axis(name="clean", question="?", headline="clean", points=(point("clean", right[0]),)),
        Axis(name="corruptions", question="?", headline="fog 1", points=(
            *(point(f"fog {s}", right[1 + (s > 3)], series="fog") for s in range(1, 6)),)),
    )  # fmt: skip
    result_of(axes).save(tmp_path / "result.json")
    errors, name = reference_of(str(tmp_path))
    assert dict(errors) == {"fog": pytest.approx((3 * 0.25 + 2 * 0.75) / 5), "clean": 0.0} and name == "plain net"
    fewer = dataclasses.replace(axes[1], points=axes[1].points[:2])
    result_of((fewer,)).save(tmp_path / "few.json")
    with pytest.raises(ConfigError, match="must have all five severities; got 2 of fog"):
        reference_of(str(tmp_path / "few.json"))
    result_of(axes[:1]).save(tmp_path / "other.json")
    with pytest.raises(ConfigError, match="has no axis corruptions"):
        reference_of(str(tmp_path / "other.json"))


def test_the_published_reference_is_named() -> None:
    errors, name = reference_of("alexnet")
    assert errors is ALEXNET_ERRORS and "AlexNet" in name


def test_other_data_get_the_size_and_the_channels_of_the_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (30, 20, 20, 3), dtype=np.uint8)
    np.savez(tmp_path / "other.npz", x_test=colour, y_test=np.zeros(30, np.int64))
    images = load_data("digits", limit=12)
    made = material_of(images, None, data="digits", other=[f"npz:{tmp_path / 'other.npz'}"])
    (x,) = made.other.values()
    assert x.shape[1:] == images.shape and len(x) <= 12 and 0 <= float(x.min()) < float(x.max()) <= 1
    assert made.train is not None and made.train[0].shape[1:] == images.shape
    seen = {row.numpy().tobytes() for row in made.train[0]}
    assert not any(row.numpy().tobytes() in seen for row in images.images())  # training images, not the evaluated ones
    assert material_of(images, None, data="digits").train is None  # nobody asks for them


def test_cue_conflict_images_may_be_drawn(tmp_path: Path) -> None:
    images = load_data("shapes:classes=4,n=40,n_test=20", size=16)
    made = material_of(images, None, data=None, cue_conflict="shapes:classes=4")
    assert made.cue_conflict is not None and made.cue_conflict.x.shape[1:] == images.shape
    assert int(torch.maximum(made.cue_conflict.shape, made.cue_conflict.texture).max()) == 3
    with pytest.raises(DataError, match="there is none"):
        material_of(images, None, data=None, cue_conflict=str(tmp_path / "nothing"))
