"""The page of a diagnosis: it says what the record says, for 2 classes and for 1000, and nothing in it is executed."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup
from PIL import Image
from torch import nn

from hardy.diagnosis import Diagnosis, Finding, Part, diagnose
from hardy.errors import DataError
from hardy.records import Score
from hardy.reporting import diagnosis_report
from hardy.reporting.diagnosis_maps import (
    LEVELS,
    NONE,
    binned,
    by_class,
    confusion_matrix,
    heat_png,
    map_picture,
    most_confused,
)
from hardy.reporting.diagnosis_numbers import bars, told
from hardy.reporting.diagnosis_pictures import overlaid, thumbnails
from hardy.reporting.diagnosis_report import diagnosis_html

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing of lines out, which takes most of the time of a page."""
    for name in ("line_chart", "swatch"):
        monkeypatch.setattr(f"hardy.reporting.diagnosis_numbers.{name}", lambda *_, **__: Markup())


def pixels(uri: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA"))


class Reader(HTMLParser):
    """Collects text, tags, ids and links."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.ids, self.links, self.images = list[str](), list[str](), list[str](), list[dict[str, str]]()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[key] for key in ("href", "src") if key in found]
        self.images += [found] if tag == "img" else []

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.text = " ".join(reader.text.split())
    return reader


def score(label: str, value: float, low: float | None = None, high: float | None = None, **facts: object) -> Score:
    facts = {"kind": "description"} | facts
    return Score(label=label, value=value, low=low, high=high, n=40, **facts)  # type: ignore[arg-type]  # its fields


def a_diagnosis(parts: tuple[Part, ...], k: int = 3, **changes: object) -> Diagnosis:
    made = Diagnosis(
        model="net", class_names=tuple(f"c{i}" for i in range(k)), data="digits, test", n=40, seed=3,
        layers=("one", "two"), parts=parts, command="hardy diagnose net --data digits", environment={"torch": "2"},
        options={"top": 5, "draws": 0, "sigma": 1.0},
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]  # its fields


def real(k: int, n: int = 48, width: int = 8, names: tuple[str, ...] = ()) -> Diagnosis:
    """Diagnose a small random net."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, k))
    x = torch.rand(n, 3, 8, 8)
    with torch.no_grad():
        y = net.eval()(x).argmax(1)
    y[: n // 3] = torch.arange(n // 3) % k
    return diagnose(net, x, y, class_names=names, model_name="tiny", data_name="noise", top=5)


def test_the_words_of_the_findings_come_first_the_problems_before_the_rest() -> None:
    findings = (
        Finding(code="a", severity="good", text="All is well here."),
        Finding(code="b", severity="note", text="This is worth knowing."),
        Finding(code="c", severity="problem", text="This is broken.", remedy="Mend this."),
    )
    page = diagnosis_html(a_diagnosis((Part(name="criticality", question="Which?", findings=findings),)))
    found = read(page)
    places = [found.text.index(f.text) for f in (findings[2], findings[1], findings[0])]
    assert places == sorted(places) and places[-1] < found.text.rindex("What was asked")
    assert "1 problem was found, and 1 thing worth knowing." in found.text
    assert "Mend this." in found.text and "#part-criticality" in found.links
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)


def test_parts_left_out_are_named_with_the_reason() -> None:
    notes = (
        "Not measured: background, as it needs masks of the objects.",
        "Not measured: attention. captum lacks.",
        "The net answers at random.",
    )
    page = read(diagnosis_html(a_diagnosis((Part(name="criticality", question="Which?"),), notes=notes)))
    assert "Background Not measured, as it needs masks of the objects." in page.text
    assert page.text.count("as it needs masks") == 1 and "Where it looks Not measured. captum lacks." in page.text
    assert "Note The net answers at random." in page.text
    assert "Adversarial isolation Do attacked images come back" in page.text and "--parts, takes isolation" in page.text


@pytest.mark.usefixtures("no_lines")
def test_names_are_harmless_and_nothing_is_loaded() -> None:
    made = real(3, names=(EVIL, '"><img src=x onerror=alert(1)>', "c&d"))
    sites = {"criticality": EVIL, "isolation": "x"}
    more = tuple(
        Part(
            name=name, question=EVIL, level_name=EVIL, notes=(EVIL,),
            scores=tuple(score(f"{EVIL}{i}", 0.1 * i, series=EVIL, level=float(i), details={"layer": site})
                         for i in range(3)),
            findings=(Finding(code=EVIL, severity="problem", text=EVIL, remedy=EVIL),),
        )
        for name, site in sites.items()
    )  # fmt: skip
    page = diagnosis_html(
        replace(made, parts=made.parts + more, model=EVIL, data=EVIL, command=EVIL, environment={EVIL: EVIL})
    )
    found = read(page)
    assert "<script" not in page and "script" not in found.tags and "onerror" not in "".join(found.ids)
    assert all("onerror" not in image for image in found.images)
    assert {link.partition(":")[0] for link in found.links if not link.startswith("#")} == {"data"}
    assert not re.search(r"https?://|url\((?!#)|@import", page)
    assert found.text.count(EVIL) > 10
    assert all(image.get("alt") for image in found.images)


def test_lines_with_names_of_users_are_harmless() -> None:
    scores = tuple(score(f"{i}", 0.1 * i, 0.0, 0.5, series=EVIL, level=float(i)) for i in range(3))
    page = diagnosis_html(a_diagnosis((Part(name="own", question="?", scores=scores, level_name=f"$x^2$ {EVIL}"),)))
    assert "<script" not in page and "$x^2$" in page and EVIL in read(page).text


@pytest.mark.parametrize("k", [2, 10, 1000])
@pytest.mark.usefixtures("no_lines")
def test_a_real_diagnosis_of_any_number_of_classes(k: int, tmp_path: Path) -> None:
    made = real(k, width=600 if k == 1000 else 8)
    out = tmp_path / "page.html"
    diagnosis_report(made, out)
    made.save(tmp_path / "diagnosis.json")
    diagnosis_report(Diagnosis.read(tmp_path), tmp_path / "again.html")
    assert out.read_bytes() == (tmp_path / "again.html").read_bytes()
    page = read(out.read_text())
    assert page.ids and len(page.ids) == len(set(page.ids))
    assert out.stat().st_size < 1_000_000
    for what in ("confusion matrix", "which class depends on which channel", "accuracy by class", "worst images"):
        assert what in page.text.lower() or (k == 1000 and "weakest of" in page.text)
    if k == 1000:
        assert "30 of 1000 classes" in page.text and "Shown are 30 of 1,000 classes" in page.text
        assert "one column is the largest of 2 neighbours" in page.text
    heat = next(image for image in page.images if image["alt"].startswith("Heat map"))
    shown = pixels(heat["src"])
    assert shown.shape[:2] == (min(k, 30), 300 if k == 1000 else 8)


def test_the_confusion_matrix_counts_and_says_what_it_leaves_out() -> None:
    counts = torch.zeros(50, 50, dtype=torch.int64)
    counts.diagonal().fill_(7)
    counts[3, 40], counts[40, 3], counts[9, 8], counts[3, 20] = 5, 4, 3, 1
    assert most_confused(counts, 50, most=4) == [3, 8, 9, 40]
    assert most_confused(counts, 50, most=50) == list(range(50)) and most_confused(None, 50, most=2) == [0, 1]
    made = confusion_matrix(counts, [str(i) for i in range(50)], [3, 8, 9, 40])
    texts = [[cell.text for cell in row.cells] for row in made.rows]
    assert texts[0] == ["7", "0", "0", "5", "1"] and texts[2] == ["0", "3", "7", "0", "0"]
    assert [row.sub for row in made.rows] == ["13", "7", "10", "11"]
    assert made.heads[-1][0] == "all other classes" and "4 of 50" in made.notes[0]
    assert made.rows[0].cells[3].tint == 10 and made.rows[1].cells[1].tint == 10  # 5 of 13 is the most mistaken share


def test_a_matrix_without_mistakes_or_images() -> None:
    made = confusion_matrix(torch.tensor([[2, 0], [0, 0]]), ["a", "b"], [0, 1])
    assert [[cell.tint for cell in row.cells] for row in made.rows] == [[10, 0], [0, 0]]


@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 10**6))
def test_channels_sorted_by_class_are_a_permutation_in_blocks(k: int, c: int, seed: int) -> None:
    map_ = torch.rand(k, c, generator=torch.Generator().manual_seed(seed)) * (torch.arange(c) % 4 > 0)
    order = by_class(map_)
    assert sorted(order.tolist()) == list(range(c))
    best: list[tuple[int, float]] = []
    for channel in order.tolist():
        column = [float(map_[r, channel] / map_[r].max()) if map_[r].max() > 0 else 0.0 for r in range(k)]
        best.append((column.index(max(column)) if max(column) > 0 else k, -max(column)))
    assert best == sorted(best)


