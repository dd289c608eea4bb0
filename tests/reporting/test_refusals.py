"""Attacks made on other nets, and other images under the same labels, are not compared."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardy.reporting.build import collect
from hardy.reporting.compare import Paired, find_axis, pair, partner
from hardy.reporting.data import ReportData
from hardy.reporting.refusals import same_images
from hardy.reporting.runs import Run
from hardy.reporting.score_tables import compare_scores
from hardy.results import Result

pytestmark = pytest.mark.usefixtures("no_charts")
Make = Callable[..., Result]
OTHER = "c1" * 8


def with_source(result: Result, weights: str | None, series: str = "independent") -> Result:
    """Say that the attacks of this series were made on the net of this fingerprint."""
    axes = []
    for axis in result.axes:
        points = []
        for p in axis.points:
            if p.series == series:
                rest = {k: v for k, v in p.details.items() if k != "source_weights"}
                points.append(replace(p, details=rest if weights is None else {**rest, "source_weights": weights}))
            else:
                points.append(p)
        axes.append(replace(axis, points=tuple(points)))
    return replace(result, axes=tuple(axes))


def with_array(result: Result, name: str, value: np.ndarray[Any, Any] | None) -> Result:
    rest = {k: v for k, v in result.arrays.items() if k != name}
    return replace(result, arrays=rest if value is None else {**rest, name: value})


def weights_of(result: Result) -> str:
    return result.arrays["model_weights"].tobytes().hex()


def read(base: Result, run: Result) -> ReportData:
    return collect([Run(name=name, path=Path(name), result=r) for name, r in (("a", base), ("b", run))])


def compare(base: Result, run: Result, series: str = "independent") -> Paired | str:
    first, second = (Run(name=name, path=Path(name), result=r) for name, r in (("a", base), ("b", run)))
    after = next(p for p in run.axis("transfer").points if p.series == series)
    return pair(first, second, "transfer", partner(find_axis(base, "transfer"), after), after)


def test_the_same_source_is_compared(make_result: Make) -> None:
    found = compare(make_result(twin="a"), make_result(0.2, twin="b"))
    assert isinstance(found, Paired) and found.verdict == "gain" and found.verified


def test_another_net_under_the_same_label_is_refused(make_result: Make) -> None:
    assert compare(make_result(), with_source(make_result(0.2), OTHER)) == "another source net"
    page = read(make_result(), with_source(make_result(0.2), OTHER))
    assert "transfer" not in page.lead
    assert next(c for c in page.rows[1].cells if c.column == "transfer").note == "not compared: another source net"


@pytest.mark.parametrize("own", [0, 1])
def test_white_box_is_not_compared_with_transfer(make_result: Make, own: int) -> None:
    results = make_result(twin="a"), make_result(0.2, twin="b")
    base, run = (with_source(r, weights_of(results[own])) for r in results)
    assert compare(base, run) == f"the source is {('the baseline', 'this net')[own]} itself"
    half = (with_source(results[0], None), run) if own == 0 else (base, with_source(results[1], None))
    assert compare(*half) == f"the source is {('the baseline', 'this net')[own]} itself"


def test_twins_differ_by_design_but_are_not_the_net_itself(make_result: Make) -> None:
    base, run = make_result(twin="a"), make_result(0.2, twin="b")
    assert isinstance(compare(base, run, "gray-box"), Paired)
    assert compare(base, with_source(run, weights_of(run), "gray-box"), "gray-box") == "the source is this net itself"
    itself = with_source(base, weights_of(base), "gray-box")
    assert compare(itself, run, "gray-box") == "the source is the baseline itself"
    crossed = with_source(base, weights_of(run), "gray-box"), with_source(run, weights_of(base), "gray-box")
    assert isinstance(compare(*crossed, "gray-box"), Paired)  # two seeds of one method are each other's twins


@pytest.mark.parametrize("lacks", ["source before", "source after", "model before", "model after"])
def test_old_results_are_compared_with_a_note(make_result: Make, lacks: str) -> None:
    results = [make_result(twin="a"), make_result(0.2, twin="b")]
    i = int("after" in lacks)
    results[i] = with_source(results[i], None) if "source" in lacks else with_array(results[i], "model_weights", None)
    base, run = results
    found = compare(base, run)
    assert isinstance(found, Paired) and not found.verified
    note = "On transfer the source nets could not be verified to be the same."
    assert note in read(base, run).table_notes
    assert note not in read(make_result(twin="a"), make_result(twin="b")).table_notes


def test_other_images_under_the_same_labels_are_refused(make_result: Make) -> None:
    other = with_array(make_result(0.2), "images", np.arange(16, dtype=np.uint8))
    page = read(make_result(), other)
    assert all(cell.note == "not compared: other images" for cell in page.rows[1].cells)
    assert "Nothing here can be compared with a image by image" in page.lead


@pytest.mark.parametrize("strange", [None, np.zeros(0, np.uint8), np.zeros(16)])
def test_images_that_cannot_be_matched_are_not_called_the_same(make_result: Make, strange: Any) -> None:
    base, old = make_result(), with_array(make_result(0.2), "images", strange)
    assert not same_images(base, old) and not same_images(old, old) and same_images(base, make_result(0.2))
    for results in ((base, old), (old, base), (old, old)):
        lead = read(*results).lead
        assert "Compared with a on 360 images with equal labels, " in lead and "the same" not in lead
    three = collect([Run(name=f"{i}", path=Path(f"{i}"), result=r) for i, r in enumerate((base, make_result(), old))])
    assert "on 360 images with equal labels" in three.lead  # one that cannot be matched is enough
    assert "Compared with a on the same 360 images, " in read(base, make_result(0.2)).lead


def with_suite(result: Result, name: str, attack: str = "", *, drop: int = 0, draws: int | None = None) -> Result:
    """Rename the suite, describe its first attack otherwise, or leave attacks out at its end."""
    axis = result.axis("white_box")
    stages, whole, noise = list(axis.points[: 4 - drop]), axis.points[4], axis.points[5]
    stages[0] = replace(stages[0], details={**stages[0].details, "attack": attack or stages[0].details["attack"]})
    if draws:
        stages = [replace(p, details={**p.details, "draws_per_gradient": draws}) for p in stages]
    kept = {**result.outcomes_by_point, f"white_box/{name}": result.outcomes_by_point["white_box/standard"]}
    points = (*stages, replace(whole, label=name), noise)
    curve = result.axis("eps_curve")
    moved = tuple(
        replace(p, details={**p.details, "attack": f"suite {name}"}) if p.details["attack"] == "suite standard" else p
        for p in curve.points
    )
    changed = {"white_box": replace(axis, headline=name, points=points), "eps_curve": replace(curve, points=moved)}
    axes = tuple(changed.get(a.name, a) for a in result.axes)
    return replace(result, axes=axes, outcomes_by_point=kept)


def paired(base: Result, run: Result, axis: str) -> Paired | str:
    first, second = (Run(name=name, path=Path(name), result=r) for name, r in (("a", base), ("b", run)))
    return pair(first, second, axis, base.point(axis), run.point(axis))


@pytest.mark.parametrize("axis", ["white_box", "worst_case", "eps_curve"])
def test_another_suite_is_refused_in_words(make_result: Make, axis: str) -> None:
    found = paired(make_result(), with_suite(make_result(), "quick"), axis)
    assert found == "another suite: quick, the baseline has standard"
    assert isinstance(paired(make_result(), make_result(), axis), Paired)


@pytest.mark.parametrize("axis", ["white_box", "worst_case"])
def test_suites_of_one_name_and_other_attacks_are_refused(make_result: Make, axis: str) -> None:
    custom = with_suite(make_result(), "custom")
    assert isinstance(paired(custom, custom, axis), Paired)
    assert paired(custom, with_suite(make_result(), "custom", drop=1), axis) == "another suite"
    assert paired(custom, with_suite(make_result(), "custom", "PGD(steps=3)"), axis) == "another suite"
    weaker = with_suite(make_result(), "standard", "APGD(steps=3)")  # by another version, say
    assert paired(make_result(), weaker, axis) == "another suite"


def test_each_net_is_attacked_as_it_must_be(make_result: Make) -> None:
    random = with_suite(make_result(), "standard", "APGD(steps=100, eot=20)", drop=2, draws=20)
    assert isinstance(paired(make_result(), random, "white_box"), Paired)
    result = make_result()
    axis = result.axis("white_box")
    twin = replace(axis.points[0], label="apgd-ce, twin")
    axes = tuple(replace(a, points=(*a.points, twin)) if a is axis else a for a in result.axes)
    assert isinstance(paired(make_result(), replace(result, axes=axes), "white_box"), Paired)


def test_a_worst_case_over_other_axes_is_refused(make_result: Make) -> None:
    result = make_result()
    axis = result.axis("worst_case")
    fewer = replace(axis.points[0], details={"axes": "white_box"})
    axes = tuple(replace(a, points=(fewer, *a.points[1:])) if a is axis else a for a in result.axes)
    assert paired(result, replace(result, axes=axes), "worst_case") == "other attacks in the worst case"


def test_an_ensemble_that_holds_the_net_itself_is_refused(make_result: Make) -> None:
    base, run = make_result(twin="a"), make_result(0.2, twin="b")
    both = [with_source(r, f"{OTHER}+{weights_of(run)}") for r in (base, run)]
    assert compare(*both) == "the source is this net itself"


def test_nets_without_their_methods_are_compared_though_each_is_its_own(make_result: Make) -> None:
    results = []
    for gain, twin in ((0.0, "a"), (0.2, "b")):
        result = make_result(gain, twin=twin)
        axis = result.axis("transfer")
        removed = replace(axis.points[0], label="methods removed", series="base",
                          details={**axis.points[0].details, "source_weights": weights_of(result)})  # fmt: skip
        axes = tuple(replace(a, points=(*a.points, removed)) if a is axis else a for a in result.axes)
        kept = {**result.outcomes_by_point, "transfer/methods removed": result.outcomes_by_point["transfer/plain-b"]}
        results.append(replace(result, axes=axes, outcomes_by_point=kept))
    found = compare(*results, "base")
    assert isinstance(found, Paired) and found.verified and found.verdict == "gain"


@pytest.mark.parametrize(
    "details",
    [
        {"severities": "1"},
        {"names": "fog"},
        {"images_from": "CIFAR-10-C"},
        {"sigma": 0.5},
        {"ball": "linf"},
        {"grid": 2},
    ],
)
def test_numbers_of_other_settings_are_not_compared(make_result: Make, details: dict[str, Any]) -> None:
    a, b = make_result(beyond=True), make_result(0.3, beyond=True)
    score = a.score("corruptions")
    other = replace(score, details=details)
    base, run = (Run(name=n, path=Path(n), result=r) for n, r in (("a", a), ("b", b)))
    assert isinstance(compare_scores(base, run, "corruptions", score, b.score("corruptions")), Paired)
    (key,) = details
    assert compare_scores(base, run, "corruptions", other, b.score("corruptions")) == f"other {key}"
