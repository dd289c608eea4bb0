"""Curves under attack: who sees what, what half of the images take, and where the threat is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup

from hardy.reporting.build import collect
from hardy.reporting.data import Curve
from hardy.reporting.runs import Run
from hardy.results import Result
from hardy.threats import Threat

Make = Callable[..., Result]


def drawn(*results: Result) -> dict[str, Curve]:
    runs = [Run(name=name, path=Path(name), result=r) for name, r in zip("abc", results, strict=False)]
    page = collect(runs)
    return {curve.chart.title: curve for curve in page.attack.curves} if page.attack else {}


@pytest.mark.usefixtures("no_charts")
def test_curves_with_an_adversary_stand_apart_from_the_others(make_result: Make) -> None:
    attacked = ["eps curve", "minimal norm", "queries: scores", "queries: labels only"]
    assert list(drawn(make_result())) == attacked
    page = collect([Run(name="a", path=Path("a"), result=make_result())])
    assert [curve.chart.title for part in page.sections for curve in part.curves] == ["noise", "texture"]


@pytest.mark.usefixtures("no_charts")
def test_the_reader_sees_what_the_attacker_sees_and_what_half_of_the_images_take(make_result: Make) -> None:
    found = drawn(make_result())
    assert found["queries: scores"].question.endswith("This attacker sees the scores of all classes.")
    assert found["queries: labels only"].question.endswith("This attacker sees the class only.")
    assert [row.head for row in found["queries: scores"].rows] == ["0", "10", "30", "100", "300", "1,000"]
    what = "median over the images right before"
    assert found["minimal norm"].notes == (f"Smallest change found, {what}: 0.0125.",)
    assert found["queries: scores"].notes == (f"Queries that broke an image, {what}: 570.",)
    assert found["queries: labels only"].notes == (f"Queries that broke an image, {what}: not reached.",)
    assert found["eps curve"].notes == ()
    both = drawn(make_result(), make_result(0.1))["queries: scores"].notes
    assert both == (f"Queries that broke an image, {what}: a 570, b 570.",)


def test_the_threat_is_marked_where_it_is_the_same(make_result: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    marks: list[float | None] = []

    def draw(*_: Any, **facts: Any) -> Markup:
        marks.append(facts.get("mark"))
        return Markup()

    monkeypatch.setattr("hardy.reporting.curves.line_chart", draw)
    drawn(make_result(), make_result())
    assert marks[:4] == [8 / 255, 8 / 255, None, None]
    marks.clear()
    drawn(make_result(), replace(make_result(), threat=Threat("linf", 4 / 255)))
    assert not any(marks)
