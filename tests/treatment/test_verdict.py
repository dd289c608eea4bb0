"""Gains against plain arithmetic, and verdicts that planted differences must get."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from hardy import evaluate
from hardy.errors import ParameterError
from hardy.results import Result
from hardy.treatment.record import Treatment
from hardy.treatment.verdict import Gain, gains


class Answers(nn.Module):
    """A net that knows which images it gets wrong: pixel (0, 0) is the image's number, pixel (0, 1) its class."""

    def __init__(self, wrong: Sequence[int], sure: float = 4.0) -> None:
        super().__init__()
        self.register_buffer("wrong", torch.tensor(sorted(wrong) or [-1]))
        self.sure = sure
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        number, y = (x[:, 0, 0, 0] * 1000).round().long(), (x[:, 0, 0, 1] * 10).round().long() % 4
        bad = torch.isin(number, self.wrong)
        answer = torch.where(bad, (y + 1) % 4, y)
        return self.scale * self.sure * torch.nn.functional.one_hot(answer, 4).float() + 0 * x.sum((1, 2, 3))[:, None]


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    y = torch.arange(200) % 4
    x = torch.rand(200, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    x[:, 0, 0, 0], x[:, 0, 0, 1] = torch.arange(200) / 1000, y / 10
    return x, y


def result(images: tuple[Tensor, Tensor], wrong: Sequence[int], sure: float = 4.0) -> Result:
    return evaluate(Answers(wrong, sure).eval(), *images, axes=["clean", "calibration"])


def row(found: tuple[Gain, ...], axis: str, label: str | None = None) -> Gain:
    return next(g for g in found if g.axis == axis and label in (None, g.label))


def test_one_training_is_judged_over_images(images: tuple[Tensor, Tensor]) -> None:
    before, control = result(images, range(60)), result(images, range(50))
    better = row(gains(before, [control], [result(images, range(20))]), "clean")
    assert (better.before, better.control, better.treated) == (0.7, 0.75, 0.9)
    assert better.difference == pytest.approx(0.15) and better.over == "images" and better.verdict == "better"
    assert better.low is not None and better.high is not None and 0.09 < better.low < 0.15 < better.high < 0.21
    worse = row(gains(before, [control], [result(images, range(80))]), "clean")
    assert worse.difference == pytest.approx(-0.15) and worse.verdict == "worse"
    unclear = row(gains(before, [control], [result(images, [*range(48), 150])]), "clean")
    assert unclear.difference == pytest.approx(0.005) and unclear.verdict == "unclear"


def test_several_trainings_are_judged_over_trainings(images: tuple[Tensor, Tensor]) -> None:
    before = result(images, range(60))
    controls = [result(images, range(n)) for n in (50, 46, 54)]
    treated = [result(images, range(n)) for n in (40, 38, 42)]
    found = row(gains(before, controls, treated), "clean")
    differences = np.array([10, 8, 12]) / 200
    low, high = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    assert found.over == "trainings" and found.verdict == "better"
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    scattered = [result(images, range(n)) for n in (20, 60, 40)]  # better on average, by one training alone
    assert row(gains(before, controls, scattered), "clean").verdict == "unclear"


def test_an_error_is_better_where_it_is_lower(images: tuple[Tensor, Tensor]) -> None:
    sure, unsure = result(images, range(10), sure=8.0), result(images, range(10), sure=1.0)
    for before, after, word in ((sure, unsure, "worse"), (unsure, sure, "better")):
        brier = row(gains(before, [before], [after]), "calibration", "Brier score")
        assert brier.kind == "error" and brier.verdict == word and (brier.difference < 0) is (word == "better")
        assert brier.low is not None and brier.high is not None and brier.low < brier.difference < brier.high
    found = gains(sure, [sure], [unsure])
    ece = row(found, "calibration", "expected calibration error")
    assert ece.low is None and ece.over == "" and ece.verdict == "unclear"  # no number per image, one training
    assert row(gains(sure, [sure] * 3, [unsure] * 3), "calibration", ece.label).over == "trainings"


def test_classes_are_judged_together(images: tuple[Tensor, Tensor]) -> None:
    before = result(images, range(0, 200, 4))  # all of class 0
    found = gains(before, [before], [result(images, [])])
    classes = {g.label: g for g in found if g.label.startswith("class ")}
    assert list(classes) == ["class 0", "class 1", "class 2", "class 3"]
    assert classes["class 0"].difference == 1 and classes["class 0"].verdict == "better"
    assert all(classes[f"class {c}"].verdict == "unclear" for c in (1, 2, 3))
    some = gains(before, [before], [result(images, range(32, 200, 4))])  # 8 of 50 mended: 0.008, not below 0.05 / 4
    assert row(some, "clean", "class 0").verdict == "better"
    fewer = gains(before, [before], [result(images, range(24, 200, 4))])  # 6 of 50: p 0.031
    assert row(fewer, "clean", "class 0").verdict == "unclear" and row(fewer, "clean").verdict == "better"


def test_others_images_and_missing_controls_are_refused(images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    one, other = result(images, []), result((x[:100], y[:100]), [])
    with pytest.raises(ParameterError, match="each treated net must have its control; got 0 and 1"):
        gains(one, [one], [])
    with pytest.raises(ParameterError, match="same images"):
        gains(one, [one], [other])


def test_equal_trainings_do_not_make_one_image_a_verdict(images: tuple[Tensor, Tensor]) -> None:
    before = result(images, range(60))
    controls, treated = [result(images, range(50))] * 3, [result(images, range(49))] * 3
    found = row(gains(before, controls, treated), "clean")
    assert found.low == found.high == pytest.approx(1 / 200) and found.verdict == "unclear"
    more = row(gains(before, controls, [result(images, range(47))] * 3), "clean")
    assert more.verdict == "better"


def test_a_patient_that_stays_is_not_called_better(images: tuple[Tensor, Tensor]) -> None:
    before = result(images, range(20))
    harmed, unchanged = [result(images, range(n)) for n in (60, 64, 62)], [before] * 3
    clean = row(gains(before, harmed, unchanged), "clean")
    assert clean.verdict == "better" and clean.change == 0 and clean.against_before == "unclear"
    less = row(gains(before, harmed, [result(images, range(n)) for n in (40, 42, 41)]), "clean")
    assert less.verdict == "better" and less.against_before == "worse"
    made = Treatment(model=nn.Identity(), how="rift", methods=(), seeds=(0, 1, 2), gains=(less,), folder=Path("x"))
    assert "It is worse than before, though less than after the same training" in made.verdict


def test_other_labels_are_refused(images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    other = evaluate(Answers([]).eval(), x, (y + 1) % 4, axes=["clean", "calibration"])
    with pytest.raises(ParameterError, match="same images and labels"):
        gains(result(images, []), [result(images, [])], [other])
