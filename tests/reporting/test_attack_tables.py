"""Which attack broke what: the counts are those of the outcomes, and nothing that is void looks robust."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hardy.reporting.attack_tables import attack_groups, settings, worst_case
from hardy.reporting.build import collect
from hardy.reporting.runs import Run
from hardy.results import Check, Result

pytestmark = pytest.mark.usefixtures("no_charts")
Make = Callable[..., Result]


def as_run(result: Result, name: str = "a") -> Run:
    return Run(name=name, path=Path(name), result=result)


def failing(code: str) -> tuple[Check, ...]:
    return (Check(code=code, status="fail", evidence="seen"),)


def test_every_attack_is_told_with_what_it_was_given_broke_and_left(make_result: Make) -> None:
    result = make_result()
    (group,) = attack_groups([as_run(result)])
    names = ["no attack", "apgd-ce", "apgd-t", "fab-t", "square", "standard suite", "random noise"]
    assert [row.name for row in group.rows] == names
    right = [int(result.outcomes_by_point[f"white_box/{label}"].sum()) for label in names[1:5]]
    before = [int(result.outcomes_by_point["clean/clean"].sum()), *right[:-1]]
    attacks = group.rows[1:5]
    assert [row.attacked for row in attacks] == [str(n) for n in before]
    assert [row.broke for row in attacks] == [str(b - r) for b, r in zip(before, right, strict=True)]
    assert [row.left.text for row in attacks] == [f"{100 * r / 360:.1f}" for r in right]
    assert attacks[0].settings == "100 steps, loss ce" and attacks[1].settings == "100 steps, 9 targets, loss dlr"
    whole = group.rows[5]
    assert (whole.attacked, whole.broke) == (str(before[0]), str(before[0] - right[-1]))
    assert (whole.forward, whole.backward) == ("51,840", "37,800") and whole.left.text == attacks[-1].left.text
    assert group.rows[6].settings == "control, 1 draw" and group.note == ""


def test_one_attack_needs_no_sum(make_result: Make) -> None:
    result = make_result()
    axis = result.axis("white_box")
    alone = replace(axis, headline="pgd", points=(replace(axis.points[0], label="pgd"),))
    (group,) = attack_groups([as_run(replace(result, axes=(alone,)))])
    assert [(row.name, row.kind) for row in group.rows] == [("pgd", "attack")]


def test_a_result_from_before_suites_is_listed_by_its_conditions(make_result: Make) -> None:
    result = make_result()
    axis = result.axis("white_box")
    old = tuple(replace(p, series="pgd", details={"attack": "pgd"}) for p in axis.points[:1])
    old = (replace(old[0], label="pgd"), axis.points[-1])
    page = collect([as_run(replace(result, axes=(replace(axis, headline="pgd", points=old),)))])
    assert page.attack is None or not page.attack.groups
    rows = [row.label for table in page.point_tables for row in table.rows]
    assert rows == ["pgd", "noise"]


def test_the_tables_of_attacks_are_not_told_twice(make_result: Make) -> None:
    titles = [table.title for table in collect([as_run(make_result())]).point_tables]
    assert titles == ["transfer"]


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        ("FAB(steps=100, restarts=9, alpha_max=0.1)", "100 steps, 9 targets"),
        ("PGD(steps=20, restarts=2)", "20 steps, 2 restarts"),
        ("APGD(steps=100, objective='ce', eot=20)", "100 steps, loss ce, 20 draws per gradient"),
        ("APGD(steps=None, objective=None)", "loss on"),
        ("my attack", ""),
        (None, ""),
        (3, ""),
    ],
)
def test_settings_are_said_in_words(attack: object, words: str) -> None:
    if words == "loss on":
        assert "None" not in settings(attack)
    else:
        assert settings(attack) == words


def test_the_worst_case_counts_what_each_axis_broke_and_broke_alone(make_result: Make) -> None:
    result = make_result()
    table = worst_case([as_run(result, "a"), as_run(make_result(0.1), "b")])
    assert table is not None and [head for head, _ in table.heads] == ["a", "b"]
    assert [row.head for row in table.rows] == ["white-box", "eps curve", "transfer", "queries", "all together"]
    clean, query = (result.outcomes_by_point[key] for key in ("clean/clean", "worst_case/query"))
    broke, alone = int((clean & ~query).sum()), result.axis("worst_case").points[4].details["broke_alone"]
    assert table.rows[3].cells[0].notes == (f"broke {broke}, {alone} alone",)
    assert table.rows[-1].total and table.rows[-1].cells[0].text == "0.3"


def test_a_run_without_the_axis_leaves_a_dash_and_no_column_where_it_has_none(make_result: Make, without: Make) -> None:
    whole, none = make_result(), without(make_result(), "worst_case")
    axis = whole.axis("worst_case")
    part = replace(whole, axes=(replace(axis, points=axis.points[:2]),))
    table = worst_case([as_run(none, "none"), as_run(whole, "whole"), as_run(part, "part")])
    assert table is not None and [head for head, _ in table.heads] == ["whole", "part"]
    assert table.rows[3].head == "queries" and table.rows[3].cells[1].text == ""
    assert worst_case([as_run(none)]) is None


def test_void_parts_have_no_tint(make_result: Make) -> None:
    result = make_result(clean=0.99, checks=failing("zero_gradient"))
    table = worst_case([as_run(result)])
    assert table is not None
    cells = {row.head: row.cells[0] for row in table.rows}
    assert cells["white-box"].void and cells["eps curve"].void and cells["all together"].void
    assert not cells["transfer"].void and not cells["queries"].void
    assert all(cell.tint == 0 for cell in cells.values() if cell.void) and cells["transfer"].tint == 5
    assert cells["all together"].notes == ("void: check zero_gradient failed",)
