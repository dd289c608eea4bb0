"""A failed check voids the numbers that it speaks of; a warning is named beside the claim."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardy.reporting.build import collect
from hardy.reporting.compare import Paired, scores, topics
from hardy.reporting.data import ReportData
from hardy.reporting.runs import Run
from hardy.reporting.trust import caution, failed, void, warned
from hardy.results import Check, Result, Status, point

pytestmark = pytest.mark.usefixtures("no_charts")
Make = Callable[..., Result]
Outcomes = Callable[[float], np.ndarray[Any, Any]]
AXES = ("clean", "noise", "white_box", "eps_curve", "transfer", "texture", "an axis of tomorrow")
GRADIENT = ("white_box", "eps_curve")
DERIVED = (
    *("zero_gradient", "monotone_eps", "chance_level", "noise_beats_gradients", "transfer_beats_white_box"),
    "more_budget",
)
GUARDS = ("eval_mode", "bn_statistics", "logits", "gradient", "batch_independent", "a check of tomorrow")


def checks(code: str, status: Status) -> tuple[Check, ...]:
    return (Check(code=code, status=status, evidence="seen"), Check(code="few", status="pass", evidence="none"))


def robust(make_result: Make, outcomes: Outcomes, *found: Check, accuracy: float = 0.9) -> Result:
    """Make a result that shows a large white-box accuracy, on the curve as well."""
    result = make_result(checks=found)
    kept, axes = dict(result.outcomes_by_point), []
    for axis in result.axes:
        changed = []
        for p in axis.points:
            if axis.name in GRADIENT and p.label in ("pgd", "eps 8/255"):
                right = outcomes(accuracy)
                kept[f"{axis.name}/{p.label}"] = right
                changed.append(replace(p, **{k: getattr(point("x", right), k) for k in ("accuracy", "low", "high")}))
            else:
                changed.append(p)
        axes.append(replace(axis, points=tuple(changed)))
    return replace(result, axes=tuple(axes), outcomes_by_point=kept)


def read(*results: Result) -> ReportData:
    return collect([Run(name=name, path=Path(name), result=r) for name, r in zip("abc", results, strict=False)])


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def told(page: ReportData) -> str:
    return plain(" ".join([page.lead, *(f"{s.label}: {s.text}" for s in page.statements)]))


@pytest.mark.parametrize("code", [*DERIVED, *GUARDS, "source_is_model"])
def test_a_failed_check_voids_the_axes_that_it_speaks_of(make_result: Make, code: str) -> None:
    result = make_result(checks=checks(code, "fail"))
    speaks = GRADIENT if code in DERIVED else ("transfer",) if code == "source_is_model" else AXES
    assert {axis for axis in AXES if failed(result, axis) == (code,)} == set(speaks)
    assert {axis for axis in AXES if void(result, axis) == f"void: check {code} failed"} == set(speaks)
    assert not any(warned(result, axis) for axis in AXES)


@pytest.mark.parametrize("status", ["warn", "pass", "not_run"])
def test_only_a_failed_check_voids(make_result: Make, status: Status) -> None:
    result = make_result(checks=checks("logits", status))
    assert not any(failed(result, axis) or void(result, axis) for axis in AXES)
    assert all(warned(result, axis) == (("logits",) if status == "warn" else ()) for axis in AXES)


def test_without_a_failed_check_the_gain_is_claimed(make_result: Make, outcomes: Outcomes) -> None:
    page = read(make_result(checks=()), robust(make_result, outcomes))
    assert "b gains on white-box (+89.7 points). At" in plain(page.lead)


@pytest.mark.parametrize("code", DERIVED)
def test_a_masked_net_gains_nothing_anywhere_on_the_page(make_result: Make, outcomes: Outcomes, code: str) -> None:
    page = read(make_result(checks=()), robust(make_result, outcomes, *checks(code, "fail")))
    lead = plain(page.lead)
    assert "b shows no clear gain anywhere." in lead and "gains" not in told(page)
    assert f"b shows 90.0 % on white-box, but its check {code} failed: no evidence." in lead
    assert (
        "White-box accuracy is near zero. At Linf, eps 8/255, an attacker who knows the net breaks a: it keeps" in lead
    )
    cells = {cell.column: cell for cell in page.rows[1].cells}
    for column in ("white-box", "eps curve"):
        assert (cells[column].note, cells[column].difference) == (f"void: check {code} failed", None)
        assert cells[column].void and not cells["noise"].void
        assert cells[column].accuracy == "90.0"
    assert cells["noise"].difference is not None and not cells["noise"].note
    curve = next(curve for curve in page.curves if curve.chart.title == "eps curve")
    assert curve.question.endswith(f"b is void: check {code} failed.")
    assert all(row.cells[1].difference is None and row.cells[1].void for row in curve.rows)
    assert page.per_class is not None and page.per_class.heads == ("clean", "white-box", "clean", "white-box (void)")
    assert not any(s.label == "Over eps" for s in page.statements)


def test_a_masked_baseline_makes_nobody_lose(make_result: Make, outcomes: Outcomes) -> None:
    page = read(robust(make_result, outcomes, *checks("zero_gradient", "fail")), make_result(checks=()))
    assert "loses" not in told(page) and "Losses" not in told(page)
    assert "a shows 90.0 % on white-box, but its check zero_gradient failed: no evidence." in plain(page.lead)
    base, other = ({cell.column: cell for cell in row.cells} for row in page.rows)
    assert base["white-box"].note == "void: check zero_gradient failed"
    assert other["white-box"].note == "not compared: check zero_gradient of the baseline failed"


def test_a_single_masked_net_is_not_called_robust(make_result: Make, outcomes: Outcomes) -> None:
    lead = plain(read(robust(make_result, outcomes, *checks("chance_level", "fail"))).lead)
    assert "a shows 90.0 % on white-box, but its check chance_level failed: no evidence." in lead
    assert "What is left against an attacker who knows the net is not known." in lead
    assert "leaves it" not in lead and "eps curve" not in lead


def test_a_failed_guard_leaves_no_number(make_result: Make) -> None:
    page = read(make_result(checks=()), make_result(0.2, checks=checks("bn_statistics", "fail")))
    assert "No number of b is evidence: its check bn_statistics failed." in page.lead
    assert all(cell.note == "void: check bn_statistics failed" for cell in page.rows[1].cells)
    assert "gains" not in told(page) and "Attacks made on the same method from another seed leave 45.0 % (a)." in told(
        page
    )
    alone = plain(read(make_result(checks=checks("bn_statistics", "fail"))).lead)
    assert alone.startswith("a was evaluated on 360 images. No number of a is evidence") and "%" not in alone


def test_a_source_that_is_the_model_voids_transfer_and_gray_box_only(make_result: Make) -> None:
    page = read(make_result(checks=()), make_result(0.3, checks=checks("source_is_model", "fail")))
    assert {cell.column for cell in page.rows[1].cells if cell.note.startswith("void")} == {"transfer", "gray-box"}
    assert "b gains on noise" in page.lead and "Gray-box: Attacks made on the same method" in told(page)
    assert "(b)" not in next(s.text for s in page.statements if s.label == "Gray-box")
    assert "b shows 80.0 % on transfer and 45.0 % on gray-box, but its check source_is_model failed" in plain(page.lead)


def test_the_noise_control_is_not_voided_by_masked_gradients(make_result: Make) -> None:
    page = read(make_result(checks=()), make_result(checks=checks("zero_gradient", "fail")))
    rows = [row for table in page.point_tables for row in table.rows if row.run == "b" and table.title == "white-box"]
    assert [bool(row.cell.note) for row in rows] == [True, False]
    assert any(s.label == "Control" for s in page.statements)


def test_a_warning_stands_beside_the_claim(make_result: Make, outcomes: Outcomes) -> None:
    page = read(make_result(checks=()), robust(make_result, outcomes, *checks("monotone_eps", "warn")))
    assert "b gains on white-box (+89.7 points; check monotone_eps warned)." in plain(page.lead)
    assert "But check monotone_eps of b warned: read it with care." in page.lead
    cells = {cell.column: cell for cell in page.rows[1].cells}
    assert cells["white-box"].difference is not None and cells["white-box"].note == "check monotone_eps warned"
    assert not cells["noise"].note
    assert "points), but check monotone_eps warned." in told(page)


def test_a_warning_of_the_baseline_is_named_as_such(make_result: Make) -> None:
    base, run = make_result(checks=checks("few_images", "warn")), make_result(0.2, checks=())
    assert caution(base, run, "noise") == "check few_images of the baseline warned"
    assert caution(base, replace(run, checks=base.checks), "noise") == "check few_images warned"
    assert caution(run, run, "noise") == ""
    assert "transfer (+20.0 points; check few_images of the baseline warned)" in read(base, run).lead


def test_texture_is_shown_but_is_neither_gain_nor_loss(make_result: Make, outcomes: Outcomes) -> None:
    result, right = make_result(checks=()), outcomes(0.01)
    axis = result.axis("texture")
    low = replace(axis.points[1], **{k: getattr(point("x", right), k) for k in ("accuracy", "low", "high")})
    axes = tuple(replace(a, points=(a.points[0], low, a.points[2])) if a is axis else a for a in result.axes)
    low_run = replace(result, axes=axes, outcomes_by_point={**result.outcomes_by_point, f"texture/{low.label}": right})
    for pair_of in ((result, low_run), (low_run, result)):
        page = read(*pair_of)
        found = next(cell for cell in page.rows[1].cells if cell.column == "texture").difference
        assert found is not None and (found.symbol, found.word, found.verdict) == ("", "", "description")
        assert abs(float(found.text.replace("\N{MINUS SIGN}", "-"))) > 30
        assert "texture" not in told(page) and "no clear gain anywhere" in page.lead
        assert "Texture tells what a net relies on; it counts neither as gain nor as loss." in page.table_notes
    assert "texture" not in read(low_run).lead


def test_a_gain_on_the_curve_alone_is_mentioned(make_result: Make, outcomes: Outcomes) -> None:
    run = robust(make_result, outcomes)
    white_box = make_result().axis("white_box")
    axes = tuple(white_box if axis.name == "white_box" else axis for axis in run.axes)
    kept = {**run.outcomes_by_point, "white_box/pgd": make_result().outcomes_by_point["white_box/pgd"]}
    both, curve = (
        read(make_result(checks=()), run),
        read(make_result(checks=()), replace(run, axes=axes, outcomes_by_point=kept)),
    )
    assert "white-box" in both.lead and "eps curve" not in both.lead
    assert "b gains on eps curve (+83.9 points)" in curve.lead


def test_the_table_is_what_the_pairs_say(make_result: Make, outcomes: Outcomes) -> None:
    runs = [
        Run(name=n, path=Path(n), result=r) for n, r in (("a", make_result()), ("b", robust(make_result, outcomes)))
    ]
    verdicts = [s.difference.verdict for s in scores(runs, topics(runs))[1] if isinstance(s.difference, Paired)]
    assert verdicts == ["unclear", "unclear", "gain", "gain", "unclear", "unclear", "description"]


def test_clean_and_texture_alone_show_no_robustness(make_result: Make) -> None:
    axes = tuple(axis for axis in make_result().axes if axis.name in ("clean", "texture"))
    lead = read(make_result(axes=axes, checks=()), make_result(axes=axes, checks=())).lead
    assert lead.startswith("Compared with a on the same 360 images, no axis of robustness can be judged.")


@pytest.mark.parametrize("masked", [0, 1])
def test_clean_accuracy_at_eps_0_says_nothing_over_eps(make_result: Make, masked: int) -> None:
    results = [make_result(checks=checks("zero_gradient", "fail") if i == masked else ()) for i in range(2)]
    curves = []
    for result in results:
        axis = result.axis("eps_curve")
        zero = replace(result.axis("clean").points[0], label="eps 0", level=0.0)
        axes = tuple(replace(a, points=(zero, *a.points)) if a is axis else a for a in result.axes)
        kept = {**result.outcomes_by_point, "eps_curve/eps 0": result.outcomes_by_point["clean/clean"]}
        curves.append(replace(result, axes=axes, outcomes_by_point=kept))
    page = read(*curves)
    assert not any(s.label == "Over eps" for s in page.statements)
    rows = next(curve for curve in page.curves if curve.chart.title == "eps curve").rows
    assert [row.cells[1].difference is not None for row in rows] == [True] + [False] * 6


def test_only_some_void_runs_are_named_over_eps(make_result: Make) -> None:
    page = read(
        make_result(checks=()), make_result(0.2, checks=()), make_result(0.2, checks=checks("more_budget", "fail"))
    )
    text = next(s.text for s in page.statements if s.label == "Over eps")
    assert text.startswith("b gains at 1/255") and text.endswith("c is void: check more_budget failed.")


def test_every_table_and_the_curve_are_corrected_for_their_size(
    make_result: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = make_result(checks=()), make_result(0.2, checks=())
    assert any(s.label == "Over eps" and "gains" in s.text for s in read(*runs).statements)
    monkeypatch.setattr("hardy.reporting.curves.holm", lambda found: [None for _ in found])
    monkeypatch.setattr("hardy.reporting.statements.holm", lambda found: [None for _ in found])
    page = read(*runs)
    rows = [row.cell for table in page.point_tables for row in table.rows]
    cells = [cell for curve in page.curves for row in curve.rows for cell in row.cells]
    assert rows and cells and all(cell.difference is None for cell in (*rows, *cells))
    assert not any(s.label == "Over eps" for s in page.statements)
