"""The loader accepts what the dataclass says, names the key otherwise, and reads back what it writes."""

import contextlib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardy.config import build, dump, override, read_toml
from hardy.errors import ConfigError
from hardy.threats import Threat


@dataclass(frozen=True, kw_only=True)
class Sgd:
    lr: float
    momentum: float = 0.9


@dataclass(frozen=True, kw_only=True)
class Adam:
    lr: float = 0.001
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class Run:
    model: str
    seeds: tuple[int, ...] = (0,)
    threat: Threat = field(default_factory=lambda: Threat("linf", 8 / 255))
    limit: int | None = None
    fill: float | Literal["uniform"] = "uniform"
    out: Path | None = None
    optimizer: Sgd | Adam = field(default_factory=Adam)
    notes: dict[str, str] = field(default_factory=dict)
    steps: tuple[Sgd, ...] = ()
    flag: bool = False
    free: Any = None


def test_file_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('model = "resnet18"\nseeds = [0, 1]\n[threat]\nnorm = "linf"\neps = 1\n')
    run = build(Run, read_toml(file, ["threat.norm=l2", "limit=100", "seeds=[3]", "notes.by = 'me'"]))
    assert run == Run(model="resnet18", seeds=(3,), threat=Threat("l2", 1.0), limit=100, notes={"by": "me"})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"model": "x", "seed": [0]}, "seed: unknown key; did you mean 'seeds'?"),
        ({"model": "x", "zzz": 1}, "zzz: unknown key; known: fill, flag, free, limit, model, notes, optimizer, out, "
         "seeds, steps, threat"),
        ({"model": "x", "threat": {"norm": "l0", "eps": 1.0}},
         "threat.norm: expected one of 'linf', 'l2', 'l1'; got str 'l0'"),
        ({"model": "x", "threat": {"norm": "l2", "eps": "8/0"}},
         'threat.eps: expected a number or a fraction such as "8/255"; got \'8/0\''),
        ({"model": "x", "threat": {"norm": "l2", "eps": True}}, "threat.eps: expected float; got bool True"),
        ({"model": "x", "threat": {"norm": "l2", "eps": -1.0}},
         "threat: Threat: eps must be a positive number of pixels in [0, 1]; got -1.0."),
        ({"model": "x", "threat": {"norm": "l2"}}, "threat.eps: missing; it has no default"),
        ({"model": "x", "threat": "linf"}, "threat: expected Threat; got str 'linf'"),
        ({"model": "x", "limit": True}, "limit: expected int; got bool True"),
        ({"model": "x", "limit": 1.0}, "limit: expected int; got float 1.0"),
        ({"model": "x", "flag": 1}, "flag: expected bool; got int 1"),
        ({"model": "x", "seeds": [0, "1"]}, "seeds[1]: expected int; got str '1'"),
        ({"model": "x", "seeds": 3}, "seeds: expected tuple; got int 3"),
        ({"model": "x", "fill": "none"}, "fill: expected float or one of 'uniform'; got str 'none'"),
        ({"model": "x", "optimizer": {"lr": 0.1, "decay": 1}}, "optimizer: expected Sgd or Adam; got dict "
         "{'lr': 0.1, 'decay': 1}"),
        ({"model": "x", "optimizer": {"betas": [0.9]}}, "optimizer: expected Sgd or Adam; got dict {'betas': [0.9]}"),
        ({"model": "x", "steps": [{"lr": 1.0}, {}]}, "steps[1].lr: missing; it has no default"),
        ({"model": "x", "notes": {"a": 1}}, "notes.a: expected str; got int 1"),
        ({}, "model: missing; it has no default"),
        ({"model": 3}, "model: expected str; got int 3"),
    ],
)  # fmt: skip
def test_errors_name_the_key(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Run, data)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("data", "key", "want"),
    [
        ({"threat": {"norm": "linf", "eps": "8/255"}}, "threat", Threat("linf", 8 / 255)),
        ({"threat": {"norm": "l2", "eps": "0.5"}}, "threat", Threat("l2", 0.5)),
        ({"threat": {"norm": "l2", "eps": 1}}, "threat", Threat("l2", 1.0)),
        ({"fill": 0}, "fill", 0.0),
        ({"fill": "1/4"}, "fill", 0.25),
        ({"fill": "uniform"}, "fill", "uniform"),
        ({"limit": 3}, "limit", 3),
        ({"out": "runs/a"}, "out", Path("runs/a")),
        ({"optimizer": {"lr": 0.1, "momentum": 0.5}}, "optimizer", Sgd(lr=0.1, momentum=0.5)),
        ({"optimizer": {"lr": 0.1}}, "optimizer", Sgd(lr=0.1)),  # the first that fits
        ({"optimizer": {"betas": [0.8, 1]}}, "optimizer", Adam(betas=(0.8, 1.0))),
        ({"steps": [{"lr": "1/2"}]}, "steps", (Sgd(lr=0.5),)),
        ({"free": {"any": [1, "x"]}}, "free", {"any": [1, "x"]}),
    ],
)
def test_values_become_what_the_annotation_says(data: dict[str, Any], key: str, want: object) -> None:
    got = getattr(build(Run, {"model": "x", **data}), key)
    assert got == want and type(got) is type(want)


def test_an_error_below_a_key_starts_with_it() -> None:
    with pytest.raises(ConfigError, match=r"^recipe.threat.norm: expected one of"):
        build(Run, {"model": "x", "threat": {"norm": "l3", "eps": 1.0}}, at="recipe.")


