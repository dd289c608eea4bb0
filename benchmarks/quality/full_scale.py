"""Which method for which threat? The evidence grids on CIFAR-10, as much of them as the minutes allow.

Questions of ``--grid features``: do the ordering claims of the random-mask text hold (bottom beats top; transfer
robustness rises and clean accuracy falls as fewer neurons are kept; one mask for all channels against one for each)?
Which knobs of Local Feature Masking matter (gate, channels, fill, position, box or stripe), and does it beat dropout,
DropBlock, Cutout, random erasing, mixup and label smoothing at equal cost? Of ``--grid patterns``: what do the parts of
FPCC buy alone, in pairs and together, is there gradient masking, and do they beat adversarial training of equal cost?

Rule, written before the runs: a difference counts where the 95 % t-interval over paired seeds excludes 0. Three seeds
allow a look, five a claim. The last epoch is evaluated; nothing is selected on test images. A claim (arms.py) holds if
its difference counts in the direction claimed, by more than one image, is reversed if it counts in the other, else it
is open; where a check failed, what attacks say is void. Of 20 claims one looks settled by chance.

    python benchmarks/quality/full_scale.py --minutes 60 --data DIR            (small grid on a CPU, full on a GPU)
    python benchmarks/quality/full_scale.py --minutes 9 --data DIR --scale gpu --work /tmp/nets --out results

``DIR`` holds ``cifar10.npz`` or torchvision's layout; no network is needed. Nets lie in ``--work``; one small JSON file
per net and the summary in ``--out``. Call it again with the same folders to go on: trainings resume from their last
epoch, measured nets are skipped, what there was no time for is listed as not run. The last line of stdout is JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from arms import GRIDS, Arm, Grid, Table
from small_scale import interval

import hardy
from hardy.attacks import PGD
from hardy.data import load_data
from hardy.environment import environment
from hardy.errors import ConfigError
from hardy.evaluation import Budget
from hardy.models.ensemble import Ensemble
from hardy.results import Result
from hardy.safefile import write_text
from hardy.threats import Threat
from hardy.training import DataRecipe, ModelRecipe, Recipe, RunFolder, TrainRecipe, train
from hardy.training.recipe import build_methods, method_table

GOAL = 0.94  # validation accuracy whose time is taken
TEST = 10_000  # test images of CIFAR-10
FEW = 3  # pairs of seeds below which nothing is judged
ATTACKED = ("white_box", "eps_curve", "strong", "transfer")  # numbers that a failed check voids


@dataclass(frozen=True)
class Scale:
    """The size of everything."""

    net: str
    source: str
    images: int | None
    epochs: int
    val_fraction: float
    schedule: str
    warmup_epochs: float
    precision: str
    compile: bool
    test_images: int
    strong_images: int
    severities: tuple[int, ...]
    workers: int


SCALES = {
    "cpu": Scale(
        "cifar_resnet20", "cifar_resnet20", 10_000, 8, 0.01, "cosine", 1.0, "bf16-mixed", False, 256, 64, (3,), 2
    ),
    "gpu": Scale(
        *("cifar_resnet18", "cifar_densenet121", None, 30, 0.05, "one_cycle", 0.0),
        *("bf16-mixed", True, 1000, 500, (1, 2, 3, 4, 5), 1),
    ),
}


class OutOfTimeError(Exception):
    """The minutes are over; what was begun goes on next time."""


@dataclass(frozen=True)
class Task:
    """What every cell needs to know."""

    question: str
    scale: Scale
    data: str
    work: Path
    out: Path
    device: str
    seeds: int
    until: float  # of time.time()

    @property
    def grid(self) -> Grid:
        """The arms and the claims."""
        return GRIDS[self.question]

    def asked(self) -> Table:
        """Say what decides the numbers of a net beside its weights."""
        kept = {"test_images": self.scale.test_images, "severities": list(self.scale.severities)}
        strong = {"strong_images": self.scale.strong_images} if self.grid.strong else {}
        return {"grid": self.question, "seeds": self.seeds, **kept, **strong}

    def images(self, name: str) -> int:
        """Say of how many images a number is the share."""
        scale = self.scale
        return TEST if name == "clean/all" else scale.strong_images if name[:7] == "strong/" else scale.test_images

    def watch(self, *_: object) -> None:
        """Stop when the minutes are over."""
        if time.time() > self.until:
            raise OutOfTimeError

    def folder(self, arm: str, seed: int) -> Path:
        """Say where a net lies."""
        return self.work / f"{arm.replace(' ', '-')}-seed{seed}"

    def record(self, arm: str, seed: int | str) -> Path:
        """Say where the numbers of a net lie."""
        return self.out / "cells" / f"{arm.replace(' ', '-')}-{seed}.json"

    def net(self, arm: str, seed: int) -> torch.nn.Module:
        """Load a trained net."""
        return hardy.load(self.folder(arm, seed) / "model.safetensors").to(self.device)


def recipe(arm: str, seed: int, task: Task) -> Recipe:
    """Describe a training; the arm "source" is the plain net that transferred images are made on."""
    s, row = task.scale, task.grid.arms.get(arm, Arm())
    return Recipe(
        seed=seed,
        model=ModelRecipe(name=s.source if arm == "source" else s.net, args=dict(row.net or {})),
        data=DataRecipe(name=task.data, limit=s.images, val_fraction=s.val_fraction),
        methods=tuple(map(method_table, build_methods(row.methods))),  # with all defaults, as runs keep them
        train=TrainRecipe(
            epochs=max(1, round(s.epochs * row.epochs)),
            schedule=s.schedule,  # type: ignore[arg-type]
            warmup_epochs=s.warmup_epochs * row.epochs,
            precision=s.precision,  # type: ignore[arg-type]
            channels_last=True,
            compile=s.compile,
        ),
    )


def fit(arm: str, seed: int, task: Task) -> bool:
    """Train one net, as far as the time goes; say whether it is done."""
    folder, wanted = task.folder(arm, seed), recipe(arm, seed, task)
    if (folder / "model.safetensors").exists():
        if not RunFolder(folder).holds(wanted):
            raise ConfigError(f"{folder}: was trained by another recipe. Take another --work.")
        return True
    try:
        task.watch()
        run = train(wanted, out=folder, resume=True, device=task.device, on_progress=task.watch)
    except OutOfTimeError:
        return False
    said = f"{arm} {seed}: validation {run.history[-1]['val_accuracy']:.3f}, {run.seconds:.0f} s of training"
    print(said, file=sys.stderr, flush=True)
    return True


def evaluate(
    task: Task, name: str, net: torch.nn.Module, *, seed: int, siblings: list[tuple[str, Any]], journal: Path
) -> Result:
    """Measure clean, noise, corruptions, texture, white-box at several budgets, transfer and gray-box."""
    images = load_data(task.data, split="test", limit=task.scale.test_images)
    return hardy.evaluate(
        net,
        images.images().to(task.device),
        images.y.to(task.device),
        threat=Threat("linf", 8 / 255),
        axes=["clean", "calibration", "noise", "corruptions", "texture", "white_box", "eps_curve", "transfer"],
        suite=[PGD(steps=20)],
        sources=[("source", task.net("source", task.seeds))],
        siblings=siblings,
        rows=images.index.to(task.device),
        seed=seed,
        batch_size=256,
        budget=Budget(
            sigmas=(0.05, 0.1, 0.2),
            grids=(2, 4),
            cutoffs=(0.3,),
            transfer_eps=(16 / 255,),
            transfer_steps=20,
            severities=task.scale.severities,
        ),
        journal=journal,
        model_name=name,
        class_names=images.class_names,
        command="python benchmarks/quality/full_scale.py",
        on_progress=task.watch,
    )


def strong(net: torch.nn.Module, *, seed: int, task: Task, journal: Path) -> tuple[dict[str, float], Table]:
    """Give accuracies under the standard suite and under PGD-30 from the image itself, and what all checks say."""
    images = load_data(task.data, split="test", limit=task.scale.strong_images)
    x, y = images.images().to(task.device), images.y.to(task.device)
    threat = Threat("linf", 8 / 255)
    result = hardy.evaluate(
        net,
        x,
        y,
        threat=threat,
        axes=["clean", "white_box"],
        suite="standard",
        checks="full",
        rows=images.index.to(task.device),
        seed=seed,
        batch_size=256,
        journal=journal,
        on_progress=task.watch,
    )
    steps = PGD(steps=30, step_size=2 / 255, random_start=False)
    found = hardy.attack(net, x, y, steps, threat=threat, seed=seed, batch_size=256)
    points = {
        "strong/clean": result.accuracy("clean"),
        "strong/standard": result.accuracy("white_box"),
        "strong/PGD-30 without random start": 1 - float(found.success.float().mean()),
    }
    return points, {c.code: c.status for c in result.checks if c.status not in {"pass", "not_run"}}


def numbers(result: Result) -> dict[str, float]:
    """Give every accuracy and score of a result, by axis and label."""
    found: dict[str, float] = {}
    for axis in result.axes:
        found |= {f"{axis.name}/{p.label}": p.accuracy for p in axis.points}
        found |= {f"{axis.name}/{s.label}": s.value for s in axis.scores if s.level is None}
    return found


@torch.no_grad()
def clean(net: torch.nn.Module, task: Task) -> float:
    """Give the accuracy on all test images."""
    data = load_data(task.data, split="test")
    right = [(net(x.to(task.device)).argmax(1).cpu() == y).sum() for x, y in data.batches(500)]
    return int(torch.stack(right).sum()) / len(data)


def measure(arm: str, seed: int, task: Task) -> bool:
    """Evaluate one net and write its record; say whether it is done."""
    path, question = task.record(arm, seed), task.asked()
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")).get("question") != question:
            raise ConfigError(f"{path}: was measured with other settings. Take another --out.")
        return True
    other = (seed + 1) % task.seeds
    needed = [task.folder(*cell) / "model.safetensors" for cell in [(arm, seed), (arm, other), ("source", task.seeds)]]
    if not all(file.exists() for file in needed):
        return False
    try:
        task.watch()
        net = task.net(arm, seed)
        siblings = [("gray-box", task.net(arm, other))] if task.seeds > 1 else []
        result = evaluate(task, arm, net, seed=seed, siblings=siblings, journal=task.folder(arm, seed) / "journal")
        more, found = (
            strong(net, seed=seed, task=task, journal=task.folder(arm, seed) / "journal")
            if task.grid.strong
            else ({}, {})
        )
    except OutOfTimeError:
        return False
    rows = RunFolder(task.folder(arm, seed)).rows()
    document = {
        "arm": arm,
        "seed": seed,
        "question": question,
        "points": {"clean/all": clean(net, task), **numbers(result), **more},
        "checks": {c.code: c.status for c in result.checks if c.status not in {"pass", "not_run"}}
        | {f"strong/{code}": status for code, status in found.items()},
        "seconds": [round(row["seconds"], 2) for row in rows],
        "val_accuracy": [row["val_accuracy"] for row in rows],
        "environment": {k: v for k, v in result.environment.items() if k != "command"},
    }
    write_text(path, json.dumps(document, indent=1) + "\n")
    print(f"{arm} {seed}: measured in {result.seconds:.0f} s", file=sys.stderr, flush=True)
    return True


def measure_ensemble(arm: str, _: int, task: Task) -> bool:
    """Evaluate the mean of the logits of all seeds of an arm: the ensemble EN of the random-mask text."""
    path = task.record(arm, "ensemble")
    cells = [(arm, seed) for seed in range(task.seeds)]
    if path.exists():
        return True
    if not all((task.folder(*cell) / "model.safetensors").exists() for cell in [*cells, ("source", task.seeds)]):
        return False
    try:
        task.watch()
        nets = Ensemble([task.net(*cell) for cell in cells]).eval()
        result = evaluate(task, arm, nets, seed=0, siblings=[], journal=task.work / "journal" / arm)
    except OutOfTimeError:
        return False
    points = {"clean/all": clean(nets, task), **numbers(result)}
    write_text(path, json.dumps({"arm": arm, "members": task.seeds, "points": points}, indent=1) + "\n")
    return True


def summary(task: Task, arms: list[str]) -> Table:
    """Give means, paired differences to plain, claims and what was not run."""
    kept: dict[str, dict[int, Table]] = {}
    for arm in arms:
        files = {seed: task.record(arm, seed) for seed in range(task.seeds)}
        kept[arm] = {s: json.loads(f.read_text(encoding="utf-8")) for s, f in files.items() if f.exists()}
    per_seed = {arm: {s: cell["points"] for s, cell in cells.items()} for arm, cells in kept.items()}
    named = {name for cells in per_seed.values() for points in cells.values() for name in points}
    ensembles = {arm: task.record(arm, "ensemble") for arm in arms}
    plain = kept["plain"].values()
    return {
        "points": {name: row(per_seed, name) for name in sorted(named)},
        "claims": [claim(kept, *each, images=task.images(each[3])) for each in task.grid.claims],
        "ensembles": {
            arm: json.loads(f.read_text(encoding="utf-8"))["points"] for arm, f in ensembles.items() if f.exists()
        },
        "seconds_to_goal": {"goal": GOAL, "plain": [to_goal(cell["seconds"], cell["val_accuracy"]) for cell in plain]},
        "training_seconds": {arm: [round(sum(c["seconds"])) for c in cells.values()] for arm, cells in kept.items()},
        "not_run": {
            "nets of this grid": [f"{arm} {s}" for arm in arms for s in range(task.seeds) if s not in kept[arm]],
            "arms of the full grid": [arm for arm in task.grid.arms if arm not in arms],
        },
        "checks": {f"{arm} {s}": c["checks"] for arm, cells in kept.items() for s, c in cells.items() if c["checks"]},
    }


def to_goal(seconds: list[float], accuracy: list[float]) -> float | None:
    """Give the time until an epoch ends at the goal; None if none does."""
    reached = [i for i, value in enumerate(accuracy) if value >= GOAL]
    return round(sum(seconds[: reached[0] + 1]), 1) if reached else None


def row(per_seed: Mapping[str, Mapping[int, Table]], name: str) -> Table:
    """Give one number for every arm, and its paired difference to plain."""
    found = {arm: {s: p[name] for s, p in cells.items() if name in p} for arm, cells in per_seed.items()}
    means = {arm: {"per_seed": list(v.values()), **interval(list(v.values()))} for arm, v in found.items() if v}
    pairs = {arm: difference(v, found["plain"]) for arm, v in found.items() if arm != "plain"}
    return means | {f"{arm} - plain": pair for arm, pair in pairs.items() if pair}


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> Table:
    values = [a[seed] - b[seed] for seed in a if seed in b]
    return {"seeds": len(values), **interval(values)} if values else {}


def claim(kept: Mapping[str, Mapping[int, Table]], said: str, more: str, less: str, name: str, *, images: int) -> Table:
    """Say whether a claim holds: the interval of ``more - less`` lies above 0, below it, or neither.

    By more than one image, since accuracies move in steps of one; not of fewer than three pairs of seeds, nor where a
    check failed that voids what attacks say.
    """
    both = [{s: c for s, c in kept.get(arm, {}).items() if name in c["points"]} for arm in (more, less)]
    found = difference(*({s: c["points"][name] for s, c in cells.items()} for cells in both))
    failed = {
        code for cells in both for c in cells.values() for code, status in c["checks"].items() if status == "fail"
    }
    verdict = "not run"
    if failed and name.startswith(ATTACKED):
        verdict = f"void ({', '.join(sorted(failed))})"
    elif found:
        verdict = "few"
        if found["seeds"] >= FEW:
            low, high = found["low"] - 1 / images, found["high"] + 1 / images
            verdict = "holds" if low > 0 else "reversed" if high < 0 else "open"
    return {"claim": said, "difference": f"{more} - {less}", "number": name, "verdict": verdict, **found}


def work(job: Callable[..., bool], arm: str, seed: int, task: Task) -> bool:
    if task.device == "cpu":
        torch.set_num_threads(1)
    return job(arm, seed, task)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--grid", choices=list(GRIDS), default="features", help="the question")
    parser.add_argument("--scale", choices=list(SCALES), help="default: gpu where there is one")
    parser.add_argument("--work", type=Path, default=Path("runs/full_scale"), help="nets")
    parser.add_argument("--out", type=Path, help="small results; default: --work")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", help="default: all of the grid at this scale")
    parser.add_argument("--workers", type=int, help="processes; on a CPU of one thread each")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="numbers over those of the scale")
    args = parser.parse_args()
    until = time.time() + 60 * args.minutes
    scale_name = args.scale or ("gpu" if torch.cuda.is_available() else "cpu")
    given = {name: int(value) for name, value in (text.split("=") for text in args.set)}
    scale = replace(SCALES[scale_name], **given)
    device = "cuda" if scale_name == "gpu" and torch.cuda.is_available() else "cpu"
    task = Task(args.grid, scale, f"cifar10:{args.data}", args.work, args.out or args.work, device, args.seeds, until)
    known = task.grid.arms
    if unknown := [arm for arm in args.arms or () if arm not in known]:
        parser.error(f"--arms: {', '.join(unknown)} are not in the grid; it has {', '.join(known)}")
    arms = args.arms or [arm for arm, row in known.items() if row.core or scale_name == "gpu"]
    arms = list(dict.fromkeys(["plain", *arms]))
    cells = [(arm, seed) for seed in range(args.seeds) for arm in arms]
    with ProcessPoolExecutor(args.workers or scale.workers, get_context("spawn")) as pool:
        training = {cell: pool.submit(work, fit, *cell, task) for cell in [("source", args.seeds), *cells]}
        for job in training.values():
            job.result()
        jobs = [pool.submit(work, measure, *cell, task) for cell in cells]
        jobs += [pool.submit(work, measure_ensemble, arm, 0, task) for arm in task.grid.ensembles if arm in arms]
        for job in jobs:
            job.result()
    environment_ = {k: v for k, v in environment(device).items() if k != "command"}
    document = {
        "benchmark": "full_scale",
        "scale": scale_name,
        "size": asdict(scale),
        "seeds": args.seeds,
        "arms": {arm: asdict(known[arm]) for arm in arms},
        "grid": args.grid,
        "threat": "PGD-20, linf; transfer from one plain net of another seed",
        "environment": environment_,
        **summary(task, arms),
    }
    write_text(task.out / "summary.json", json.dumps(document, indent=1) + "\n")
    for each in document["claims"]:
        values = [f"{100 * each[key]:+.1f}" for key in ("mean", "low", "high") if key in each]
        said = f"{values[0]} [{values[1]}, {values[2]}]" if len(values) > 2 else ""
        print(f"{each['verdict']:9} {each['claim']} ({each['number']}): {said}", file=sys.stderr)
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
