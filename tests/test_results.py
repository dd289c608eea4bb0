"""A result that is read is the result that was written, and a damaged one is a clear error."""

import io
import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hardy.errors import DataError, ParameterError
from hardy.results import FORMAT, Axis, Check, Point, Result, Score, mean_score, point
from hardy.stats import wilson
from hardy.threats import Threat

RIGHT = np.array([True, True, False, True])


def result(**change: Any) -> Result:
    axes = (
        Axis(name="clean", question="How often is it right?", headline="clean", points=(point("clean", RIGHT),)),
        Axis(
            name="eps_curve", question="How does it fall?", headline="pgd 8/255", level_name="eps",
            points=(
                point("pgd 4/255", RIGHT, level=4 / 255, series="pgd", passes={"forward": 80, "backward": 40}),
                point("pgd 8/255", ~RIGHT, level=8 / 255, series="pgd", details={"steps": 10, "source": None}),
            ),
        ),
    )  # fmt: skip
    outcomes = {"clean/clean": RIGHT, "eps_curve/pgd 4/255": RIGHT, "eps_curve/pgd 8/255": ~RIGHT}
    facts: dict[str, Any] = {
        "model": "net <b> & ü", "num_classes": 3, "class_names": ("a", "b<script>", "ç"), "data": "digits:test", "n": 4,
        "threat": Threat("linf", 8 / 255), "seed": 0, "axes": axes,
        "checks": (Check(code="mode", status="pass", evidence="eval mode"),),
        "methods": ("LocalFeatureMasking(p=0.15)",),
        "training_passes": {"forward_passes": 33.0, "backward_passes": 30.0},
        "command": "hardy evaluate", "environment": {"torch": "2"}, "seconds": 1.5, "outcomes_by_point": outcomes,
        "arrays": {"labels": np.arange(4), "pictures": np.zeros((2, 3, 3, 1), np.uint8)},
    }  # fmt: skip
    return Result(**{**facts, **change})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    result().save(tmp_path / "result.json")
    return tmp_path / "result.json"


class TestRoundTrip:
    def test_what_is_written_is_read(self, saved: Path) -> None:
        again = Result.read(saved)
        assert again == result() and again.format == FORMAT
        assert isinstance(again.axes, tuple) and isinstance(again.axes[1].points[0], Point)
        assert again.threat == Threat("linf", 8 / 255) and again.class_names == ("a", "b<script>", "ç")
        assert again.arrays["pictures"].dtype == np.uint8 and again.outcomes_by_point["clean/clean"].dtype == bool
        assert sorted(p.name for p in saved.parent.iterdir()) == ["result.json", "result.npz"]
        data = json.loads(saved.read_text())
        assert "outcomes_by_point" not in data and "arrays" not in data
        assert data["axes"][1]["points"][1]["details"] == {"steps": 10}  # what was not measured is absent

    def test_again_is_the_same_file(self, saved: Path, tmp_path: Path) -> None:
        Result.read(saved).save(tmp_path / "twice.json")
        assert (tmp_path / "twice.json").read_bytes() == saved.read_bytes()

    @pytest.mark.parametrize(
        "change",
        [
            {"model": "other"}, {"seconds": 1.25}, {"checks": ()}, {"threat": Threat("l2", 8 / 255)},
            {"class_names": ()},
            {"outcomes_by_point": {}}, {"arrays": {"labels": np.arange(4)}},
            {"arrays": {"labels": np.arange(1, 5), "pictures": np.zeros((2, 3, 3, 1), np.uint8)}},
        ],
    )  # fmt: skip
    def test_equality_sees_every_part(self, change: dict[str, Any]) -> None:
        assert result() == result() and result() != result(**change) and result() != "result"

    def test_numbers_that_json_lacks_are_errors_and_leave_no_json(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            result(seconds=math.nan).save(tmp_path / "result.json")
        assert not (tmp_path / "result.json").exists()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
NAME = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=10)  # a name inside a zip file
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCALAR = st.one_of(st.none(), TEXT, st.integers(-(2**53), 2**53), FINITE, st.booleans())
# plain values here, records in the test: the type checker draws random numbers, which strategies must not
POINTS = st.fixed_dictionaries({
    "label": TEXT, "accuracy": FINITE, "low": FINITE, "high": FINITE, "n": st.integers(0, 10**6),
    "level": st.none() | FINITE, "series": TEXT, "passes": st.dictionaries(TEXT, st.integers(0, 10**12), max_size=2),
    "details": st.dictionaries(TEXT, SCALAR, max_size=2),
})  # fmt: skip
AXES = st.fixed_dictionaries({
    "name": TEXT, "question": TEXT, "headline": TEXT, "points": st.lists(POINTS, max_size=2), "level_name": TEXT,
})  # fmt: skip
STATUS = st.sampled_from(["pass", "warn", "fail", "not_run"])
CHECKS = st.fixed_dictionaries({"code": TEXT, "status": STATUS, "evidence": TEXT, "remedy": TEXT, "anchor": TEXT})
OUTCOMES = st.lists(st.booleans(), max_size=5)
ARRAYS = st.sampled_from([np.arange(3), np.zeros((0, 2), np.float32), np.uint8([[1]]), np.array(2.5)])


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    axes=st.lists(AXES, max_size=2), checks=st.lists(CHECKS, max_size=2), words=st.lists(TEXT, max_size=3), text=TEXT,
    number=st.integers(-(2**62), 2**62), real=FINITE, table=st.dictionaries(TEXT, TEXT, max_size=2),
    outcomes=st.dictionaries(NAME, OUTCOMES, max_size=2), arrays=st.dictionaries(NAME, ARRAYS, max_size=2),
)  # fmt: skip
def test_any_result_is_read_back(  # noqa: PLR0917
    tmp_path: Path, axes: Any, checks: Any, words: Any, text: str, number: int, real: float, table: Any, outcomes: Any,
    arrays: Any,
) -> None:  # fmt: skip
    made = Result(
        model=text, num_classes=number, class_names=tuple(words), data=text, n=abs(number), seed=number, seconds=real,
        threat=Threat("l2", abs(real) + 1e-9), methods=tuple(words), command=text, environment=table,
        axes=tuple(Axis(**{**axis, "points": tuple(Point(**p) for p in axis["points"])}) for axis in axes),
        checks=tuple(Check(**check) for check in checks), arrays=arrays,
        outcomes_by_point={name: np.array(values, dtype=bool) for name, values in outcomes.items()},
    )  # fmt: skip
    made.save(tmp_path / "result.json")
    again = Result.read(tmp_path / "result.json")
    assert again == made
    assert [p.label for axis in again.axes for p in axis.points] == [
        p["label"] for axis in axes for p in axis["points"]
    ]


