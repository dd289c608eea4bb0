"""Does it beat its base? The words follow the verdict, and a failed check takes them back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from hardy.reporting.build import collect
from hardy.reporting.runs import Run
from hardy.reporting.versus import against_base, answer, versus_rows
from hardy.results import Check, Result, Status, Versus

pytestmark = pytest.mark.usefixtures("no_charts")
Make = Callable[..., Result]
Word = Literal["better", "worse", "unclear"]


def versus(axis: str, own: float, base: float, verdict: Word, *, name: str = "base") -> Versus:
    gap = own - base
    return Versus(axis=axis, base=name, accuracy=own, base_accuracy=base, difference=gap, low=gap - 0.05,
                  high=gap + 0.05, p=0.3 if verdict == "unclear" else 1e-6, verdict=verdict)  # fmt: skip


def made(make_result: Make, *found: Versus, name: str = "a", check: tuple[str, Status] | None = None) -> Run:
    checks = () if check is None else (Check(code=check[0], status=check[1], evidence="seen"),)
    return Run(name=name, path=Path(name), result=make_result(versus=found, checks=checks))


def plain(text: Any) -> str:
    return str(text).replace("\N{NO-BREAK SPACE}", " ")


WORST = versus("worst_case", 0.4, 0.3, "better")


@pytest.mark.parametrize(
    ("found", "lead", "words"),
    [
        (WORST, "Attacked alike, it beats its base: 40.0 % against 30.0 % in the worst case.",
         "It is better than its base in the worst case: 40.0 % against 30.0 % (+10.0 points [+5.0, +15.0], p < 0.001)"),
        (versus("worst_case", 0.1, 0.3, "worse", name="plain"),
         "Attacked alike, it falls behind its base plain: 10.0 % against 30.0 % in the worst case.",
         "It is worse than its base plain in the worst case: 10.0 % against 30.0 % "),
        (versus("white_box", 0.31, 0.3, "unclear"),
         "Attacked alike, it does not clearly beat its base: 31.0 % against 30.0 % on white-box.",
         "It is neither clearly better nor worse than its base on white-box: 31.0 % against 30.0 % (+1.0 points"),
    ],
)  # fmt: skip
def test_the_words_follow_the_verdict(make_result: Make, found: Versus, lead: str, words: str) -> None:
    run = made(make_result, found)
    assert plain(answer(run)) == lead and plain(collect([run]).lead).endswith(lead)
    statement = against_base([run])
    assert statement is not None and plain(statement.text).startswith(words)


def test_the_worst_case_decides_and_an_equal_white_box_is_not_repeated(make_result: Make) -> None:
    clean = versus("clean", 0.9, 0.95, "worse")
    same = against_base([made(make_result, clean, versus("white_box", 0.4, 0.3, "better"), WORST)])
    other = against_base([made(make_result, clean, versus("white_box", 0.5, 0.3, "better"), WORST)])
    assert same is not None and other is not None
    assert "white-box" not in same.text and "On white-box: better, 50.0 %" in plain(other.text)
    assert plain(same.text).index("in the worst case") < plain(same.text).index("On plain images: worse, 90.0 %")


@pytest.mark.parametrize("code", ["zero_gradient", "self_test", "transfer_beats_white_box", "bn_statistics"])
def test_a_failed_check_voids_the_verdict(make_result: Make, code: str) -> None:
    run = made(make_result, WORST, versus("white_box", 0.5, 0.3, "better"), check=(code, "fail"))
    assert answer(run) == f"Whether it beats its base is not known: check {code} failed."
    statement, rows = against_base([run]), versus_rows([run])
    assert statement is not None and "better" not in statement.text
    assert f"is not known: the verdict is void, check {code} failed." in statement.text
    assert all(row.difference is None and row.p == "" and row.note == f"void: check {code} failed" for row in rows)
    assert "beats its base:" not in collect([run]).lead


def test_a_warning_and_a_check_of_other_axes(make_result: Make) -> None:
    warned = against_base([made(make_result, WORST, check=("more_budget", "warn"))])
    assert warned is not None and "p < 0.001; check more_budget warned)" in warned.text
    other = against_base([made(make_result, WORST, check=("source_is_model", "fail"))])
    assert other is not None and "is better than its base" in other.text


def test_clean_accuracy_is_not_voided_by_masked_gradients(make_result: Make) -> None:
    run = made(make_result, WORST, versus("clean", 0.9, 0.95, "worse"), check=("zero_gradient", "fail"))
    by_axis = {row.where: row for row in versus_rows([run])}
    assert by_axis["worst case"].difference is None and by_axis["clean"].difference is not None
    assert by_axis["clean"].difference.word == "worse" and by_axis["clean"].difference.verdict == "loss"


def test_several_runs_tell_what_counts_and_the_table_tells_the_rest(make_result: Make) -> None:
    runs = [made(make_result, name="a"), made(make_result, WORST, versus("clean", 0.9, 0.95, "worse"), name="b"),
            made(make_result, versus("white_box", 0.1, 0.3, "worse"), name="c")]  # fmt: skip
    page = collect(runs)
    text = plain(next(s.text for s in page.statements if s.label == "Against its base"))
    assert text.startswith("b is better than its base in the worst case: 40.0 %") and "plain images" not in text
    assert "c is worse than its base on white-box: 10.0 %" in text and "a is" not in text
    assert page.attack is not None
    assert [(row.run, row.where) for row in page.attack.versus] == [
        ("b", "worst case"), ("b", "clean"), ("c", "white-box"),
    ]  # fmt: skip
    assert against_base([runs[0]]) is None and answer(runs[0]) == ""