class TestOverride:
    def test_values_are_toml_or_bare_strings(self) -> None:
        data: dict[str, Any] = {"a": {"b": 1}}
        for text in ("a.b=0.5", "a.c=true", "x.y.z=[1, 2]", "name=timm:resnet18", 'q="1"', "eps=8/255", "empty="):
            override(data, text)
        assert data == {
            "a": {"b": 0.5, "c": True}, "x": {"y": {"z": [1, 2]}}, "name": "timm:resnet18", "q": "1", "eps": "8/255",
            "empty": "",
        }  # fmt: skip

    def test_an_equals_sign_may_be_in_the_value(self) -> None:
        data: dict[str, Any] = {}
        override(data, "a=b=c")
        assert data == {"a": "b=c"}

    def test_what_cannot_be_set_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match=r"--set 'lr': expected key=value, as in --set train.epochs=10"):
            override({}, "lr")
        with pytest.raises(ConfigError, match=r"--set 'a.b.c=1': b is not a table"):
            override({"a": {"b": 1}}, "a.b.c=1")

    def test_a_value_cannot_smuggle_in_other_keys(self) -> None:
        data: dict[str, Any] = {}
        override(data, "a=1\nb = 2")
        assert "b" not in data


class TestFiles:
    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"no.toml: cannot read \(No such file or directory\)"):
            read_toml(tmp_path / "no.toml")
        with pytest.raises(ConfigError, match=r"cannot read \(Is a directory\)"):
            read_toml(tmp_path)

    @pytest.mark.parametrize("content", [b"a = ", b"[a\n", b"a = 1\na = 2", b"\xff\xfe", b"\x00", b"a = 1e"])
    def test_a_broken_file_says_where(self, tmp_path: Path, content: bytes) -> None:
        file = tmp_path / "bad.toml"
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad.toml: not TOML: "):
            read_toml(file)

    @settings(deadline=None, max_examples=50)
    @given(content=st.binary(max_size=40))
    def test_any_bytes_are_a_table_or_a_config_error(
        self, content: bytes, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        file = tmp_path_factory.mktemp("fuzz") / "x.toml"
        file.write_bytes(content)
        with contextlib.suppress(ConfigError):
            assert isinstance(read_toml(file), dict)

    def test_deep_nesting_is_a_config_error(self, tmp_path: Path) -> None:
        file = tmp_path / "deep.toml"
        file.write_text("a = " + "[" * 100_000)
        with pytest.raises(ConfigError, match="not TOML"):
            read_toml(file)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FINITE = st.floats(allow_nan=False)
VALUES = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), FINITE, TEXT)
TABLES = st.recursive(
    st.dictionaries(
        TEXT, st.one_of(VALUES, st.lists(VALUES, max_size=3), st.lists(st.lists(VALUES, max_size=2), max_size=2))
    ),
    lambda inner: st.dictionaries(TEXT, st.one_of(VALUES, inner, st.lists(inner, min_size=1, max_size=3)), max_size=4),
    max_leaves=6,
)


class TestDump:
    @settings(deadline=None, max_examples=150)
    @given(TABLES)
    def test_any_table_is_read_back(self, data: dict[str, Any]) -> None:
        assert tomllib.loads(dump(data)) == data

    @settings(deadline=None, max_examples=100)
    @given(
        model=TEXT,
        seeds=st.lists(st.integers(-(2**40), 2**40), max_size=4).map(tuple),
        eps=st.floats(min_value=1e-300, max_value=1e300),
        limit=st.none() | st.integers(0, 10**9),
        fill=st.just("uniform") | FINITE,
        notes=st.dictionaries(TEXT, TEXT, max_size=3),
        steps=st.lists(st.builds(Sgd, lr=FINITE, momentum=FINITE), max_size=3).map(tuple),
        optimizer=st.builds(Sgd, lr=FINITE, momentum=FINITE) | st.builds(Adam, betas=st.tuples(FINITE, FINITE)),
    )
    def test_any_dataclass_is_read_back(self, eps: float, **values: Any) -> None:
        run = Run(threat=Threat("l2", eps), **values)
        assert build(Run, tomllib.loads(dump(run))) == run

    def test_none_is_left_out_and_infinity_stays(self) -> None:
        assert dump({"a": None, "b": {"c": None}}) == "[b]\n"
        assert tomllib.loads(dump({"a": math.inf, "b": -math.inf})) == {"a": math.inf, "b": -math.inf}
        assert math.isnan(tomllib.loads(dump({"a": math.nan}))["a"])

    def test_paths_and_odd_keys(self) -> None:
        data: Mapping[str, Any] = {"out": Path("a b/c"), "": 1, "a.b": {'c"d': 2, "e\n": 3}, "ümlaut": "\x00\x7f\u2028"}
        want = {"out": "a b/c", "": 1, "a.b": {'c"d': 2, "e\n": 3}, "ümlaut": "\x00\x7f\u2028"}
        assert tomllib.loads(dump(data)) == want

    def test_reads_well(self) -> None:
        text = dump(Run(model="m", notes={"a": "b"}, steps=(Sgd(lr=0.1),)))
        assert text.startswith('model = "m"\nseeds = [0]\nfill = "uniform"\nflag = false\n\n[threat]\nnorm = "linf"\n')
        assert text.endswith('[notes]\na = "b"\n\n[[steps]]\nlr = 0.1\nmomentum = 0.9\n')