class TestLookUp:
    def test_accuracy_and_outcomes_of_the_headline_or_a_point(self) -> None:
        r = result()
        assert r.accuracy("clean") == 0.75 and r.accuracy("eps_curve") == 0.25
        assert r.accuracy("eps_curve", "pgd 4/255") == 0.75
        outcomes = r.outcomes("eps_curve", "pgd 4/255")
        assert torch.equal(outcomes, torch.tensor([True, True, False, True]))
        outcomes[0] = False  # a copy
        assert r.outcomes_by_point["eps_curve/pgd 4/255"][0]

    def test_what_was_not_measured_is_an_error_that_helps(self) -> None:
        with pytest.raises(ParameterError, match=r"axis 'claen' was not measured; did you mean 'clean'\?"):
            result().accuracy("claen")
        with pytest.raises(ParameterError, match=r"eps_curve has no point 'pgd 4/25'; did you mean 'pgd 4/255'\?"):
            result().outcomes("eps_curve", "pgd 4/25")
        with pytest.raises(ParameterError, match=r"axis 'x' was not measured"):
            result(axes=()).axis("x")

    def test_a_point_is_made_from_outcomes(self) -> None:
        p = point("a", RIGHT, level=0.5, series="s")
        assert (p.accuracy, p.n, (p.low, p.high), p.level, p.series) == (0.75, 4, wilson(3, 4), 0.5, "s")
        with pytest.raises(ParameterError):
            point("a", np.zeros(0, dtype=bool))


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(path: Path) -> object:
        data = json.loads(path.read_text())
        change(data)
        return path.write_text(json.dumps(data))

    return damage


def text(content: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def npz(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.with_suffix(".npz").write_bytes(content)


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def plain_npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(3))
    return file.getvalue()


def huge_npy() -> bytes:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 1024), }"
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


DAMAGED: dict[str, Callable[[Path], object]] = {
    "no json": lambda path: path.unlink(),
    "no npz": lambda path: path.with_suffix(".npz").unlink(),
    "empty": text(""),
    "not json": text("{'a': 1}"),
    "not utf-8": text(b"\xff\xfe{}"),
    "a list": text("[]"),
    "null": text("null"),
    "nesting": text("[" * 200_000),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "newer format": edit(lambda d: d.update(format=99)),
    "no format": edit(lambda d: d.pop("format")),
    "format is text": edit(lambda d: d.update(format="1")),
    "format is a list": edit(lambda d: d.update(format=[1])),
    "unknown key": edit(lambda d: d.update(extra=1)),
    "missing key": edit(lambda d: d.pop("axes")),
    "wrong type": edit(lambda d: d.update(n="four")),
    "unknown status": edit(lambda d: d["checks"][0].update(status="great")),
    "threat without eps": edit(lambda d: d["threat"].pop("eps")),
    "negative eps": edit(lambda d: d["threat"].update(eps=-1.0)),
    "point that is no table": edit(lambda d: d["axes"][0].update(points=[3])),
    "npz is empty": npz(b""),
    "npz is text": npz(b"hello"),
    "npz is one array": npz(plain_npy()),
    "npz is a zip of text": npz(zipped("outcomes/a.npy", b"hello")),
    "npz is a zip of other files": npz(zipped("readme.txt", b"hello")),
    "npz declares a huge array": npz(zipped("arrays/a.npy", huge_npy())),
    "npz is a cut zip": lambda path: path.with_suffix(".npz").write_bytes(path.with_suffix(".npz").read_bytes()[:-30]),
    "json in a folder": lambda path: (path.unlink(), path.mkdir()),
}


