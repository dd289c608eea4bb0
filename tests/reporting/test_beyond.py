"""Axes without an adversary: many series become a heat map, two strengths a table, scores a table with differences."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hardy.reporting.beyond import sections
from hardy.reporting.data import AxisSection
from hardy.reporting.runs import Run
from hardy.results import Result

pytestmark = pytest.mark.usefixtures("no_charts")
Make = Callable[..., Result]


def shown(*results: Result) -> dict[str, AxisSection]:
    runs = [Run(name=n, path=Path(n), result=r) for n, r in zip("abc", results, strict=False)]
    return {part.title: part for part in sections(runs)}


def test_attacks_and_plain_images_have_their_own_places(make_result: Make) -> None:
    found = shown(make_result(beyond=True))
    assert list(found) == ["noise", "texture", "corruptions", "weights", "calibration", "certified"]


def test_one_run_shows_every_series_over_its_strengths(make_result: Make) -> None:
    result = make_result(beyond=True)
    part = shown(result)["corruptions"]
    (matrix,) = part.matrices
    assert [head for head, _ in matrix.heads] == ["1", "3", "5"] and len(matrix.rows) == 5
    fog = next(row for row in matrix.rows if row.head == "fog")
    assert fog.cells[1].text == f"{100 * result.accuracy('corruptions', 'fog 3'):.1f}"
    assert not part.curves and len(part.folded) == 5


def test_several_runs_show_means_over_strengths(make_result: Make) -> None:
    results = make_result(beyond=True), make_result(0.3, beyond=True)
    (matrix,) = shown(*results)["corruptions"].matrices
    snow = next(row for row in matrix.rows if row.head == "snow")
    for cell, result in zip(snow.cells, results, strict=True):
        mean = np.mean([result.accuracy("corruptions", f"snow {s}") for s in (1, 3, 5)])
        assert cell.text == f"{100 * mean:.1f}" and cell.tint == round(10 * mean)


def test_two_strengths_make_a_table(make_result: Make) -> None:
    result = make_result(beyond=True)
    part = shown(result)["weights"]
    (matrix,) = part.matrices  # and no table of series that have no strength in common
    assert len(part.curves) == 6 and not part.folded
    assert [row.head for row in matrix.rows] == ["0", "8/255"] and len(matrix.heads) == 3
    assert matrix.rows[1].cells[2].text == f"{100 * result.accuracy('weights', f'eps {8 / 255:g}, weights 0.03'):.1f}"


def test_scores_are_listed_and_compared(make_result: Make) -> None:
    part = shown(make_result(beyond=True), make_result(0.3, beyond=True))["corruptions"]
    (table,) = part.tables
    assert [row.head for row in table.rows] == ["mean accuracy", "mCE"]
    mean, mce = (row.cells[1] for row in table.rows)
    assert mean.difference is not None and mean.difference.verdict == "gain"
    assert (mce.accuracy, mce.difference) == ("0.910", None)  # no number per image


def test_scores_over_a_strength_are_drawn_and_not_listed(make_result: Make) -> None:
    part = shown(make_result(beyond=True))["calibration"]
    assert [row.head for table in part.tables for row in table.rows] == ["Brier score"]
    assert [curve.chart.title for curve in part.curves] == ["calibration: reliability"]
    assert len(part.curves[0].rows) == 5
