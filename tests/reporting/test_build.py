"""The page: its numbers are those of result.json, hostile text stays text, and nothing is loaded."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from hardy.reporting.build import collect, render, report
from hardy.reporting.compare import PROFILE_ONLY
from hardy.reporting.numbers import duration
from hardy.reporting.pictures import gallery
from hardy.reporting.runs import Run, read_runs
from hardy.results import Axis, Check, Result, point

Make = Callable[..., Result]
Write = Callable[..., Path]
GOLDEN = Path(__file__).parents[1] / "golden" / "report.html"
VOID = {"meta", "link", "img", "br", "path", "use", "rect", "circle"}


class Page(HTMLParser):
    """Collect tags, the text of every table row, and check that tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def verdict(self) -> list[list[str]]:
        heads = next(i for i, row in enumerate(self.rows) if row[0].startswith("Run"))
        return [[" ".join(cell.split()) for cell in row] for row in self.rows[heads:]]


def made(*folders: Path) -> tuple[str, Page]:
    text = render(collect(read_runs(folders, None)))
    return text, Page(text)


@pytest.fixture(scope="module")
def page(comparison: list[Path]) -> tuple[str, Page]:
    return made(*comparison)


def test_the_verdict_table_holds_the_numbers_of_result_json(page: tuple[str, Page], comparison: list[Path]) -> None:
    rows = page[1].verdict()
    plain = json.loads((comparison[0] / "result.json").read_text())
    for folder, row in zip(comparison, rows[1:], strict=False):
        result = json.loads((folder / "result.json").read_text())
        cells = dict(zip(rows[0], row, strict=True))
        assert row[0].startswith(folder.name)
        for axis, base in zip(result["axes"], plain["axes"], strict=True):
            if axis["name"] in ("eps_curve", "minimal_norm", *PROFILE_ONLY):  # in the worst case; in the profile
                continue
            p, b = (
                next(
                    {"accuracy": p.get("value"), **p} for p in a["points"] + a["scores"] if p["label"] == a["headline"]
                )
                for a in (axis, base)
            )
            title = {"white_box": "white-box", "query": "queries"}.get(axis["name"], axis["name"].replace("_", " "))
            cell = next(cell for head, cell in cells.items() if head.startswith(title))
            found = re.findall(r"[+\N{MINUS SIGN}]?\d+\.\d", cell)
            numbers = [float(text.replace("\N{MINUS SIGN}", "-")) for text in found]
            expected = [p["accuracy"], p["low"], p["high"]]
            expected += [] if folder is comparison[0] else [p["accuracy"] - b["accuracy"]]
            assert numbers[: len(expected)] == pytest.approx([100 * value for value in expected], abs=0.051)
            assert len(numbers) == (3 if folder is comparison[0] else 6)
        assert cells["Training wall time"].startswith(duration(8 * result_seconds(folder)))


def result_seconds(folder: Path) -> float:
    return float(json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["seconds"])


def test_curve_tables_hold_every_point(page: tuple[str, Page], comparison: list[Path]) -> None:
    text = " ".join(" ".join(" ".join(row).split()) for row in page[1].rows)
    for folder in comparison:
        for axis in Result.read(folder / "result.json").axes:
            for p in axis.points:
                assert f"{100 * p.accuracy:.1f} [{100 * p.low:.1f}, {100 * p.high:.1f}]" in text, (axis.name, p.label)


def test_differences_on_curves_and_points_are_run_minus_baseline(comparison: list[Path]) -> None:
    data = collect(read_runs(comparison, None))
    assert data.attack is not None
    eps = next(curve for curve in data.attack.curves if curve.chart.title == "eps curve").rows[0].cells
    assert [cell.difference.text if cell.difference else "" for cell in eps[:3]] == ["", "+8.1", "+15.3"]
    rows = next(table for table in data.point_tables if table.title == "transfer").rows
    lfm = next(row for row in rows if (row.run, row.series) == ("lfm", "independent"))
    assert lfm.cell.difference is not None and lfm.cell.difference.text == "+8.1"


