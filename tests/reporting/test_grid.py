"""The comparison of a grid: ranks, fronts and intervals against slow references; the page says what the file says."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from hardy.cli.compare import show_comparison
from hardy.errors import ParameterError
from hardy.reporting import Comparison, GridCell, grid_report
from hardy.reporting.grid_numbers import front, over_seeds, ranks
from hardy.reporting.numbers import gap, gap_interval, interval, percent
from hardy.results import Axis, Check, Result, point
from hardy.threats import Threat

N = 200
LABELS = np.arange(N) % 10
ARMS = {"plain": (), "mask": ("Mask(p=0.5)",), "noise": ("Noise(sigma=0.1)",)}
pytestmark = pytest.mark.usefixtures("no_charts")


def right(share: float, seed: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    found = np.zeros(N, np.bool_)
    found[np.random.default_rng(seed).permutation(N)[: round(share * N)]] = True
    return found


def result(clean: float, robust: float, *, seed: int, checks: Sequence[Check] = ()) -> Result:
    kept = {"clean/clean": right(clean, 1), "white_box/standard": right(robust, seed)}
    axes = (
        Axis(name="clean", question="Right?", headline="clean", points=(point("clean", kept["clean/clean"]),)),
        Axis(name="white_box", question="Still right?", headline="standard",
             points=(point("standard", kept["white_box/standard"], level=0.1, series="suite",
                           details={"suite": "standard", "norm": "linf"}),)),
    )  # fmt: skip
    return Result(
        model="net", num_classes=10, class_names=tuple("0123456789"), data="digits test", n=N, seed=0, axes=axes,
        threat=Threat("linf", 0.1), checks=tuple(checks), outcomes_by_point=kept, seconds=1.5,
        arrays={"labels": LABELS, "predictions": LABELS, "images": np.zeros(16, np.uint8)},
    )  # fmt: skip


def write(
    root: Path, write_run: Callable[..., Path], numbers: Mapping[str, Sequence[tuple[float, float]]], net: str = "net",
    *, failing: str = "",
) -> list[GridCell]:  # fmt: skip
    """Write a grid: for every arm and seed clean and robust accuracy."""
    cells = []
    for arm, values in numbers.items():
        for seed, (clean, robust) in enumerate(values):
            folder = root / arm / "net" / f"seed{seed}"
            bad = Check(code="zero_gradient", status="fail", evidence="all zero")
            made = result(clean, robust, seed=seed, checks=[bad] if arm == failing else [])
            folder.mkdir(parents=True)
            write_run(folder, made, seed=seed, epochs=2)
            rows = [{"epoch": e, "seconds": 3.0, "forward_passes": 2, "backward_passes": 1} for e in (1, 2)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            cells.append(GridCell(name=f"{arm}/net/seed{seed}", arm=arm, net=net, seed=seed, folder=folder))
    return cells


def compared(cells: Sequence[GridCell], out: Path, arms: Mapping[str, tuple[str, ...]] = ARMS) -> Comparison:
    return grid_report(cells, out, arms=arms, baseline="plain", budget="epochs")


THREE = {
    "plain": [(0.95, 0.20), (0.96, 0.22), (0.97, 0.21)],
    "mask": [(0.94, 0.40), (0.95, 0.41), (0.96, 0.42)],
    "noise": [(0.90, 0.30), (0.97, 0.10), (0.95, 0.25)],
}


bounds = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(lambda b: (min(b) / 6, max(b) / 6))


@given(st.dictionaries(st.sampled_from("abcdef"), bounds, min_size=1))
def test_a_rank_counts_those_that_lie_wholly_above(intervals: dict[str, tuple[float, float]]) -> None:
    found = ranks(intervals)
    for name, (_, high) in intervals.items():
        above = [other for other, (low, _) in intervals.items() if low > high]
        assert found[name] == len(above) + 1 and name not in above
    assert min(found.values()) == 1


@given(st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1))
def test_the_front_is_what_no_other_beats(points: dict[str, tuple[int, int]]) -> None:
    found = front({name: (float(x), float(y)) for name, (x, y) in points.items()})
    assert found
    for name, (x, y) in points.items():
        beaten = False
        for u, v in points.values():
            beaten = beaten or (u > x and v >= y) or (u >= x and v > y)
        assert (name in found) == (not beaten)


def test_the_interval_over_seeds_is_students_of_the_paired_differences(
    tmp_path: Path, write_run: Callable[..., Path]
) -> None:
    made = compared(write(tmp_path, write_run, THREE), tmp_path / "page.html")
    found = made.difference("mask", "net", "white_box")
    differences = [a[1] - b[1] for a, b in zip(THREE["mask"], THREE["plain"], strict=True)]
    mean = sum(differences) / 3
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / 2)
    half = scipy_stats.t.ppf(0.975, 2) * deviation / math.sqrt(3)
    assert found is not None and found.pairs == 3 and found.verdict == "gain"
    assert (found.mean, found.low, found.high) == pytest.approx((mean, mean - half, mean + half))
    noisy = made.difference("noise", "net", "white_box")
    assert noisy is not None and noisy.verdict == "unclear" and noisy.low is not None and noisy.low < 0
    assert over_seeds([0.25]) == (0.25, None, None)


def test_pairs_are_of_one_seed_and_not_of_one_place(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    cells = [c for c in write(tmp_path, write_run, THREE) if c.name != "plain/net/seed0"]
    made = compared(cells, tmp_path / "page.html")
    found = made.difference("mask", "net", "white_box")
    assert found is not None and found.pairs == 2 and found.verdict == "few"
    assert found.mean == pytest.approx((0.41 - 0.22 + 0.42 - 0.21) / 2)
    own = next(c for c in made.cells if c.name == "mask/net/seed0").against_base
    assert own is not None and own.verdict == "void" and "baseline" in own.why


def answered_otherwise(cell: GridCell, **changes: Any) -> None:
    """Overwrite the result of a cell."""
    assert cell.folder is not None
    file = cell.folder / "result.json"
    replace(Result.read(file), **changes).save(file)


def other_images(cell: GridCell) -> None:
    assert cell.folder is not None
    arrays = Result.read(cell.folder / "result.json").arrays
    answered_otherwise(cell, arrays={**arrays, "images": np.ones(16, np.uint8)})


def test_numbers_that_answer_another_question_are_left_out_and_said_so(
    tmp_path: Path, write_run: Callable[..., Path]
) -> None:
    cells = write(tmp_path, write_run, THREE)
    by_name = {cell.name: cell for cell in cells}
    answered_otherwise(by_name["mask/net/seed1"], threat=Threat("linf", 0.2))
    other_images(by_name["noise/net/seed2"])
    made = compared(cells, tmp_path / "page.html")
    mask = made.mean("mask", "net", "white_box")
    assert mask is not None and (mask.seeds, mask.missing, mask.rank) == (2, (1,), None)
    assert mask.mean == pytest.approx((0.40 + 0.42) / 2)  # without that of the larger budget
    gap_ = made.difference("mask", "net", "white_box")
    assert gap_ is not None and (gap_.pairs, gap_.verdict) == (2, "few")
    clean = made.mean("mask", "net", "clean")
    assert clean is not None and (clean.seeds, clean.missing) == (3, ())  # the budget does not enter
    noise = [made.mean("noise", "net", axis) for axis in ("clean", "white_box")]
    assert all(m is not None and (m.seeds, m.missing, m.rank) == (2, (2,), None) for m in noise)
    found = {c.name: {axis: a.other for axis, a in c.accuracy.items() if a.other} for c in made.cells}
    assert {name: said for name, said in found.items() if said} == {
        "mask/net/seed1": {"white_box": "other threat"},
        "noise/net/seed2": {"clean": "other images", "white_box": "other images"},
    }
    assert made.fronts == ()  # plain alone is no front
    page = (tmp_path / "page.html").read_text()
    assert "not ranked: seed 1 missing; seed 1 left out: other threat" in page
    assert "left out of means and differences" in page


def test_any_two_that_are_pooled_were_asked_the_same(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    cells = write(tmp_path, write_run, THREE)
    first = next(c for c in cells if c.name == "plain/net/seed0")  # it does not say which images, so it fits all
    assert first.folder is not None
    arrays = Result.read(first.folder / "result.json").arrays
    answered_otherwise(first, arrays={key: value for key, value in arrays.items() if key != "images"})
    other_images(next(c for c in cells if c.name == "mask/net/seed1"))
    made = compared(cells, tmp_path / "page.html")
    assert [c.name for c in made.cells if c.accuracy["clean"].other] == ["mask/net/seed1"]
    other_images(next(c for c in cells if c.name == "plain/net/seed1"))
    made = compared(cells, tmp_path / "page.html")
    assert [c.name for c in made.cells if c.accuracy["clean"].other] == ["plain/net/seed1", "mask/net/seed1"]


def test_the_question_is_that_of_most_and_a_whole_arm_may_miss_it(
    tmp_path: Path, write_run: Callable[..., Path]
) -> None:
    cells = write(tmp_path, write_run, THREE)
    for cell in cells:
        if cell.arm == "plain":
            other_images(cell)
    made = compared(cells, tmp_path / "page.html")
    assert made.mean("plain", "net", "clean") is None and made.differences == ()
    ranked = [made.mean(arm, "net", "white_box") for arm in ("mask", "noise")]
    assert [m.rank for m in ranked if m is not None] == [1, 1]
    page = (tmp_path / "page.html").read_text()
    assert page.count("seed 0 left out: other images; seed 1 left out: other images; seed 2 left out") == 2


def test_an_arm_that_lacks_a_seed_is_neither_ranked_nor_on_a_front(
    tmp_path: Path, write_run: Callable[..., Path]
) -> None:
    cells = [c for c in write(tmp_path, write_run, THREE) if c.name not in ("mask/net/seed0", "mask/net/seed1")]
    made = compared(cells, tmp_path / "page.html")
    mean = made.mean("mask", "net", "white_box")
    assert mean is not None and (mean.seeds, mean.missing, mean.rank) == (1, (0, 1), None)
    assert [made.mean(arm, "net", "white_box").rank for arm in ("plain", "noise")] == [1, 1]  # type: ignore[union-attr]
    assert {f.against: set(f.arms) for f in made.fronts} == {"clean": {"plain", "noise"}, "passes": {"noise"}}
    page = (tmp_path / "page.html").read_text()
    assert "not ranked: seeds 0 and 1 missing" in page and "Not judged, as seeds are missing: mask." in page
    alike = [c for c in write(tmp_path / "b", write_run, THREE) if c.seed != 2]
    every = compared(alike, tmp_path / "page.html")  # a seed that no arm has is no reason
    assert all(m.missing == () and m.rank is not None for m in every.means)


def test_one_image_is_no_difference(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    steps = {"plain": 0, "mask": 1, "noise": 2}  # images of 200, the same for every seed: intervals have no width
    numbers = {arm: [(0.9, 0.2 + k / N)] * 3 for arm, k in steps.items()}
    made = compared(write(tmp_path, write_run, numbers), tmp_path / "page.html")
    found = {arm: made.difference(arm, "net", "white_box") for arm in ("mask", "noise")}
    assert {arm: g.verdict for arm, g in found.items() if g is not None} == {"mask": "unclear", "noise": "gain"}
    assert all(g is not None and g.high is not None and g.low == pytest.approx(g.high) for g in found.values())
    means = {m.arm: m.rank for m in made.means if m.axis == "white_box"}
    assert means == {"plain": 2, "mask": 1, "noise": 1}  # only noise lies above plain by more than an image


def test_what_warned_stands_beside_gains_and_own_bases(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    cells = write(tmp_path, write_run, THREE)
    warning = Check(code="zero_gradient", status="warn", evidence="some are zero")
    noise = Check(code="eot", status="warn", evidence="few draws")
    answered_otherwise(next(c for c in cells if c.name == "mask/net/seed1"), checks=(warning,))
    answered_otherwise(next(c for c in cells if c.name == "plain/net/seed1"), checks=(noise,))
    made = compared(cells, tmp_path / "page.html")
    mean = made.mean("mask", "net", "white_box")
    assert mean is not None and mean.warned == ("zero_gradient",) and mean.rank == 1
    own = {c.name: c.against_base.caution for c in made.cells if c.against_base is not None}
    words = "check zero_gradient warned and check eot of the baseline warned"
    assert own["mask/net/seed1"] == words and own["mask/net/seed0"] == ""
    cell = rows_of(tmp_path / "page.html", "grid-table")[1]
    assert cell[0].startswith("mask") and words in cell[2] and "zero_gradient" not in cell[1]
    bases = {row[0]: row[-1] for row in rows_of(tmp_path / "page.html", "grid-bases")}
    assert words in bases["mask, seed 1"] and "warned" not in bases["mask, seed 0"]


def test_an_arm_whose_checks_failed_is_shown_but_neither_ranked_nor_compared(
    tmp_path: Path, write_run: Callable[..., Path]
) -> None:
    made = compared(write(tmp_path, write_run, THREE, failing="mask"), tmp_path / "page.html")
    mean, found = made.mean("mask", "net", "white_box"), made.difference("mask", "net", "white_box")
    assert mean is not None and mean.rank is None and mean.void == ("zero_gradient",)
    assert found is not None and found.verdict == "void"
    clean = made.mean("mask", "net", "clean")
    assert clean is not None and clean.rank == 1  # the check speaks of attacks alone
    assert all("mask" not in each.arms for each in made.fronts)
    page = (tmp_path / "page.html").read_text()
    assert "void, not ranked: check zero_gradient failed" in page and "mask gains" not in page


def test_one_seed_has_no_interval_and_the_page_says_so(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    made = compared(write(tmp_path, write_run, {k: v[:1] for k, v in THREE.items()}), tmp_path / "page.html")
    assert all(m.low is None and m.rank is None for m in made.means)
    assert all(g.verdict == "few" and g.low is None for g in made.differences)
    page = (tmp_path / "page.html").read_text()
    assert "With one seed there is no interval over seeds" in page and "rank 1" not in page
    own = next(c for c in made.cells if c.arm == "mask").against_base
    assert own is not None and own.verdict == "gain"  # over images: this net beats that net


class Tables(HTMLParser):
    """Reads the tables with a class: rows of cells of text."""

    def __init__(self, wanted: str) -> None:
        super().__init__()
        self.wanted, self.inside, self.rows = wanted, False, list[list[str]]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.inside = self.wanted in (dict(attrs).get("class") or "")
        if self.inside and tag == "tr":
            self.rows.append([])
        if self.inside and tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.inside and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def rows_of(page: Path, table: str) -> list[list[str]]:
    parser = Tables(table)
    parser.feed(page.read_text())
    return [[" ".join(text.split()) for text in row] for row in parser.rows[1:]]


def test_every_number_of_the_page_is_in_the_file(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    made = compared(write(tmp_path, write_run, THREE), tmp_path / "page.html")
    data = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert data["format"] == 1 and data["axes"] == ["clean", "white_box"]
    shown = rows_of(tmp_path / "page.html", "grid-table")
    assert [row[0].split()[0] for row in shown] == list(ARMS)
    for arm, row in zip(ARMS, shown, strict=True):
        for axis, text in zip(data["axes"], row[1:], strict=False):
            mean = next(m for m in data["means"] if (m["arm"], m["axis"]) == (arm, axis))
            assert text.startswith(f"{percent(mean['mean'])} {interval(mean['low'], mean['high'])}")
            assert f"rank {mean['rank']}" in text
            for each in data["differences"]:
                if (each["arm"], each["axis"]) == (arm, axis):
                    assert f"{gap(each['mean'])} " in text and gap_interval(each["low"], each["high"]) in text
            numbers = re.findall(r"\d+\.\d", text)
            assert len(numbers) == (3 if arm == "plain" else 6)
        cost = next(c for c in data["costs"] if c["arm"] == arm)
        assert row[3].startswith("6 4 forward, 2 backward; 2 epochs")
        assert (cost["forward_passes"], cost["backward_passes"], cost["seconds"]) == (4, 2, 6) and "6.0 s" in row[4]
    for row in rows_of(tmp_path / "page.html", "grid-bases"):
        arm, seed = row[0].split(", seed ")
        cell = next(c for c in data["cells"] if (c["arm"], c["seed"]) == (arm, int(seed)))
        assert row[1] == percent(cell["accuracy"]["white_box"]["accuracy"])
        own = cell["against_base"]
        assert gap(own["difference"]) in row[3] and gap_interval(own["low"], own["high"]) in row[3]
        assert {"gain": "yes", "loss": "no", "unclear": "no difference"}[own["verdict"]] in row[5]


def test_names_are_escaped_and_what_is_missing_is_named(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    evil = "<script>alert(1)</script>"
    cells = write(tmp_path, write_run, {"plain": THREE["plain"], "mask": THREE["mask"]}, net=evil)
    lost = GridCell(name=f"{evil}/seed0", arm=evil, net=evil, seed=0, folder=None, why=f"broken {evil}")
    made = compared([*cells, lost], tmp_path / "page.html", {"plain": (), "mask": (), evil: (evil,)})
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "broken &lt;script" in page
    assert [cell.arm for cell in made.missing] == [evil]
    assert "folder" not in made.to_json()["missing"][0]


def test_nothing_finished_makes_no_page(tmp_path: Path) -> None:
    lost = GridCell(name="plain/net/seed0", arm="plain", net="net", seed=0, folder=None, why="broken")
    made = compared([lost], tmp_path / "page.html", {"plain": ()})
    assert made.cells == () and made.missing == (lost,) and not (tmp_path / "page.html").exists()


def test_the_plots_mark_the_front(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    cells = write(tmp_path, write_run, THREE)
    made = compared(cells, tmp_path / "page.html")
    assert {f.against: set(f.arms) for f in made.fronts} == {"clean": {"plain", "mask"}, "passes": {"mask"}}
    page = (tmp_path / "page.html").read_text()
    assert "On the Pareto front (filled): plain and mask." in page
    section = page[page.index('id="comparison"') : page.index('id="verdict"')]
    assert section.count("<svg") == 3 + 2 and "http" not in section  # legend and plots


def test_a_name_that_is_not_there_is_an_error_and_not_nothing(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    made = compared(write(tmp_path, write_run, THREE), tmp_path / "r.html")
    assert made.difference("plain", "net", "clean") is None  # the baseline itself
    with pytest.raises(ParameterError, match=r"Comparison: no arm 'masks'; did you mean 'mask'\?"):
        made.difference("masks", "net", "clean")
    with pytest.raises(ParameterError, match=r"Comparison: no axis 'whitebox'; did you mean 'white_box'\?"):
        made.mean("mask", "net", "whitebox")
    with pytest.raises(ParameterError, match=r"Comparison: no net 'x'; known: net"):
        made.cost("mask", "x")


def test_the_terminal_says_what_counts(
    tmp_path: Path, write_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    show_comparison(compared(write(tmp_path / "a", write_run, THREE, failing="noise"), tmp_path / "r.html"))
    said = capsys.readouterr().err
    assert "+20.0 gain" in said and "void: zero_gradient" in said and "paired by seed" in said
    two = {arm: values[:2] for arm, values in THREE.items()}
    show_comparison(compared(write(tmp_path / "b", write_run, two), tmp_path / "r.html"))
    assert "too few seeds" in capsys.readouterr().err


def test_nets_stand_by_themselves_below_the_comparison(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    compared(write(tmp_path, write_run, THREE), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    above, below = page.split("Net by net</h2>")
    assert 'class="difference' in above and 'class="difference' not in below
