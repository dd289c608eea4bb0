"""All axes side by side: every headline once, paired differences, and nothing that a failed check forbids."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hardy.reporting.build import collect
from hardy.reporting.data import Cell, Profile
from hardy.reporting.runs import Run
from hardy.results import Check, Result, Versus

pytestmark = pytest.mark.usefixtures("no_charts")
Make = Callable[..., Result]


def shown(*results: Result) -> Profile:
    page = collect([Run(name=n, path=Path(n), result=r) for n, r in zip("abc", results, strict=False)])
    assert page.profile is not None
    return page.profile


def cells(made: Profile, title: str) -> tuple[Cell, ...]:
    return next(row.cells for row in made.rows if row.title == title)


def test_every_axis_has_one_row_with_its_headline(make_result: Make) -> None:
    result = make_result(beyond=True)
    made = shown(result)
    assert len(made.rows) == len(result.axes) and made.rows[0].title == "clean"
    assert {row.title: row.condition for row in made.rows}["corruptions"] == "mean accuracy"
    assert cells(made, "clean")[0].accuracy == f"{100 * result.accuracy('clean'):.1f}"
    assert cells(made, "corruptions")[0].accuracy == f"{100 * result.accuracy('corruptions'):.1f}"
    assert cells(made, "certified")[0].accuracy == "0.310 pixels (l2)"
    assert {row.title: row.better for row in made.rows}["calibration"] == "lower is better"


def test_means_over_conditions_are_compared_image_by_image(make_result: Make) -> None:
    made = shown(make_result(beyond=True), make_result(0.3, beyond=True))
    gain = cells(made, "corruptions")[1].difference
    assert gain is not None and gain.verdict == "gain" and 9 < float(gain.text) < 11


def test_less_of_an_error_is_a_gain(make_result: Make) -> None:
    made = shown(make_result(beyond=True), make_result(0.3, beyond=True))
    found = cells(made, "calibration")[1].difference
    assert found is not None and found.verdict == "gain" and found.text == "\N{MINUS SIGN}0.030"


def test_numbers_without_images_behind_them_are_not_compared(make_result: Make) -> None:
    made = shown(make_result(beyond=True), make_result(0.3, beyond=True))
    assert cells(made, "certified")[1].difference is None


def test_a_run_stands_beside_its_own_base(make_result: Make) -> None:
    own = make_result(beyond=True)
    right = np.zeros(own.n, np.bool_)
    right[:90] = True
    rows = (
        Versus(axis="clean", base="plain", accuracy=own.accuracy("clean"), base_accuracy=0.25, difference=0.72,
               low=0.7, high=0.74, p=1e-9, verdict="better"),
        Versus(axis="corruptions", base="plain", accuracy=own.accuracy("corruptions"), base_accuracy=0.5,
               difference=0.1, low=-0.1, high=0.3, p=0.2, verdict="unclear", label="mean accuracy"),
    )  # fmt: skip
    made = shown(replace(own, versus=rows, outcomes_by_point={**own.outcomes_by_point, "base/clean": right}))
    assert made.names == ("plain", "a") and len(made.legends) == 2
    before, after = cells(made, "clean")
    assert (before.accuracy, before.interval) == ("25.0", "[20.8, 29.7]")  # Wilson, 90 of 360
    assert after.difference is not None and after.difference.verdict == "gain"
    assert cells(made, "corruptions")[0].interval == "" and not cells(made, "noise")[0].measured


def test_why_there_is_no_difference_stands_beside_the_number(make_result: Make) -> None:
    made = shown(make_result(beyond=True), make_result(0.3, beyond=True, data="other data"))
    for title in ("clean", "corruptions"):
        after = cells(made, title)[1]
        assert after.difference is None and after.note == "not compared: other data", title


@pytest.mark.parametrize("code", ["zero_gradient", "noise_beats_gradients"])
def test_an_attack_that_failed_or_was_beaten_voids_every_search_along_gradients(make_result: Make, code: str) -> None:
    checks = (Check(code=code, status="fail", evidence="seen"),)
    made = shown(make_result(beyond=True, checks=()), make_result(0.3, beyond=True, checks=checks))
    assert cells(made, "weights")[1].void and cells(made, "weights")[1].difference is None
    assert not cells(made, "corruptions")[1].void


def test_a_failed_check_takes_the_comparison_with_the_base_back(make_result: Make) -> None:
    row = Versus(axis="white_box", base="plain", accuracy=0.9, base_accuracy=0.1, difference=0.8, low=0.7, high=0.9,
                 p=1e-9, verdict="better")  # fmt: skip
    sound = shown(make_result(versus=(row,), checks=()))
    masked = shown(make_result(versus=(row,), checks=(Check(code="zero_gradient", status="fail", evidence="seen"),)))
    assert cells(sound, "white-box")[1].difference is not None
    assert cells(masked, "white-box")[1].difference is None and cells(masked, "white-box")[1].void