def test_nothing_is_loaded_and_nothing_runs(page: tuple[str, Page]) -> None:
    for tag, attributes in page[1].tags:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href", "srcset", "action", "data", "poster"):
                assert value is not None and value.startswith(("#", "data:")), (tag, key, value)
    assert not re.search(r"@import|url\((?!#)", page[0])
    assert "default-src 'none'" in page[0]


def test_every_link_of_the_page_meets_its_target_and_ids_are_unique(page: tuple[str, Page]) -> None:
    ids = [attributes["id"] for _, attributes in page[1].tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"] for _, a in page[1].tags if (a.get("href") or "").startswith("#")}
    assert {f"#{i}" for i in ids} >= targets
    assert {"#axis-0", "#run-3", "#reasons", "#measured"} <= targets


def test_pictures_and_charts_have_words_and_tables_have_heads(page: tuple[str, Page]) -> None:
    for tag, attributes in page[1].tags:
        if tag == "img":
            assert attributes.get("alt")
        if attributes.get("role") in ("img", "region", "group"):
            assert attributes.get("aria-label")
        if tag == "th":
            assert attributes.get("scope") in ("col", "row", "colgroup", "rowgroup")


def test_the_page_says_what_was_done_and_how_to_repeat_it(page: tuple[str, Page]) -> None:
    text = page[1].text
    for words in (
        "One pair of seeds: an illustration, not evidence", "hardy evaluate runs/x --data digits --seed 0",
        "LocalFeatureMasking(p=0.5)", 'model = "small net"', "forward 52,200", "12 of 360 gradients are zero.",
        "What to do: Attack the logits.", "4 of 12 checks over 4 runs passed; 0 failed, 4 warned.",
        "Not run, so not passed: eot.", "conditional accuracy: 52.0 %", "Change amplified 16\N{MULTIPLICATION SIGN}",
        "How many untouched images are classified as labelled?", "loss: consistency", "python", "2.13.0",
        "24 differences are judged here: without the correction about 1 of them would look clear by chance alone.",
    ):  # fmt: skip
        assert words in text.replace("\n", " "), words


def test_gains_are_marked_by_more_than_colour(page: tuple[str, Page]) -> None:
    rows = page[1].verdict()
    transfer = rows[0].index(next(head for head in rows[0] if head.startswith("transfer")))
    assert "\N{BLACK UP-POINTING TRIANGLE} +8.1 gain" in rows[2][transfer]
    assert "\N{BLACK DOWN-POINTING TRIANGLE} \N{MINUS SIGN}3.9 loss" in rows[3][1]
    assert "\N{ALMOST EQUAL TO} 0.0 unclear" in rows[4][1]


@pytest.mark.parametrize("word", ["nan", "inf", "-1", "None", "null"])
def test_no_placeholder_reaches_the_page(page: tuple[str, Page], word: str) -> None:
    assert not re.search(rf"(?<![\w.-]){word}(?![\w.])", page[1].text)


def test_missing_parts_leave_no_hole(tmp_path: Path, make_result: Make) -> None:
    axes = make_result().axes[:1]
    bare = make_result(axes=axes, arrays={}, outcomes_by_point={}, checks=(), command="", environment={})
    bare.save(tmp_path / "bare" / "result.json")
    text, page = made(tmp_path / "bare")
    assert [row[-1] for row in page.verdict()][1] == "not measured"
    for section in ("attack", "curves", "conditions", "examples", "classes", "training"):
        assert f'id="{section}"' not in text and f'href="#{section}"' not in text
    assert "No check was made" in page.text and "The command was not recorded." in page.text


def test_a_result_without_axes_still_makes_a_page(make_result: Make) -> None:
    run = Run(name="empty", path=Path("empty"), result=make_result(axes=(), outcomes_by_point={}))
    assert "None of these results holds a measurement." in Page(render(collect([run]))).text


def test_a_run_that_lacks_an_axis_says_not_measured(make_result: Make) -> None:
    short = make_result(axes=make_result().axes[:2])
    runs = [Run(name=name, path=Path(name), result=r) for name, r in (("a", make_result()), ("b", short))]
    assert Page(render(collect(runs))).verdict()[2][3:8] == ["not measured"] * 5


def test_numbers_that_are_no_shares_are_not_measured(make_result: Make) -> None:
    result = make_result()
    broken = replace(result.axes[0].points[0], accuracy=float("nan"), low=float("nan"), high=-1.0)
    result = replace(result, axes=(replace(result.axes[0], points=(broken,)), *result.axes[1:]))
    rows = Page(render(collect([Run(name="a", path=Path("a"), result=result)]))).verdict()
    assert rows[1][1] == "not measured"


def test_runs_on_other_images_are_shown_but_not_compared(make_result: Make) -> None:
    runs = [Run(name=name, path=Path(name), result=make_result(n=n)) for name, n in (("a", 360), ("b", 100))]
    text = Page(render(collect(runs)))
    assert text.verdict()[2][1] == "97.0 [91.5, 99.0] not compared: other images: 100, the baseline has 360"
    assert "Nothing here can be compared with a image by image" in text.text


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}&amp;\u202e$\\frac{"


@pytest.mark.filterwarnings("error")
def test_hostile_text_stays_text(tmp_path: Path, make_result: Make, write_run: Write) -> None:
    points = tuple(
        point(f"{HOSTILE} {i}", np.arange(360) % 2 == 0, level=float(i), series=HOSTILE, details={HOSTILE: HOSTILE})
        for i in range(2)
    )
    result = make_result(
        model=HOSTILE, class_names=tuple(f"{HOSTILE}{k}" for k in range(10)), data=HOSTILE, command=HOSTILE,
        methods=(HOSTILE,), environment={HOSTILE: HOSTILE},
        checks=(Check(code=HOSTILE, status="fail", evidence=HOSTILE, remedy=HOSTILE, anchor=HOSTILE),),
    )  # fmt: skip
    axis = Axis(name=HOSTILE, question=HOSTILE, headline=points[0].label, points=points, level_name=HOSTILE)
    result = replace(result, axes=(*result.axes, axis))
    folder = write_run(tmp_path / HOSTILE.replace("/", "_"), result)
    (folder / "recipe.toml").write_text(HOSTILE)
    (folder / "env.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, HOSTILE: 1.0}) + "\n")
    text = render(collect(read_runs([folder], None), title=HOSTILE))
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert all(not key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert all((a.get("src") or "data:").startswith("data:") for tag, a in page.tags if tag == "img")
    assert page.text.count(HOSTILE) > 15 and "49" not in re.findall(r"\{\{.*?\}\}", page.text)


def test_a_new_axis_appears_without_code(make_result: Make) -> None:
    right = np.arange(360) % 3 > 0
    points = tuple(point(f"{k} queries", right, level=float(k)) for k in (100, 1000, 10000))
    query = Axis(
        name="query_limited", question="How many?", headline="1000 queries", points=points, level_name="queries"
    )
    kept = {f"query_limited/{p.label}": right for p in points}
    result = make_result()
    result = replace(result, axes=(*result.axes, query), outcomes_by_point={**result.outcomes_by_point, **kept})
    runs = [Run(name=name, path=Path(name), result=result) for name in "ab"]
    page = Page(render(collect(runs)))
    assert page.verdict()[0][-2] == "query limited 1000 queries"
    assert page.verdict()[2][-2].startswith("66.7 [61.6, 71.3] \N{ALMOST EQUAL TO} 0.0 unclear")


def test_the_change_is_amplified_as_stated(make_result: Make) -> None:
    import base64
    import io

    from PIL import Image

    result = make_result()
    found = gallery(Run(name="a", path=Path("a"), result=result), 1)
    assert found is not None and found.pixelated and len(found.examples) == 1
    x, x_adv = (result.arrays[f"examples/{name}"][0, 0] for name in ("x", "x_adv"))
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), dtype=np.float64) / 255
        for uri in (found.examples[0].clean, found.examples[0].attacked, found.examples[0].change)
    ]
    expected = [x, x_adv, np.clip(0.5 + 16 * (x_adv - x), 0, 1)]
    assert all(np.abs(a - b).max() < 0.51 / 255 for a, b in zip(shown, expected, strict=True))
    assert (found.examples[0].truth, found.examples[0].after, found.examples[0].fooled) == ("0", "3", True)


