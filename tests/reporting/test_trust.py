"""A failed check voids the numbers that it speaks of; a warning is named beside the claim."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardy.reporting.build import collect
from hardy.reporting.compare import Paired, scores, topics
from hardy.reporting.data import Curve, ReportData
from hardy.reporting.runs import Run
from hardy.reporting.trust import caution, failed, void, warned
from hardy.results import Check, Result, Status, point

pytestmark = pytest.mark.usefixtures("no_charts")
Make = Callable[..., Result]
Outcomes = Callable[[float], np.ndarray[Any, Any]]
REST = ("clean", "noise", "transfer", "query", "texture", "an axis of tomorrow")
GRADIENT = ("white_box", "eps_curve", "minimal_norm")
AXES = (*REST, *GRADIENT, "worst_case")
BLIND = (
    *("gradient_slope", "border_gradient", "zero_gradient", "chance_level", "no_progress"),
    *("more_budget", "larger_eps", "huge_eps", "self_test"),
)
BEATEN = (
    *("monotone_eps", "noise_beats_gradients", "single_step_beats_many", "black_box_beats_white_box"),
    "transfer_beats_white_box",
)
GUARDS = ("eval_mode", "bn_statistics", "logits", "gradient", "batch_independent", "a check of tomorrow")
ATTACKED = ("white_box/standard", "eps_curve/linf 8/255", "minimal_norm/linf 8/255", "worst_case/worst case")


def checks(code: str, status: Status) -> tuple[Check, ...]:
    return (Check(code=code, status=status, evidence="seen"), Check(code="few", status="pass", evidence="none"))


@pytest.fixture
def robust(make_result: Make, remeasured: Make, outcomes: Outcomes) -> Make:
    """Make results that show a large accuracy under attack, on the curve and in the worst case as well."""

    def made(*found: Check, accuracy: float = 0.9, at: tuple[str, ...] = ATTACKED) -> Result:
        return remeasured(make_result(checks=found), {key: outcomes(accuracy) for key in at})

    return made


def read(*results: Result) -> ReportData:
    return collect([Run(name=name, path=Path(name), result=r) for name, r in zip("abc", results, strict=False)])


def every_curve(page: ReportData) -> tuple[Curve, ...]:
    parts = [c for part in page.sections for c in (*part.curves, *part.folded)]
    return (*(page.attack.curves if page.attack else ()), *parts)


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def told(page: ReportData) -> str:
    return plain(" ".join([page.lead, *(f"{s.label}: {s.text}" for s in page.statements)]))


@pytest.mark.parametrize("code", [*BLIND, *BEATEN, *GUARDS, "source_is_model"])
def test_a_failed_check_voids_the_axes_that_it_speaks_of(make_result: Make, code: str) -> None:
    result = make_result(checks=checks(code, "fail"))
    speaks = {"source_is_model": ("transfer",), **dict.fromkeys(BLIND, (*GRADIENT, "worst_case"))}.get(code, AXES)
    speaks = GRADIENT if code in BEATEN else speaks
    assert {axis for axis in AXES if failed(result, axis) == (code,)} == set(speaks)
    assert {axis for axis in AXES if void(result, axis) == f"void: check {code} failed"} == set(speaks)
    assert not any(warned(result, axis) for axis in AXES)


@pytest.mark.parametrize("status", ["warn", "pass", "not_run"])
def test_only_a_failed_check_voids(make_result: Make, status: Status) -> None:
    result = make_result(checks=checks("logits", status))
    assert not any(failed(result, axis) or void(result, axis) for axis in AXES)
    assert all(warned(result, axis) == (("logits",) if status == "warn" else ()) for axis in AXES)


def test_without_a_failed_check_the_gain_is_claimed(make_result: Make, robust: Make) -> None:
    page = read(make_result(checks=()), robust())
    assert "b gains on the worst case (+89.7 points). At" in plain(page.lead)


@pytest.mark.parametrize("code", [*BLIND, *BEATEN])
def test_a_masked_net_gains_nothing_anywhere_on_the_page(make_result: Make, robust: Make, code: str) -> None:
    page = read(make_result(checks=()), robust(*checks(code, "fail")))
    lead = plain(page.lead)
    assert "b shows no clear gain anywhere." in lead and "gains" not in told(page)
    shown = "90.0 % on white-box" + (" and 90.0 % on the worst case" if code in BLIND else "")
    assert f"b shows {shown}, but its check {code} failed: no evidence." in lead
    assert (
        "White-box accuracy is near zero. At Linf, eps 8/255, an attacker who knows the net (standard suite, worst "
        "case) breaks a: it keeps" in lead
    )
    cells = {cell.column: cell for cell in page.rows[1].cells}
    notes = {"white-box": f"void: check {code} failed", "worst case": f"void: check {code} failed"}
    if code in BEATEN:
        notes["worst case"] = f"not compared: its check {code} failed"
    for column, note in notes.items():
        assert (cells[column].note, cells[column].difference) == (note, None)
        assert cells[column].void == note.startswith("void") and not cells["noise"].void
        assert cells[column].accuracy == "90.0"
    assert cells["noise"].difference is not None and not cells["noise"].note
    curve = next(curve for curve in every_curve(page) if curve.chart.title == "eps curve")
    assert curve.question.endswith(f"b is void: check {code} failed.")
    assert all(row.cells[1].difference is None and row.cells[1].void for row in curve.rows)
    assert page.profile is not None
    in_profile = {row.title: row.cells[1] for row in page.profile.rows}
    assert {name for name in notes if in_profile[name].difference is None} == set(notes)
    assert in_profile["noise"].difference is not None
    assert page.per_class is not None and page.per_class.heads == ("clean", "white-box", "clean", "white-box (void)")
    assert not any(s.label == "Over eps" for s in page.statements)


def test_a_masked_baseline_makes_nobody_lose(make_result: Make, robust: Make) -> None:
    page = read(robust(*checks("zero_gradient", "fail")), make_result(checks=()))
    assert "loses" not in told(page) and "Losses" not in told(page)
    assert "a shows 90.0 % on white-box and 90.0 % on the worst case, but its check zero_gradient" in plain(page.lead)
    base, other = ({cell.column: cell for cell in row.cells} for row in page.rows)
    assert base["white-box"].note == "void: check zero_gradient failed"
    assert other["white-box"].note == "not compared: check zero_gradient of the baseline failed"


def test_a_single_masked_net_is_not_called_robust(robust: Make) -> None:
    lead = plain(read(robust(*checks("chance_level", "fail"))).lead)
    assert "on the worst case, but its check chance_level failed: no evidence." in lead
    assert "knows the net is not known, at most 90.0 % (the worst case of all that was tried)." in lead
    assert "leaves it" not in lead and "eps curve" not in lead and "minimal norm" not in lead


@pytest.mark.parametrize("code", BEATEN)
def test_what_beat_the_gradients_bounds_the_worst_case(make_result: Make, robust: Make, code: str) -> None:
    beaten = robust(*checks(code, "fail"))
    alone = read(beaten)
    assert "is not known, at most 90.0 % (the worst case of all that was tried)." in plain(alone.lead)
    assert alone.attack is not None and alone.attack.worst is not None
    whole = alone.attack.worst.rows[-1].cells[0]
    assert whole.text == "90.0" and not whole.void and whole.notes == (f"at most: check {code} failed",)
    assert alone.attack.groups[0].note == f"void: check {code} failed"
    for pair_of in ((beaten, make_result(checks=())), (make_result(checks=()), beaten)):
        cells = {cell.column: cell for cell in read(*pair_of).rows[1].cells}
        assert cells["worst case"].note.startswith("not compared") and "gain" not in read(*pair_of).lead.replace(
            "no clear gain", ""
        )


def test_a_beaten_attack_now_and_then_is_a_warning_on_the_worst_case(make_result: Make, robust: Make) -> None:
    page = read(make_result(checks=()), robust(*checks("transfer_beats_white_box", "warn")))
    assert "the worst case (+89.7 points; check transfer_beats_white_box warned)" in plain(page.lead)


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
    assert page.attack is not None
    rows = page.attack.groups[1].rows
    voids = {row.name: row.left.void for row in rows}
    assert not voids["no attack"] and not voids["random noise"] and voids["square"] and voids["standard suite"]
    assert any(s.label == "Control" for s in page.statements)


def test_a_warning_stands_beside_the_claim(make_result: Make, robust: Make) -> None:
    page = read(make_result(checks=()), robust(*checks("monotone_eps", "warn")))
    assert "b gains on the worst case (+89.7 points; check monotone_eps warned)." in plain(page.lead)
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


def test_one_finding_is_claimed_once_and_by_the_hardest_question(
    make_result: Make, robust: Make, without: Make
) -> None:
    plain_net = make_result(checks=())
    everywhere = plain(read(plain_net, robust()).lead)
    assert "b gains on the worst case (+89.7 points)." in everywhere and "on white-box" not in everywhere
    suite_only = read(plain_net, robust(at=ATTACKED[:3]))
    assert "b shows no clear gain anywhere." in suite_only.lead
    assert next(s.text for s in suite_only.statements if s.label == "Worst case") == (
        "What b gained on white-box is not seen here."
    )
    narrow = [without(r, "worst_case", "minimal_norm") for r in (plain_net, robust(), robust(at=ATTACKED[1:2]))]
    both, curve = read(narrow[0], narrow[1]), read(narrow[0], narrow[2])
    assert "b gains on white-box (+89.7 points)" in plain(both.lead) and "eps curve" not in both.lead
    assert "b gains on eps curve (+83.9 points)" in plain(curve.lead)


def test_the_table_is_what_the_pairs_say(make_result: Make, robust: Make) -> None:
    runs = [Run(name=n, path=Path(n), result=r) for n, r in (("a", make_result()), ("b", robust()))]
    verdicts = [s.difference.verdict for s in scores(runs, topics(runs))[1] if isinstance(s.difference, Paired)]
    assert verdicts == ["unclear", "unclear", "gain", "unclear", "unclear", "unclear", "gain", "description"]


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
        zero = replace(result.axis("clean").points[0], label="eps 0", level=0.0, series="attack")
        axes = tuple(replace(a, points=(zero, *a.points)) if a is axis else a for a in result.axes)
        kept = {**result.outcomes_by_point, "eps_curve/eps 0": result.outcomes_by_point["clean/clean"]}
        curves.append(replace(result, axes=axes, outcomes_by_point=kept))
    page = read(*curves)
    assert not any(s.label == "Over eps" for s in page.statements)
    rows = next(curve for curve in every_curve(page) if curve.chart.title == "eps curve").rows
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
    cells = [cell for curve in every_curve(page) for row in curve.rows for cell in row.cells]
    assert rows and cells and all(cell.difference is None for cell in (*rows, *cells))
    assert not any(s.label == "Over eps" for s in page.statements)