def test_bins_keep_the_largest_and_all_channels() -> None:
    map_ = torch.rand(2, 1100)
    small, width = binned(map_)
    assert (width, small.shape) == (3, (2, 367))
    assert torch.equal(small[:, 0], map_[:, :3].amax(1)) and torch.equal(small[:, -1], map_[:, 1098:].amax(1))
    assert torch.equal(small.amax(1), map_.amax(1))
    assert binned(map_[:, :512])[1] == 1


def test_a_map_is_transparent_at_0_full_at_1_and_gray_where_there_is_none() -> None:
    shown = pixels(heat_png(torch.tensor([[0.0, 0.5, 1.0], [torch.nan] * 3])))
    assert shown[0, :, 3].tolist() == [0, round(255 * round(0.5 * (LEVELS - 1)) / (LEVELS - 1)), 255]
    assert tuple(shown[1, 0, :3]) == NONE


def test_a_row_is_relative_to_its_largest_value() -> None:
    picture = map_picture(
        torch.tensor([[0.0, 10.0], [1e-4, 0.0], [0.0, 0.0]]), "abc", layer="l", sort=False, chosen=[0, 1, 2]
    )
    assert pixels(picture.src)[..., 3].tolist() == [[0, 255], [255, 0], [0, 0]]


def test_bars_stay_on_the_scale_and_start_at_0() -> None:
    made = bars(
        [score("a", -0.5, -1.0, 0.0, unit="x"), score("b", 1.0, 0.5, 3.0, unit="x")], title="t", head="h", mark=2.0
    )
    first, second = made.bars
    assert (first.left, first.width, first.low, first.high) == (12.5, 12.5, 0.0, 25.0)
    assert (second.left, second.width, second.low, second.high) == (25.0, 25.0, 37.5, 100.0)
    assert made.mark == 75.0 and first.text.endswith("x") and second.interval == "[0.500, 3.000]"
    alone = bars([score("z", 0.0)], title="t", head="h").bars[0]
    assert (alone.left, alone.width, alone.interval) == (0.0, 0.0, "")