@pytest.mark.parametrize(
    ("shape", "mode", "size"),
    [((2, 3, 20, 30), "RGB", (30, 20)), ((1, 5, 9, 9), "L", (9, 9)), ((1, 1, 500, 400), "L", (100, 125))],
)  # fmt: skip
def test_images_of_any_shape_become_thumbnails(
    make_result: Make, shape: tuple[int, ...], mode: str, size: tuple[int, int]
) -> None:
    import base64
    import io

    from PIL import Image

    x = np.random.default_rng(0).random(shape).astype(np.float32)
    arrays = {"examples/x": x, "examples/x_adv": x, "examples/label": np.full(shape[0], 99)}
    found = gallery(Run(name="a", path=Path("a"), result=make_result(arrays=arrays)), 4)
    assert found is not None and found.note == "The attack changed nothing."
    picture = Image.open(io.BytesIO(base64.b64decode(found.examples[0].clean.partition(",")[2])))
    assert (picture.mode, picture.size) == (mode, size)
    assert (found.examples[0].truth, found.examples[0].after) == ("99", "unknown")


def test_accuracy_by_class_is_that_of_the_outcomes(page: tuple[str, Page], comparison: list[Path]) -> None:
    result = Result.read(comparison[2] / "result.json")
    right, labels = result.outcomes_by_point["clean/clean"], result.arrays["labels"]
    row = next(row for row in page[1].rows if row[:2] == ["7", "36"])
    assert row[6] == f"{100 * right[labels == 7].mean():.1f}"


