"""Charts are small, inert, the same every time, and coloured by the page."""

import re
import xml.etree.ElementTree as ET

import pytest

from hardy.reporting.charts import Line, line_chart, swatch

LINES = [
    Line(index=i, x=(0.0, 0.1, 0.2), y=(90.0 - i, 50.0, 10.0), low=(80.0, 40.0, 5.0), high=(95.0, 60.0, 15.0))
    for i in range(10)
]


def draw(name: str = "c", x_label: str = "sigma", ticks: tuple[tuple[float, str], ...] = ()) -> str:
    return str(
        line_chart(LINES, name=name, x_label=x_label, y_label="accuracy (%)", ticks=ticks, chance=10.0, percent=True)
    )


def test_the_same_lines_give_the_same_bytes() -> None:
    assert draw() == draw()


def test_only_the_page_gives_colours_fonts_and_size() -> None:
    svg = draw()
    assert not re.search(r"#[0-9a-f]{6}\b", svg.replace("#ffffff", ""))
    assert "currentColor" in svg and "var(--run-7)" in svg and "var(--run-8)" not in svg
    assert "DejaVu" not in svg and "font-size" in svg
    assert not re.search(r"<svg[^>]* (width|height)=", svg) and "viewBox" in svg


def test_nothing_is_loaded_dated_or_scripted() -> None:
    svg = draw()
    assert "http" not in svg and "<script" not in svg and "metadata" not in svg and "<!--" not in svg
    ET.fromstring(svg)  # noqa: S314  (drawn here)


def test_ids_are_the_charts_own_and_every_reference_meets_one() -> None:
    svg = draw("a") + draw("b")
    ids = re.findall(r' id="([^"]+)"', svg)
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r'(?:href="|url\()#([\w-]+)', svg)) == set(ids)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", ["$\\frac{", "<script>alert(1)</script>", "\u6f22\u5b57 \U0001f600", "$$"])
def test_hostile_labels_are_text(label: str) -> None:
    svg = draw(x_label=label)
    assert "<script" not in svg
    texts = "".join(ET.fromstring(svg).itertext())  # noqa: S314
    assert label in texts


def test_ticks_that_would_touch_are_left_out_and_the_last_stays() -> None:
    ticks = tuple((i / 2550, f"{i}/2550") for i in range(0, 300, 10))
    kept = re.findall(r"\d+/2550", draw(ticks=ticks))
    assert 3 <= len(kept) <= 10 and kept[-1] == "290/2550"


def test_wide_ranges_are_drawn_by_factor_so_that_small_budgets_can_be_told_apart() -> None:
    ticks = tuple((e / 255, f"{e}/255") for e in (0, 1, 2, 4, 8, 16, 32))
    assert len(re.findall(r"\d+/255", draw(ticks=ticks))) == 7


def test_a_single_point_and_a_constant_are_drawn() -> None:
    svg = line_chart([Line(index=0, x=(1.0,), y=(0.5,))], name="d", x_label="epoch", y_label="task")
    assert "var(--run-0)" in svg


def test_swatches_differ_by_more_than_colour() -> None:
    shapes = [re.sub(r"--run-\d", "", str(swatch(i, name="k"))) for i in range(8)]
    assert len(set(shapes)) == 8