def test_numbers_are_written_with_their_intervals() -> None:
    assert told(score("accuracy", 0.5, 0.4, 0.6, kind="accuracy")) == ("50.0 %", "[40.0, 60.0]")
    assert told(score("accuracy, x minus plain", -0.1, -0.2, 0.0, series="difference")) == (
        "\N{MINUS SIGN}10.0 points", "[\N{MINUS SIGN}20.0, 0.0]",
    )  # fmt: skip
    assert told(score("rise", 1.5, 1.0, 2.0, unit="nats")) == ("1.500 nats", "[1.000, 2.000]")
    assert told(score("rise", float("nan"))) == ("not known", "")


def test_large_images_are_thinned_out_and_other_channels_averaged() -> None:
    picture = torch.arange(400, dtype=torch.int64).remainder(256).to(torch.uint8).expand(1, 1, 400, 400)
    assert pixels(thumbnails(picture)[0]).shape[:2] == (134, 134)
    two = torch.stack([torch.zeros(4, 4), torch.full((4, 4), 100.0)])[None].to(torch.uint8)
    assert set(pixels(thumbnails(two)[0])[..., 0].ravel().tolist()) == {50}


def test_a_map_is_laid_over_where_it_is_large() -> None:
    map_ = torch.zeros(4, 4)
    map_[:2] = 1
    over = overlaid(torch.full((3, 4, 4), 128, dtype=torch.uint8), map_).int()
    assert (over[0, 0] > over[2, 0]).all() and (over[:, 3] == 128).all()
    blank = overlaid(torch.full((1, 4, 4), 9, dtype=torch.uint8), torch.zeros(2, 2))
    assert bool((blank == 9).all())


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        diagnosis_report(a_diagnosis((Part(name="criticality", question="Which?"),)), tmp_path / "file" / "page.html")
