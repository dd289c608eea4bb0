"""Differences are paired over the same images under the same question, or not computed."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hardy.reporting.cells import difference
from hardy.reporting.compare import Paired, axis_title, find_axis, holm, pair, partner, scores, topics
from hardy.reporting.runs import Run
from hardy.results import Axis, Result, point
from hardy.threats import Threat

Make = Callable[..., Result]


def as_run(result: Result, name: str = "run") -> Run:
    return Run(name=name, path=Path(name), result=result)


def with_outcomes(result: Result, right: np.ndarray[Any, Any], **changes: Any) -> Run:
    """Replace the clean axis by one point with these outcomes."""
    made = point("clean", right)
    axis = Axis(name="clean", question="?", headline="clean", points=(made,))
    arrays: Mapping[str, Any] = {**result.arrays, "labels": np.zeros(len(right), dtype=np.int64)}
    kept = {"clean/clean": right}
    return as_run(replace(result, axes=(axis,), n=len(right), arrays=arrays, outcomes_by_point=kept, **changes))


def compare(base: Run, run: Run, axis: str = "clean", label: str | None = None) -> Paired | str:
    after = run.result.point(axis, label)
    return pair(base, run, axis, partner(find_axis(base.result, axis), after), after)


@pytest.mark.parametrize(("won", "lost"), [(4, 0), (5, 0), (6, 0), (0, 6), (20, 5), (5, 20), (12, 12), (0, 0)])
def test_a_gain_needs_an_interval_and_an_exact_test(make_result: Make, won: int, lost: int) -> None:
    before, after = np.ones(200, dtype=np.bool_), np.ones(200, dtype=np.bool_)
    before[:won], after[won : won + lost] = False, False
    found = compare(with_outcomes(make_result(), before), with_outcomes(make_result(), after))
    assert isinstance(found, Paired)
    assert found.mean == pytest.approx((won - lost) / 200) and found.differing == won + lost
    clear = won + lost > 0 and stats.binomtest(won, won + lost).pvalue < 0.05
    assert found.verdict == ("unclear" if not clear else "gain" if won > lost else "loss")
    assert found.low <= found.mean <= found.high


def test_differences_are_paired_and_not_of_margins(make_result: Make) -> None:
    right = np.arange(400) % 2 == 0
    same = compare(with_outcomes(make_result(), right), with_outcomes(make_result(), right.copy()))
    swapped = compare(with_outcomes(make_result(), right), with_outcomes(make_result(), ~right))
    assert isinstance(same, Paired) and isinstance(swapped, Paired)
    assert same.low == same.high == 0 and swapped.high - swapped.low > 0.1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: replace(r, data="cifar10:test"), "other data"),
        (lambda r: replace(r, arrays={**r.arrays, "labels": r.arrays["labels"][::-1]}), "the labels differ"),
        (lambda r: replace(r, arrays={}), "labels were not kept, so the images cannot be matched"),
        (lambda r: replace(r, outcomes_by_point={}), "outcomes per image were not kept"),
        (lambda r: replace(r, threat=Threat("linf", 4 / 255)), "other threat"),
        (
            lambda r: replace(
                r, outcomes_by_point={**r.outcomes_by_point, "white_box/standard": np.ones(360, dtype=bool)}
            ),
            "outcomes per image were not kept",
        ),
    ],
)
def test_what_would_mislead_is_not_computed(make_result: Make, change: Callable[[Result], Result], reason: str) -> None:
    assert compare(as_run(make_result()), as_run(change(make_result())), "white_box") == reason


def test_another_number_of_images_is_named(make_result: Make) -> None:
    assert compare(as_run(make_result()), as_run(make_result(n=100))) == "other images: 100, the baseline has 360"


def test_another_threat_does_not_touch_clean_and_noise(make_result: Make) -> None:
    other = as_run(make_result(threat=Threat("linf", 4 / 255)))
    assert isinstance(compare(as_run(make_result()), other, "noise"), Paired)


def test_another_attack_budget_is_not_compared(make_result: Make) -> None:
    result = make_result()
    axis = result.axis("noise")
    weak = tuple(replace(p, details={"draws": 2}) for p in axis.points)
    axes = tuple(replace(a, points=weak) if a is axis else a for a in result.axes)
    assert compare(as_run(make_result()), as_run(replace(result, axes=axes)), "noise") == "other draws"


def test_a_condition_that_the_baseline_lacks_is_not_compared(make_result: Make) -> None:
    base = make_result()
    base = replace(base, axes=tuple(axis for axis in base.axes if axis.name != "texture"))
    assert compare(as_run(base), as_run(make_result()), "texture") == "the baseline lacks it"


def test_gray_box_stands_beside_transfer_and_pairs_twins_of_other_names(make_result: Make) -> None:
    base, run = as_run(make_result(twin="plain-c"), "plain"), as_run(make_result(0.1, twin="lfm-b"), "lfm")
    columns = topics([base, run])
    titles = ["clean", "noise", "white-box", "transfer", "gray-box", "queries", "worst case", "texture"]
    assert [t.title for t in columns] == titles
    table = scores([base, run], columns)
    gray = table[1][4]
    assert gray.point is not None and gray.point.label == "lfm-b"
    assert isinstance(gray.difference, Paired) and gray.difference.mean == 0
    assert [score.difference for score in table[0]] == [None] * 8
    transfer = table[1][3].difference
    assert isinstance(transfer, Paired) and transfer.verdict == "gain"


def test_gray_box_takes_the_twin_that_hurts_most_at_the_strength_of_the_headline(make_result: Make) -> None:
    result = make_result(twin="a")
    axis = result.axis("transfer")
    twin = axis.points[1]
    harder = replace(twin, label="from b", accuracy=0.3)
    stronger = replace(twin, label="from a, eps 0.1", accuracy=0.1, level=0.1)
    axes = (replace(axis, points=(*axis.points, harder, stronger)),)
    gray = topics([as_run(replace(result, axes=axes))])[1]
    found = gray.select(replace(result, axes=axes))
    assert found is not None and found.label == "from b"


def test_later_axes_need_no_code() -> None:
    assert axis_title("frequency_bands") == "frequency bands"


def paired(p: float, sign: int = 1, verdict: Any = "unclear") -> Paired:
    low, high = sorted((0.01 * sign, 0.05 * sign))
    return Paired(mean=0.03 * sign, low=low, high=high, differing=20, p=p, verdict=verdict)


@given(st.lists(st.floats(0, 1) | st.floats(0, 0.02), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_holm_rejects_what_its_definition_rejects(values: list[float], random: Any) -> None:
    m, ordered = len(values), sorted(values)
    kept = next((i for i, p in enumerate(ordered) if p * (m - i) >= 0.05), m)  # step down until the first that holds
    shown: list[Any] = [paired(p, random.choice((1, -1))) for p in values]
    mixed = [*shown, "other data", None]
    random.shuffle(mixed)
    found = holm(mixed)
    clear = sorted(d.p for d in found if isinstance(d, Paired) and d.verdict != "unclear")
    assert clear == ordered[:kept]
    for before, after in zip(mixed, found, strict=True):
        if not isinstance(before, Paired):
            assert after is before
        elif isinstance(after, Paired) and after.verdict != "unclear":
            assert after.verdict == ("gain" if before.mean > 0 else "loss")


def test_descriptions_are_neither_judged_nor_counted() -> None:
    described = paired(1.0, verdict="description")
    found = holm([described] * 20 + [paired(0.04)])
    assert found[0] == described and isinstance(found[-1], Paired) and found[-1].verdict == "gain"


def test_an_interval_that_holds_0_is_unclear_for_any_p() -> None:
    (found,) = holm([replace(paired(1e-9), low=0.0)])
    assert isinstance(found, Paired) and found.verdict == "unclear"


def test_a_difference_that_is_clear_alone_may_not_be_in_a_table(make_result: Make) -> None:
    before, after = np.ones(200, dtype=np.bool_), np.ones(200, dtype=np.bool_)
    before[:7] = False  # p = 2 / 2**7 = 0.016
    runs = [with_outcomes(make_result(), right) for right in (before, after, after, after, after)]
    column = topics(runs)
    verdicts = [
        [row[0].difference.verdict for row in scores(runs[:n], column)[1:] if isinstance(row[0].difference, Paired)]
        for n in (2, 4, 5)
    ]
    assert verdicts == [["gain"], ["gain"] * 3, ["unclear"] * 4]
    cell_word = difference(scores(runs, column)[1][0].difference)  # type: ignore[arg-type]
    assert cell_word.word == "unclear: after correction"