class Bomb:
    path = ""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (Bomb.path,)


class TestDamage:
    @pytest.mark.parametrize("name", DAMAGED)
    def test_is_a_data_error_that_names_the_file(self, name: str, saved: Path) -> None:
        DAMAGED[name](saved)
        with pytest.raises(DataError, match=r"result.(json|npz): "):
            Result.read(saved)

    def test_pickled_arrays_are_refused_and_execute_nothing(self, saved: Path) -> None:
        Bomb.path = str(saved.parent / "trace")
        file = io.BytesIO()
        np.save(file, np.array([Bomb()], dtype=object), allow_pickle=True)
        for content in (zipped("arrays/a.npy", file.getvalue()), file.getvalue(), pickle.dumps(Bomb())):
            npz(content)(saved)
            with pytest.raises(DataError):
                Result.read(saved)
        assert not Path(Bomb.path).exists()

    def test_an_npz_cut_at_any_byte(self, saved: Path) -> None:
        whole = saved.with_suffix(".npz").read_bytes()
        for size in [*range(0, len(whole), 7), len(whole) - 1]:
            npz(whole[:size])(saved)
            with pytest.raises(DataError):
                Result.read(saved)

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(at=st.integers(0, 10**6), to=st.integers(0, 255), which=st.sampled_from([".npz", ".json"]))
    def test_a_flipped_byte_is_another_result_or_a_data_error(self, saved: Path, at: int, to: int, which: str) -> None:
        file = saved.with_suffix(which)
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[at % len(whole)] = to
        file.write_bytes(flipped)
        try:
            Result.read(saved)
        except DataError:
            pass
        finally:
            file.write_bytes(whole)


class TestScores:
    axis = Axis(
        name="corruptions", question="?", headline="mean", points=(point("fog 1", RIGHT),),
        scores=(
            mean_score("mean", np.array([0.5, 1.0, 0.0, 0.75], np.float32), kind="accuracy"),
            Score(label="mCE", value=1.25, kind="error", n=4, unit="", details={"reference": "net"}),
        ),
    )  # fmt: skip

    def test_are_written_and_read(self, tmp_path: Path) -> None:
        made = result(axes=(self.axis,))
        made.save(tmp_path / "result.json")
        again = Result.read(tmp_path / "result.json")
        assert again == made and isinstance(again.axes[0].scores[1], Score)
        assert again.score("corruptions", "mCE").value == 1.25

    def test_a_mean_of_accuracies_is_an_accuracy_and_an_error_is_none(self) -> None:
        made = result(axes=(self.axis,))
        assert made.accuracy("corruptions") == 0.5625 == made.score("corruptions").value
        assert made.accuracy("corruptions", "fog 1") == 0.75
        with pytest.raises(ParameterError, match=r"corruptions/mCE is a score .error., no accuracy"):
            made.accuracy("corruptions", "mCE")
        with pytest.raises(ParameterError, match="corruptions has no score 'mce'"):
            made.score("corruptions", "mce")

    def test_the_interval_of_a_mean_stays_inside_and_never_has_no_width(self) -> None:
        wide = mean_score("m", np.array([0.0, 1.0]), kind="accuracy")
        assert (wide.low, wide.high) == (0.0, 1.0)
        sure = mean_score("m", np.ones(10), kind="accuracy")
        assert (sure.low, sure.high) == wilson(10, 10)
        assert mean_score("m", np.array([0.3]), kind="error").low is None

    def test_formats_before_4_know_no_training_passes_and_are_still_read(self, saved: Path) -> None:
        data = json.loads(saved.read_text())
        data["format"] = 3
        assert data.pop("training_passes") == {"forward_passes": 33.0, "backward_passes": 30.0}
        saved.write_text(json.dumps(data))
        assert Result.read(saved).training_passes == {}

    def test_format_1_has_no_scores_and_is_still_read(self, saved: Path) -> None:
        data = json.loads(saved.read_text())
        data["format"] = 1
        for axis in data["axes"]:
            del axis["scores"]
        saved.write_text(json.dumps(data))
        again = Result.read(saved)
        assert [axis.scores for axis in again.axes] == [(), ()] and again.accuracy("eps_curve", "pgd 4/255") == 0.75
