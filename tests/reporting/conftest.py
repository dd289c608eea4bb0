"""Made-up but valid runs: what the evaluator would write, in a second."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from markupsafe import Markup

from hardy.results import Axis, Check, Point, Result, point
from hardy.threats import Threat

N = 360
LABELS = np.arange(N) % 10
DIGITS = tuple(str(k) for k in range(10))
SIGMAS, BUDGETS, GRIDS = (0.05, 0.1, 0.2, 0.4), (1, 2, 4, 8, 16, 32), (1.0, 2.0, 4.0)
SOURCE = {"attack": "pgd", "steps": 20, "restarts": 1, "source_weights": "b0" * 8}


def outcomes(accuracy: float, n: int = N) -> npt.NDArray[np.bool_]:
    """Right on the images that are easiest, in one fixed order of difficulty with a little noise."""
    ease = np.random.default_rng(7).permutation(n) / n
    noise = np.random.default_rng(round(accuracy * 1e6)).normal(0, 0.03, n)
    right = np.zeros(n, dtype=np.bool_)
    right[np.argsort(ease + noise)[: round(accuracy * n)]] = True
    return right


def fingerprint(name: str) -> str:
    """Stand for the weights of the net of that name."""
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


def make_result(gain: float = 0.0, *, clean: float = 0.97, n: int = N, twin: str = "twin", **changes: Any) -> Result:
    """Make a result on every axis that exists; ``gain`` is added where clean-trained methods help."""
    kept: dict[str, npt.NDArray[np.bool_]] = {}

    def add(axis: str, label: str, accuracy: float, **facts: Any) -> Point:
        kept[f"{axis}/{label}"] = outcomes(min(max(accuracy, 0.0), 1.0), n)
        return point(label, kept[f"{axis}/{label}"], **facts)

    axes = (
        Axis(name="clean", question="How many untouched images are classified as labelled?", headline="clean",
             points=(add("clean", "clean", clean),)),
        Axis(name="noise", question="How fast does Gaussian noise break it?", headline="sigma 0.2", level_name="sigma",
             points=tuple(add("noise", f"sigma {s}", clean - 0.9 * s + gain / 2, level=s) for s in SIGMAS)),
        Axis(name="white_box", question="What is left against an attacker who knows the net?", headline="pgd",
             points=(
                 add("white_box", "pgd", 0.004, level=8 / 255, series="pgd",
                     passes={"forward": 14400, "backward": 14040},
                     details={"attack": "pgd", "steps": 40, "restarts": 2}),
                 add("white_box", "random noise", clean - 0.01, level=8 / 255, series="noise control",
                     details={"draws": 3}),
             )),
        Axis(name="eps_curve", question="Where does it break?", headline="eps 8/255", level_name="eps",
             points=tuple(
                 add("eps_curve", f"eps {e}/255", clean * 0.5 ** (e / 2) + (gain if e < 4 else 0), level=e / 255,
                     details={"attack": "pgd", "steps": 20}) for e in BUDGETS)),
        Axis(name="transfer", question="What is left against attacks made on other nets?", headline="from plain-b",
             points=(
                 add("transfer", "from plain-b", 0.5 + gain, level=8 / 255, series="independent",
                     details={**SOURCE, "source": "plain-b", "conditional_accuracy": 0.52}),
                 add("transfer", f"from {twin}", 0.45, level=8 / 255, series="gray-box",
                     details={**SOURCE, "source": twin, "source_weights": fingerprint(twin),
                              "conditional_accuracy": 0.57}),
             )),
        Axis(name="texture", question="Does it need the shape?", headline="grid 2", level_name="patches per side",
             points=tuple(add("texture", f"grid {g:g}", clean / g, level=g) for g in GRIDS)),
    )  # fmt: skip
    rng = np.random.default_rng(1)
    x = rng.random((6, 1, 8, 8)).astype(np.float32)
    arrays = {
        "labels": LABELS[:n].copy(),
        "predictions": LABELS[:n].copy(),
        "images": np.frombuffer(hashlib.blake2b(bytes(n), digest_size=16).digest(), np.uint8),
        "model_weights": np.frombuffer(bytes.fromhex(fingerprint(f"net with {twin}")), np.uint8),
        "examples/x": x,
        "examples/x_adv": np.clip(x + (8 / 255) * rng.choice([-1, 1], x.shape), 0, 1).astype(np.float32),
        "examples/label": LABELS[:6].copy(),
        "examples/prediction": LABELS[:6].copy(),
        "examples/prediction_adv": (LABELS[:6] + 3) % 10,
    }
    checks = (
        Check(code="eval_mode", status="pass", evidence="The model is in eval mode."),
        Check(code="zero_gradient", status="warn", evidence="12 of 360 gradients are zero.",
              remedy="Attack the logits.", anchor="zero-gradient"),
        Check(code="eot", status="not_run", evidence="The net is not random."),
    )  # fmt: skip
    fields: dict[str, Any] = {
        "model": "small net", "num_classes": 10, "class_names": DIGITS, "data": "digits:test", "n": n,
        "threat": Threat("linf", 8 / 255), "seed": 0, "axes": axes, "checks": checks, "methods": (),
        "command": "hardy evaluate runs/x --data digits --seed 0", "environment": {"torch": "2.13.0", "device": "cpu"},
        "seconds": 12.5, "outcomes_by_point": kept, "arrays": arrays,
    }  # fmt: skip
    return Result(**{**fields, **changes})


def write_run(folder: Path, result: Result, *, seed: int = 0, epochs: int = 8, seconds: float = 10.0) -> Path:
    """Write a run folder; no epochs, no metrics."""
    result.save(folder / "result.json")
    (folder / "recipe.toml").write_text(
        f'seed = {seed}\nmodel = "small net"\n\n[train]\nepochs = {epochs}\n', encoding="utf-8"
    )
    (folder / "env.json").write_text(json.dumps({"python": "3.11", "torch": "2.13.0"}), encoding="utf-8")
    rows: list[Mapping[str, float]] = [
        {"epoch": e, "step": 10 * e, "lr": 0.1, "task": 2 / (e + 1), "consistency": 0.3 / (e + 1),
         "train_accuracy": 1 - 0.8 / (e + 1), "val_accuracy": 1 - 0.9 / (e + 1), "seconds": seconds}
        for e in range(1, epochs + 1)
    ]  # fmt: skip
    if rows:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def write_comparison(root: Path) -> list[Path]:
    """Write a baseline and three methods from one seed: a gain, a gain that costs, and nothing."""
    defective = {"gain": 0.18, "clean": 0.93, "methods": ("DefectiveConv(keep=0.5, where='bottom')",)}
    return [
        write_run(root / "plain", make_result(twin="plain-c")),
        write_run(root / "lfm", make_result(0.08, methods=("LocalFeatureMasking(p=0.5)",), twin="lfm-b"), seconds=10.4),
        write_run(root / "defective", make_result(twin="defective-b", **defective), seconds=12.2),
        write_run(
            root / "dropout_erasing",
            make_result(-0.001, clean=0.969, methods=("SpatialDropout(p=0.1)", "RandomErasing()"), twin="de-b"),
        ),
    ]


@pytest.fixture(name="make_result", scope="session")
def make_result_fixture() -> Callable[..., Result]:
    return make_result


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing out, which takes most of the time of a page."""
    monkeypatch.setattr("hardy.reporting.curves.line_chart", lambda *_, **__: Markup())
    monkeypatch.setattr("hardy.reporting.build.swatch", lambda *_, **__: Markup())


@pytest.fixture(name="write_run", scope="session")
def write_run_fixture() -> Callable[..., Path]:
    return write_run


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four run folders, the baseline first."""
    return write_comparison(tmp_path_factory.mktemp("runs"))


@pytest.fixture(name="outcomes", scope="session")
def outcomes_fixture() -> Callable[[float], npt.NDArray[np.bool_]]:
    return outcomes