def test_many_classes_show_the_worst(make_result: Make) -> None:
    labels = np.arange(360) % 100
    result = make_result(num_classes=100, class_names=tuple(f"c{k}" for k in range(100)), arrays={"labels": labels})
    right = labels >= 30
    axes = (Axis(name="clean", question="?", headline="clean", points=(point("clean", right),)),)
    result = replace(result, axes=axes, outcomes_by_point={"clean/clean": right})
    per_class = collect([Run(name="a", path=Path("a"), result=result)]).per_class
    assert per_class is not None and len(per_class.rows) == 40
    assert {f"c{k}" for k in range(30)} <= {row.name for row in per_class.rows}
    assert "Of 100 classes, the 40 worst ones" in per_class.note


def test_report_writes_one_file_and_is_repeatable(tmp_path: Path, comparison: list[Path]) -> None:
    out = report(comparison, tmp_path / "deep" / "page.html", title="A title")
    assert out == tmp_path / "deep" / "page.html" and [p.name for p in out.parent.iterdir()] == ["page.html"]
    first = out.read_bytes()
    assert b"<h1>A title</h1>" in first
    assert report([str(path) for path in comparison], out, title="A title").read_bytes() == first


def test_the_page_is_as_agreed(tmp_path: Path, comparison: list[Path]) -> None:
    """Compare with the golden page; charts and pictures are left out, they depend on the drawing library."""
    text, _ = made(*comparison)
    text = re.sub(r"<svg.*?</svg>", "<svg></svg>", text, flags=re.DOTALL)
    text = re.sub(r"base64,[\w+/=]+", "base64,", text)
    text = re.sub(r"Hardy \S+?(?=[\". ]*(?:>|This))", "Hardy VERSION", text)
    text = re.sub(r"<style>.*?</style>", "<style></style>", text, flags=re.DOTALL)
    actual = tmp_path / "report.html"
    actual.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8"), f"look at {actual}; if it is right, copy it to {GOLDEN}"
