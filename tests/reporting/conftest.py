"""Made-up but valid runs: what the evaluator would write, in a second."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from markupsafe import Markup

from hardy.results import Axis, Check, Point, Result, Score, Versus, mean_score, point
from hardy.threats import Threat

N = 360
LABELS = np.arange(N) % 10
DIGITS = tuple(str(k) for k in range(10))
SIGMAS, BUDGETS, GRIDS = (0.05, 0.1, 0.2, 0.4), (1, 2, 4, 8, 16, 32), (1.0, 2.0, 4.0)
QUERIES = (0, 10, 30, 100, 300, 1000)
EPS = 8 / 255
SOURCE = {"attack": "pgd", "steps": 20, "restarts": 1, "source_weights": "b0" * 8, "conditional_n": 214}
SUITE = {  # label: description, and what is left after it
    "apgd-ce": ("APGD(steps=100, restarts=1, objective='ce', targeted=False, eot=1)", 0.05),
    "apgd-t": ("APGD(steps=100, restarts=9, objective='dlr', targeted=True, eot=1)", 0.008),
    "fab-t": ("FAB(steps=100, restarts=9)", 0.004),
    "square": ("Square(queries=5000, restarts=1)", 0.004),
}


def outcomes(accuracy: float, n: int = N, *, noise: float = 0.03) -> npt.NDArray[np.bool_]:
    """Right on the images that are easiest, in one fixed order of difficulty with a little noise."""
    ease = np.random.default_rng(7).permutation(n) / n
    shift = np.random.default_rng(round(accuracy * 1e6)).normal(0, noise, n)
    right = np.zeros(n, dtype=np.bool_)
    right[np.argsort(ease + shift)[: round(accuracy * n)]] = True
    return right


def fingerprint(name: str) -> str:
    """Stand for the weights of the net of that name."""
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


class Axes:
    """Makes points and keeps the outcomes behind them."""

    def __init__(self, n: int) -> None:
        self.n, self.kept = n, dict[str, npt.NDArray[np.bool_]]()
        self.arrays = dict[str, npt.NDArray[Any]]()

    def add(self, axis: str, label: str, accuracy: float, **facts: Any) -> Point:
        """Make a point of this accuracy."""
        right = self.kept[f"{axis}/{label}"] = outcomes(min(max(accuracy, 0.0), 1.0), self.n)
        return point(label, right, **facts)

    def white_box(self, clean: float) -> Axis:
        """Attack with the standard suite: every attack gets what the one before left."""
        points, before = [], self.kept["clean/clean"]
        for label, (attack, left) in SUITE.items():
            right = self.kept[f"white_box/{label}"] = outcomes(left, self.n, noise=0.0)
            details = {"attack": attack, "norm": "linf", "attacked": int(before.sum())}
            details["broke"] = int(before.sum()) - int(right.sum())
            passes = {"forward": 36 * self.n, "backward": 0 if label == "square" else 35 * self.n}
            points.append(point(label, right, level=EPS, series="suite", passes=passes, details=details))
            before = right
        self.kept["white_box/standard"] = before
        whole = {"suite": "standard", "norm": "linf", "attacks": 4, "median_margin_of_robust": 0.2}
        points.append(point("standard", before, level=EPS, series="suite", details=whole))
        noise = {"attack": "noise", "norm": "linf", "draws": 1}
        points.append(self.add("white_box", "noise", clean - 0.01, level=EPS, series="noise control",
                               passes={"forward": self.n}, details=noise))  # fmt: skip
        return Axis(name="white_box", question="How often is it right against an attacker who knows it?",
                    headline="standard", points=tuple(points))  # fmt: skip

    def over_eps(self, clean: float, gain: float) -> tuple[Axis, Axis]:
        """Measure accuracy over eps, and the smallest changes."""
        axes = []
        for name, attack in (("eps_curve", "APGD(steps=20)"), ("minimal_norm", "fmn, fab")):
            points = []
            for e in BUDGETS:
                details = {"attack": "suite standard" if name == "eps_curve" and e == 8 else attack, "steps": 20}
                details |= {"median_distance": 3.2 / 255} if name == "minimal_norm" and e == 8 else {}
                accuracy = clean * 0.5 ** (e / 2) + (gain if e < 4 else 0)
                made = self.add(name, f"linf {e}/255", accuracy, level=e / 255, details=details,
                                series="attack" if name == "eps_curve" else "")  # fmt: skip
                points.append(made)
            axes.append(Axis(name=name, question="Where does it break?", headline="linf 8/255", level_name="eps",
                             points=tuple(points)))  # fmt: skip
        return axes[0], axes[1]

    def transfer(self, gain: float, twin: str, base: str) -> Axis:
        """Attack from another net, the twin of another seed, and the base if there is one."""
        made = [
            self.add("transfer", "plain-b", 0.5 + gain, level=EPS, series="independent",
                     details={**SOURCE, "source": "plain-b", "conditional_accuracy": 0.52}),
            self.add("transfer", twin, 0.45, level=EPS, series="gray-box",
                     details={**SOURCE, "source": twin, "source_weights": fingerprint(twin),
                              "conditional_accuracy": 0.57}),
        ]  # fmt: skip
        if base:
            details = {**SOURCE, "source": "base", "source_weights": fingerprint(f"net with {base}")}
            made.append(self.add("transfer", "base", 0.62, level=EPS, series="base", details=details))
        return Axis(name="transfer", question="What is left against attacks made on other nets?", headline="plain-b",
                    points=tuple(made))  # fmt: skip

    def query(self, clean: float, gain: float) -> Axis:
        """Attack with queries alone."""
        made = []
        for series, rate, attack in (("scores", 0.2, "Square(queries=999)"), ("labels only", 0.1, "HopSkipJump()")):
            for q in QUERIES:
                left = clean - (rate * np.log10(max(q, 1)) if q else 0) + (gain if q >= 300 else 0)
                details = {"attack": attack} | ({"median_queries": 570.0} if q == 1000 and series == "scores" else {})
                label = f"{series}, {q} queries"
                made.append(self.add("query", label, left, level=float(q), series=series, details=details))
        return Axis(name="query", question="How many queries does an attacker need?", headline="scores, 1000 queries",
                    points=tuple(made), level_name="queries")  # fmt: skip

    def worst_case(self, heads: dict[str, str]) -> Axis:
        """Join per image what these axes found, the headline of each; white-box broke the most."""
        parts = {name: self.kept[f"{name}/{label}"] for name, label in heads.items()}
        worst = self.kept["worst_case/worst case"] = self.kept["white_box/standard"].copy()
        points = []
        for name, right in parts.items():
            others = np.all([r for n, r in parts.items() if n != name], axis=0)
            broken = self.kept["clean/clean"] & ~right
            details = {"broke": int(broken.sum()), "broke_alone": int((broken & others).sum())}
            self.kept[f"worst_case/{name}"] = right
            points.append(point(name, right, level=EPS, series="one axis", details=details))
        whole = point("worst case", worst, level=EPS, series="worst case", details={"axes": ", ".join(heads)})
        return Axis(name="worst_case", question="How often does nothing that was tried fool it?", headline="worst case",
                    points=(whole, *points))  # fmt: skip

    def beyond(self, clean: float, gain: float) -> tuple[Axis, ...]:
        """Measure what is no attack: many corruptions, a table of weights, errors of confidence, a radius."""
        families = {"fog": 0.06, "snow": 0.1, "frost": 0.12, "blur": 0.09, "jpeg": 0.03}
        corrupted = tuple(
            self.add("corruptions", f"{name} {s}", clean - drop * s + gain / 3, level=float(s), series=name)
            for name, drop in families.items() for s in (1, 3, 5)
        )  # fmt: skip
        means = np.mean([self.kept[f"corruptions/{p.label}"] for p in corrupted], axis=0).astype(np.float32)
        confident = np.clip(outcomes(clean, self.n) - 0.1, 0, 1).astype(np.float32)
        brier = ((1 - confident) ** 2 - gain / 10).astype(np.float32)
        self.arrays = {"corruptions/mean accuracy": means, "calibration/Brier score": brier}
        weighed = tuple(
            self.add("weights", f"eps {e:g}, weights {r:g}", clean - 9 * e - 5 * r, level=r,
                     series=f"worst case, eps {e:g}",
                     details={"eps": e, "radius": r})
            for e in (0.0, EPS) for r in (0.0, 0.01, 0.03)
        )  # fmt: skip
        weighed += tuple(
            self.add("weights", f"random {r:g}", clean, level=r, series="random direction",
                     details={"eps": 0.0, "radius": r})
            for r in (0.01, 0.03)
        )  # fmt: skip
        weighed += tuple(
            self.add("weights", f"{name} {v:g}", clean, level=v, series=name)
            for name, values in {"bits": (8.0, 6.0, 4.0), "flips": (0.1, 0.2), "zeros": (0.5, 0.7)}.items()
            for v in values
        )  # fmt: skip
        bins = tuple(
            Score(label=f"bin {i}", value=0.1 + 0.18 * i, kind="description", n=70, level=0.1 + 0.2 * i,
                  series="reliability")
            for i in range(5)
        )  # fmt: skip
        return (
            Axis(name="corruptions", question="How often is it right on corrupted images?", headline="mean accuracy",
                 points=corrupted, level_name="severity",
                 scores=(mean_score("mean accuracy", means, kind="accuracy"),
                         Score(label="mCE", value=0.91, kind="error", n=self.n))),
            Axis(name="weights", question="How much may its weights change?", headline="eps 0, weights 0.01",
                 points=weighed, level_name="relative radius"),
            Axis(name="calibration", question="Does its confidence mean what it says?", headline="Brier score",
                 level_name="confidence", scores=(mean_score("Brier score", brier, kind="error"), *bins)),
            Axis(name="certified", question="How far is it proved right?", headline="radius",
                 scores=(Score(label="radius", value=0.31, kind="quality", n=self.n, unit="pixels (l2)"),)),
        )  # fmt: skip


def against(axis: str, accuracy: float, base: float, verdict: Any) -> Versus:
    """Make a comparison with the base."""
    gap = accuracy - base
    return Versus(axis=axis, base="base", accuracy=accuracy, base_accuracy=base, difference=gap, low=gap - 0.02,
                  high=gap + 0.02, p=0.5 if verdict == "unclear" else 0.0004, verdict=verdict)  # fmt: skip


def make_result(
    gain: float = 0.0,
    *,
    clean: float = 0.97,
    n: int = N,
    twin: str = "twin",
    base: str = "",
    beyond: bool = False,
    **changes: Any,
) -> Result:
    """Make a result on many axes; ``gain`` is added where clean-trained methods help, ``beyond`` adds further ones."""
    made = Axes(n)
    axes = (
        Axis(name="clean", question="How many untouched images are classified as labelled?", headline="clean",
             points=(made.add("clean", "clean", clean),)),
        Axis(name="noise", question="How fast does Gaussian noise break it?", headline="sigma 0.2", level_name="sigma",
             points=tuple(made.add("noise", f"sigma {s}", clean - 0.9 * s + gain / 2, level=s, series="gaussian")
                          for s in SIGMAS)),
        made.white_box(clean),
        *made.over_eps(clean, gain),
        made.transfer(gain, twin, base),
        made.query(clean, gain),
        made.worst_case({"white_box": "standard", "eps_curve": "linf 8/255", "transfer": "plain-b",
                         "query": "scores, 1000 queries"}),
        Axis(name="texture", question="Does it need the shape?", headline="grid 2", level_name="patches per side",
             points=tuple(made.add("texture", f"grid {g:g}", clean / g, level=g) for g in GRIDS)),
    )  # fmt: skip
    axes += made.beyond(clean, gain) if beyond else ()
    rng = np.random.default_rng(1)
    x = rng.random((6, 1, 8, 8)).astype(np.float32)
    arrays = {
        "labels": LABELS[:n].copy(),
        "predictions": LABELS[:n].copy(),
        **made.arrays,
        "images": np.frombuffer(hashlib.blake2b(bytes(n), digest_size=16).digest(), np.uint8),
        "model_weights": np.frombuffer(bytes.fromhex(fingerprint(f"net with {twin}")), np.uint8),
        "white_box/broken_by": np.zeros(n, np.int64),
        "white_box/margin": np.zeros(n, np.float32),
        "examples/eps": np.array([1, 1, 2, 4, 8, np.inf], np.float32) / 255,
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
    versus = (
        against("clean", clean, 0.97, "worse" if clean < 0.95 else "unclear"),
        against("white_box", 0.004, 0.004, "unclear"),
        against("worst_case", 0.004, 0.004, "unclear"),
    ) if base else ()  # fmt: skip
    fields: dict[str, Any] = {
        "model": "small net", "num_classes": 10, "class_names": DIGITS, "data": "digits:test", "n": n,
        "threat": Threat("linf", 8 / 255), "seed": 0, "axes": axes, "checks": checks, "methods": (),
        "command": "hardy evaluate runs/x --data digits --seed 0", "environment": {"torch": "2.13.0", "device": "cpu"},
        "seconds": 12.5, "versus": versus, "outcomes_by_point": made.kept, "arrays": arrays,
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
    passes = {"forward_passes": 88.0, "backward_passes": 80.0}
    defective = {"gain": 0.18, "clean": 0.93, "methods": ("DefectiveConv(keep=0.5, where='bottom')",)}
    defective |= {"training_passes": passes}
    lfm = {"gain": 0.08, "methods": ("LocalFeatureMasking(p=0.5)",)}
    nothing = {"gain": -0.001, "clean": 0.969, "methods": ("SpatialDropout(p=0.1)", "RandomErasing()")}
    arms = {"lfm": (lfm, 10.4), "defective": (defective, 12.2), "dropout_erasing": (nothing, 10.0)}
    folders = [write_run(root / "plain", make_result(twin="plain-c", beyond=True))]
    for name, (made, seconds) in arms.items():
        folders.append(
            write_run(root / name, make_result(twin=f"{name}-b", base="plain-c", beyond=True, **made), seconds=seconds)
        )
    return folders


def remeasured(result: Result, found: Mapping[str, npt.NDArray[np.bool_]]) -> Result:
    """Give points, by axis and label, other outcomes."""
    axes = []
    for axis in result.axes:
        points = []
        for p in axis.points:
            right = found.get(f"{axis.name}/{p.label}")
            numbers = {} if right is None else {k: getattr(point("x", right), k) for k in ("accuracy", "low", "high")}
            points.append(replace(p, **numbers))
        axes.append(replace(axis, points=tuple(points)))
    return replace(result, axes=tuple(axes), outcomes_by_point={**result.outcomes_by_point, **found})


def without(result: Result, *names: str) -> Result:
    """Leave axes out."""
    return replace(result, axes=tuple(axis for axis in result.axes if axis.name not in names))


@pytest.fixture(name="remeasured", scope="session")
def remeasured_fixture() -> Callable[..., Result]:
    return remeasured


@pytest.fixture(name="without", scope="session")
def without_fixture() -> Callable[..., Result]:
    return without


@pytest.fixture(name="make_result", scope="session")
def make_result_fixture() -> Callable[..., Result]:
    return make_result


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing out, which takes most of the time of a page."""
    for place in ("curves.line_chart", "score_curves.line_chart", "profile.dot_chart"):
        monkeypatch.setattr(f"hardy.reporting.{place}", lambda *_, **__: Markup())
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
