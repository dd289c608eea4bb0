"""The public face is pinned, imports nothing heavy, and is what design and README promise."""

import subprocess
import sys

import pytest

import hardy

NAMES = [
    "ArrayData", "Batches", "HardyError", "Objective", "Recipe", "Result", "Threat", "__version__", "attach",
    "attachments", "attack", "capture", "compare", "diagnose", "evaluate", "load", "load_data", "load_model", "report",
    "save", "stages", "strip", "train", "treat",
]  # fmt: skip


def test_the_names_are_these() -> None:
    assert sorted(hardy.__all__) == NAMES
    assert set(NAMES) <= set(dir(hardy))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_leads_to_what_it_says(name: str) -> None:
    value = getattr(hardy, name)
    assert name in {"__version__", getattr(value, "__name__", "")}


def test_functions_are_not_hidden_by_the_packages_behind_them() -> None:
    code = (
        "import hardy.evaluation, hardy.training, hardy.reporting, hardy.topology, hardy.attacks, hardy\n"
        "assert all(callable(getattr(hardy, n)) for n in ('evaluate', 'train', 'report', 'stages', 'attack'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603


def test_packages_are_reachable_without_an_import() -> None:
    code = "import hardy; assert hardy.methods.LocalFeatureMasking and hardy.attacks.PGD"
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'hardy' has no attribute 'evalute'"):
        _ = hardy.evalute


@pytest.mark.parametrize(
    "code",
    [
        "import hardy",
        "import hardy; hardy.Threat('linf', 8 / 255)",
        "from typer.testing import CliRunner; from hardy.cli.main import app; CliRunner().invoke(app, ['--help'])",
    ],
)
def test_torch_is_not_imported_before_it_is_needed(code: str) -> None:
    check = f"{code}\nimport sys\nassert not {{'torch', 'jaxtyping', 'numpy', 'scipy'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", check], check=True)  # noqa: S603
