"""A threat is checked once, at the door, and can be written as people write it."""

import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardy.errors import ConfigError, ParameterError
from hardy.threats import PRESETS, Threat, parse_budget, parse_threat


@pytest.mark.parametrize("eps", [0.0, -0.1, math.nan, math.inf])
def test_a_budget_is_positive_and_finite(eps: float) -> None:
    with pytest.raises(ParameterError, match="Threat: eps must be a positive number of pixels in"):
        Threat("linf", eps)


def test_values_of_the_wrong_kind_are_errors_too() -> None:
    # the type checker of the tests speaks first; users run without it
    with pytest.raises((ParameterError, TypeError)):
        Threat("l0", 0.1)  # type: ignore[arg-type]
    with pytest.raises((ParameterError, TypeError)):
        Threat("linf", "8/255")  # type: ignore[arg-type]


def test_a_whole_number_becomes_a_float() -> None:
    code = "from hardy.threats import Threat\nprint(Threat('l1', 12))\nprint(repr(Threat('l1', 12).eps))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert out.stdout.split("\n") == ["l1 12", "12.0", ""]


def test_is_a_value() -> None:
    assert Threat("linf", 8 / 255) == Threat("linf", 8 / 255) != Threat("l2", 8 / 255)
    assert len({Threat("linf", 0.1), Threat("linf", 0.1)}) == 1


@pytest.mark.parametrize(
    ("threat", "text"),
    [
        (Threat("linf", 8 / 255), "linf 8/255"),
        (Threat("linf", 1 / 255), "linf 1/255"),
        (Threat("linf", 0.03), "linf 0.03"),
        (Threat("linf", 0.5 / 255), "linf 0.001961"),
        (Threat("l2", 0.5), "l2 0.5"),
        (Threat("l2", 128 / 255), "l2 0.502"),
        (Threat("l1", 12.0), "l1 12"),
        (Threat("l1", 8 / 255), "l1 0.03137"),
    ],
)
def test_reads_well(threat: Threat, text: str) -> None:
    assert str(threat) == text


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("8/255", 8 / 255), (" 8 / 255 ", 8 / 255), ("0.03", 0.03), (".5", 0.5), ("3.", 3.0), ("1e-2", 0.01),
        ("2E3", 2000.0), ("1e+2", 100.0), (".5e1", 5.0), ("0.5/255", 0.5 / 255),
        (0.03, 0.03), (1, 1.0), (0, 0.0), ("0", 0.0),
    ],
)  # fmt: skip
def test_budgets_as_people_write_them(text: Any, want: float) -> None:
    got = parse_budget(float(text) if isinstance(text, int) else text)
    assert got == want and type(got) is float


@pytest.mark.parametrize(
    "text",
    ["", "eight", "8/0", "8/", "/255", "-1", "1/2/3", "8,5", "nan", "inf", "0x10", "1_000", "\u0663", "1e999", "1e+"],
)
def test_other_budgets_are_errors_that_show_them(text: str) -> None:
    with pytest.raises(ConfigError, match=r'expected a number or a fraction such as "8/255"; got') as caught:
        parse_budget(text)
    assert repr(text) in str(caught.value)


@given(st.text(max_size=12))
def test_any_text_is_a_finite_number_or_an_error(text: str) -> None:
    try:
        value = parse_budget(text)
    except ConfigError:
        return
    assert math.isfinite(value) and value >= 0


@given(st.floats(0, 1e6), st.integers(1, 1000))
def test_what_is_written_is_read(value: float, by: int) -> None:
    assert parse_budget(repr(value)) == value
    assert parse_budget(f"{by}/255") == by / 255


def test_threats_as_people_write_them() -> None:
    assert parse_threat("linf:8/255") == Threat("linf", 8 / 255)
    assert parse_threat("l2:0.5") == Threat("l2", 0.5)
    assert parse_threat("l1:12") == Threat("l1", 12.0)
    assert parse_threat("cifar10-linf") is PRESETS["cifar10-linf"]


def test_presets_are_the_leaderboards_of_robustbench() -> None:
    # https://robustbench.github.io: the eps of its model_info files, by folder
    board = {"cifar10/Linf": 8 / 255, "cifar10/L2": 0.5, "cifar100/Linf": 8 / 255, "imagenet/Linf": 4 / 255}
    want = {path.lower().replace("/", "-"): Threat(path.split("/")[1].lower(), eps) for path, eps in board.items()}  # type: ignore[arg-type]
    assert want | {"imagenet-linf-4": want["imagenet-linf"]} == PRESETS


def test_every_preset_is_read_by_its_name() -> None:
    assert all(parse_threat(name) is threat for name, threat in PRESETS.items())
    assert str(parse_threat("imagenet-linf")) == "linf 4/255"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cifar10-lin", r"threat 'cifar10-lin': write linf:8/255, or a preset; did you mean 'cifar10-linf'\?"),
        ("linf", r"threat 'linf': write linf:8/255, or a preset"),
        ("linf:eight", r"expected a number or a fraction .* got 'eight'"),
        ("linf:0", r"threat 'linf:0': Threat: eps must be a positive number"),
    ],
)
def test_other_threats_are_errors_that_say_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_threat(text)


def test_an_unknown_norm_is_named() -> None:
    code = "from hardy.threats import parse_threat\ntry: parse_threat('l0:3')\n"
    code += "except Exception as e: print(type(e).__name__, e)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert out.stdout.strip() == "ConfigError threat 'l0:3': Threat: norm must be one of linf, l2, l1; got 'l0'."


def test_imports_nothing_heavy() -> None:
    code = "import sys, hardy.threats; print(sorted({'torch', 'jaxtyping', 'numpy', 'scipy'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert out.stdout.strip() == "[]"
