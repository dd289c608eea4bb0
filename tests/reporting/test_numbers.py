"""Numbers read well and never lie about being there."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardy.reporting.numbers import (
    ABSENT,
    duration,
    gap,
    gap_interval,
    interval,
    join,
    level,
    percent,
    ratio,
    share,
    threat,
)
from hardy.threats import Threat


@given(st.floats(0, 1))
def test_a_share_reads_back_to_half_a_tenth_of_a_percent(value: float) -> None:
    assert abs(float(percent(value)) - 100 * value) <= 0.05 + 1e-9


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 1.1])
def test_what_is_no_share_is_not_measured(value: float) -> None:
    assert percent(value) == share(value) == ABSENT
    assert interval(value, 0.5) == interval(0.5, value) == ""


@given(st.floats(-1, 1))
def test_a_gap_has_its_sign_unless_it_rounds_to_zero(value: float) -> None:
    text = gap(value)
    assert abs(float(text.replace("\N{MINUS SIGN}", "-")) - 100 * value) <= 0.05 + 1e-9
    assert text == "0.0" or text[0] == ("+" if value > 0 else "\N{MINUS SIGN}")


def test_intervals_look_like_the_style_guide_says() -> None:
    assert f"{percent(0.831)} {interval(0.789, 0.866)}" == "83.1 [78.9, 86.6]"
    assert gap_interval(-0.002, 0.04) == "[\N{MINUS SIGN}0.2, +4.0]"


@pytest.mark.parametrize(
    ("value", "name", "text"),
    [(8 / 255, "eps (linf)", "8/255"), (0.5, "eps (l2)", "0.5"), (8 / 255, "sigma", "0.0314"), (0.0, "eps", "0"),
     (1.0, "eps", "1"), (0.03, "eps", "0.03"), (0.2, "eps", "0.2"), (4.0, "pieces per side", "4"), (None, "eps", "")],
)  # fmt: skip
def test_levels_use_gray_levels_only_for_budgets_that_are_whole_ones(value: float | None, name: str, text: str) -> None:
    assert level(value, name) == text


def test_threats_times_and_lists_are_words() -> None:
    assert threat(Threat("linf", 8 / 255)) == "Linf, eps 8/255"
    assert threat(Threat("l2", 0.5)) == "L2, eps 0.5"
    assert threat(Threat("l1", 12.0)) == "L1, eps 12"
    assert duration(59.94) == "59.9 s" and duration(59.96) == "1 min 00 s" and duration(3600.0) == "1 h 00 min"
    assert ratio(3.0, 2.0) == "1.50\N{MULTIPLICATION SIGN}" and ratio(3.0, 0.0) == ""
    assert [join(list("ab")[:n]) for n in range(3)] == ["", "a", "a and b"]
