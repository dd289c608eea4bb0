"""The whole story in a minute: train plain and hardened nets on the embedded digits, evaluate them, write the page."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardy.data import load_data
from hardy.evaluation import AxisProgress, Budget, evaluate
from hardy.reporting import report
from hardy.results import Result
from hardy.safefile import check_writable
from hardy.threats import Threat
from hardy.training import DataRecipe, ModelRecipe, Progress, Recipe, Run, TrainRecipe, build_methods, train

__all__ = ["ARMS", "DemoProgress", "demo", "recipe"]

ARMS: Mapping[str, tuple[dict[str, Any], ...]] = {
    "plain": (),
    "lfm": ({"name": "lfm", "p": 0.5},),
    "defective": ({"name": "defective_conv", "keep": 0.5},),
    "spatial_dropout+erasing": ({"name": "spatial_dropout"}, {"name": "random_erasing"}),
}
THREAT = Threat("linf", 0.1)  # a tenth of the range of a pixel; digits have 17 gray levels
AXES_SHOWN = ("clean", "noise", "white_box", "eps_curve", "transfer", "worst_case", "texture")  # a minute in all
SIBLING, SOURCE = 1, 2  # seeds beside 0


@dataclass(frozen=True)
class DemoProgress:
    """How far the demo is.

    Attributes:
        what: What is going on, in words.
        done: Work done, in training steps or what takes as long.
        total: All work, likewise.
    """

    what: str
    done: float
    total: float


def recipe(arm: str, seed: int) -> Recipe:
    """Give the recipe of one arm of the demo."""
    return Recipe(
        seed=seed,
        model=ModelRecipe(name="cifar_resnet8"),
        data=DataRecipe(name="digits", augment=("crop",)),
        methods=ARMS[arm],
        train=TrainRecipe(epochs=15, batch_size=64, lr=0.1, warmup_epochs=1.0),
    )


def demo(out: str | Path, *, device: str = "auto", on_progress: Callable[[DemoProgress], None] | None = None) -> Path:
    """Train every arm and its sibling from paired seeds, evaluate, and write ``out/report.html``.

    What is finished is not done again, so an interrupted demo goes on where it was.

    Args:
        out: Folder to write: one run folder an arm, ``others/`` for the nets that only serve as sources.
        device: "auto", "cpu", "cuda".
        on_progress: Called often.

    Returns:
        The page.

    Raises:
        TrainingError: ``out`` holds runs of another version of the demo.
    """
    out = Path(out)
    check_writable(out / "report.html")
    work = _Work(on_progress)
    runs = {arm: work.train(arm, 0, out / arm, device) for arm in ARMS}
    siblings = {arm: work.train(arm, SIBLING, out / "others" / f"{arm}-seed{SIBLING}", device) for arm in ARMS}
    source = work.train("plain", SOURCE, out / "others" / f"plain-seed{SOURCE}", device)
    for arm, run in runs.items():
        work.evaluate(arm, run, siblings[arm], source)
    return report([out / arm for arm in ARMS], out / "report.html", title="Hardy demo: what four nets can stand")


class _Work:
    """Does the parts and adds up the progress."""

    EVALUATION = 300  # training steps that take about as long as one evaluation

    def __init__(self, on_progress: Callable[[DemoProgress], None] | None) -> None:
        self.on_progress, self.done = on_progress, 0.0
        self.total, self.furthest = 1.0, 0.0

    def train(self, arm: str, seed: int, folder: Path, device: str) -> Run:
        def tell(p: Progress) -> None:
            self.total = self._all(p.steps)
            self._tell(f"training {arm}, seed {seed}: epoch {p.epoch}/{p.epochs}", float(p.step))

        run = train(recipe(arm, seed), out=folder, device=device, resume=True, on_progress=tell)
        steps = int(run.history[-1]["step"])
        self.total, self.done = self._all(steps), self.done + steps
        return run

    def _all(self, steps: int) -> float:
        return float((2 * len(ARMS) + 1) * steps + len(ARMS) * self.EVALUATION)

    def evaluate(self, arm: str, run: Run, sibling: Run, source: Run) -> Result:
        images = load_data("digits", split="test")

        def tell(p: AxisProgress) -> None:
            share = p.attack.done / max(1, p.attack.total) if p.attack is not None else 0.0
            self._tell(f"evaluating {arm}: {p.axis}", self.EVALUATION * (p.done + share) / p.total)

        result = evaluate(
            run.model,
            images.images(),
            images.y,
            threat=THREAT,
            axes=AXES_SHOWN,
            suite="quick",
            sources=[(f"plain-seed{SOURCE}", source.model)],
            siblings=[(f"{arm}-seed{SIBLING}", sibling.model)],
            budget=Budget(grids=(2, 4)),
            model_name=arm,
            data_name="digits test",
            class_names=images.class_names,
            methods=tuple(map(repr, build_methods(run.recipe.methods))),
            command="hardy demo",
            on_progress=tell,
        )
        result.save(run.folder / "result.json")
        self.done += self.EVALUATION
        return result

    def _tell(self, what: str, part: float) -> None:
        self.furthest = max(self.furthest, self.done + part)  # an axis may run several attacks, each from its own zero
        if self.on_progress is not None:
            self.on_progress(DemoProgress(what, self.furthest, max(self.total, self.furthest)))
