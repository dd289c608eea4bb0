"""The transfer matrix: the same net is one column, whatever it was called; a net is not its own source unmarked."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hardy.reporting.runs import Run
from hardy.reporting.transfer import transfer_matrix
from hardy.results import Check, Point, Result, point

Make = Callable[..., Result]
Outcomes = Callable[[float], Any]


def as_run(result: Result, name: str = "a") -> Run:
    return Run(name=name, path=Path(name), result=result)


def with_points(result: Result, *points: Point) -> Result:
    """Replace the points of transfer."""
    axis = replace(result.axis("transfer"), points=points, headline=points[0].label)
    return replace(result, axes=tuple(axis if a.name == "transfer" else a for a in result.axes))


def source(label: str, right: Any, weights: str, series: str = "independent", **details: Any) -> Point:
    facts = {"source": label, "source_weights": weights, "conditional_accuracy": 0.25, "conditional_n": 1200, **details}
    return point(label, right, level=8 / 255, series=series, details=facts)


def weights_of(result: Result) -> str:
    return result.arrays["model_weights"].tobytes().hex()


def heads(*runs: Run) -> list[tuple[str, str]]:
    matrix = transfer_matrix(runs)
    assert matrix is not None
    return list(matrix.heads)


def test_the_base_of_one_run_is_a_run_of_the_page(make_result: Make) -> None:
    runs = [as_run(make_result(twin="p"), "plain"), as_run(make_result(0.1, twin="q", base="p"), "hard")]
    matrix = transfer_matrix(runs)
    assert matrix is not None
    assert list(matrix.heads) == [
        ("plain", "before hardening"), ("plain-b", "other training"), ("own twin", "same method, other seed"),
    ]  # fmt: skip
    plain, hard = matrix.rows
    assert (plain.cells[0].text, plain.cells[0].mark) == ("", "itself")
    assert hard.cells[0].text == "61.9" and hard.cells[0].notes == ()
    assert hard.cells[1].notes == ("52.0 % of 214",)
    assert [row.cells[2].notes for row in matrix.rows] == [("57.0 % of 214", "p"), ("57.0 % of 214", "q")]
    assert [row.cells[1].text for row in matrix.rows] == ["50.0", "60.0"] and hard.cells[1].tint == 6


def test_the_same_weights_under_two_names_are_one_column(make_result: Make, outcomes: Outcomes) -> None:
    first = with_points(make_result(twin="a"), source("x", outcomes(0.5), "ee"))
    second = with_points(make_result(twin="b"), source("y", outcomes(0.6), "ee"), source("z", outcomes(0.7), "ff"))
    assert [name for name, _ in heads(as_run(first), as_run(second, "b"))] == ["x", "z"]


def test_other_weights_under_one_name_are_two_columns(make_result: Make, outcomes: Outcomes) -> None:
    first = with_points(make_result(twin="a"), source("x", outcomes(0.5), "ee"))
    second = with_points(make_result(twin="b"), source("x", outcomes(0.6), "ff"))
    assert [name for name, _ in heads(as_run(first), as_run(second, "b"))] == ["x", "x"]


def test_a_source_that_is_the_net_itself_is_marked(make_result: Make, outcomes: Outcomes) -> None:
    result = make_result(twin="a", checks=(Check(code="source_is_model", status="fail", evidence="seen"),))
    matrix = transfer_matrix([as_run(with_points(result, source("me", outcomes(0.5), weights_of(result))))])
    assert matrix is not None
    cell = matrix.rows[0].cells[0]
    assert (cell.mark, cell.void, cell.tint) == ("itself", True, 0)
    assert matrix.rows[0].sub == "void: check source_is_model failed"


def test_the_net_without_its_methods_is_not_itself(make_result: Make, outcomes: Outcomes) -> None:
    result = make_result(twin="a")
    made = with_points(result, source("methods removed", outcomes(0.5), weights_of(result), "base"))
    matrix = transfer_matrix([as_run(made)])
    assert matrix is not None and matrix.rows[0].cells[0].mark == ""
    assert matrix.heads == (("methods removed", "itself, without them"),)


def test_ensembles_share_a_column_and_are_named_in_the_cell(make_result: Make, outcomes: Outcomes) -> None:
    first = with_points(make_result(twin="a"), source("ensemble of 2", outcomes(0.5), "ee+ff", "ensemble"))
    second = with_points(make_result(twin="b"), source("ensemble of 3", outcomes(0.5), "ee+ff+aa", "ensemble"))
    matrix = transfer_matrix([as_run(first), as_run(second, "b")])
    assert matrix is not None and matrix.heads == (("own ensemble", "other trainings, averaged"),)
    assert [row.cells[0].notes[-1] for row in matrix.rows] == ["ensemble of 2", "ensemble of 3"]


def test_other_budgets_and_results_without_fingerprints(make_result: Make, outcomes: Outcomes, without: Make) -> None:
    far = replace(source("x", outcomes(0.1), ""), label="x, linf 16/255", level=16 / 255)
    old = replace(source("x", outcomes(0.5), ""), details={"source": "x"})
    matrix = transfer_matrix([as_run(with_points(make_result(), old, far))])
    assert matrix is not None and len(matrix.heads) == 1
    assert matrix.rows[0].cells[0].text == "50.0" and matrix.rows[0].cells[0].notes == ()
    assert transfer_matrix([as_run(without(make_result(), "transfer"))]) is None


def test_two_seeds_of_one_method_are_columns_of_each_other(make_result: Make, outcomes: Outcomes) -> None:
    first, second = make_result(twin="a"), make_result(twin="b")
    runs = [
        as_run(with_points(own, source("sibling", outcomes(0.5), weights_of(other), "gray-box")), name)
        for own, other, name in ((first, second, "seed 0"), (second, first, "seed 1"))
    ]
    matrix = transfer_matrix(runs)
    assert matrix is not None and [name for name, _ in matrix.heads] == ["seed 0", "seed 1"]
    assert [[cell.text or cell.mark for cell in row.cells] for row in matrix.rows] == [
        ["itself", "50.0"], ["50.0", "itself"],
    ]  # fmt: skip
