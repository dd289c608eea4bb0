"""What does each method buy and cost a small net, alone and by its defaults?

Question: against the same net without it, trained from the same seeds at the same number of steps, how do clean
accuracy, accuracy under Gaussian noise, patch shuffle, white-box PGD, transfer from an independent plain net and
gray-box transfer change?

Rule, written before the runs: a difference counts where the 95 % t-interval over paired seeds excludes 0. Three seeds
allow a look, five a claim. The last epoch is evaluated; nothing is selected on test images.

    python benchmarks/quality/small_scale.py --data digits
    python benchmarks/quality/small_scale.py --data cifar10:DIR --net cifar_resnet20 --epochs 6 --images 10000
        --augment crop flip --eps 8/255 --seeds 3 --arms plain lfm defective_conv         (one line)

``DIR`` holds ``cifar10.npz`` or torchvision's layout. Stopped runs go on where they were. The last line is JSON.
"""

import argparse
import json
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from scipy import stats

import hardy
from hardy import io
from hardy.attacks import PGD
from hardy.data import load_data
from hardy.evaluation import Budget
from hardy.methods import METHODS
from hardy.results import Result
from hardy.threats import parse_budget
from hardy.training import DataRecipe, ModelRecipe, Recipe, RunFolder, TrainRecipe, train

AXES = ("clean", "noise", "white_box", "eps_curve", "transfer", "texture")
COSTLY = {"pgd_at", "trades", "mart", "fast_at", "free_at", "awp"}  # several passes a step: no equal budget
ARMS: dict[str, tuple[dict[str, Any], ...]] = {
    "plain": (),
    **{name: ({"name": name},) for name in METHODS if name not in COSTLY},
}


def budget(eps: float) -> Budget:
    return Budget(sigmas=(0.02, 0.04, 0.08, 0.12), grids=(2, 4), transfer_eps=(eps / 2, 2 * eps))


def recipe(arm: str, seed: int, args: argparse.Namespace) -> Recipe:
    return Recipe(
        seed=seed,
        model=ModelRecipe(name=args.net),
        data=DataRecipe(name=args.data, limit=args.images, val_fraction=0.05, augment=tuple(args.augment)),
        methods=ARMS[arm],
        train=TrainRecipe(
            epochs=args.epochs, batch_size=args.batch_size, lr=0.1, warmup_epochs=min(1.0, args.epochs / 12)
        ),
    )


def fit(arm: str, seed: int, args: argparse.Namespace) -> float:
    """Train one net; give its seconds."""
    folder = args.out / f"{arm}-seed{seed}"
    if (folder / "model.safetensors").exists():
        return sum(row["seconds"] for row in RunFolder(folder).rows())
    began = time.perf_counter()
    run = train(recipe(arm, seed, args), out=folder, resume=True, device=args.device)
    said = f"{arm} seed {seed}: validation {run.history[-1]['val_accuracy']:.3f}"
    print(
        f"{said} ({run.seconds:.0f} s of training, {time.perf_counter() - began:.0f} s now)",
        file=sys.stderr,
        flush=True,
    )
    return run.seconds


def net_of(arm: str, seed: int, args: argparse.Namespace) -> torch.nn.Module:
    return hardy.load(args.out / f"{arm}-seed{seed}" / "model.safetensors").to(args.device)


def measure(arm: str, seed: int, args: argparse.Namespace) -> Result:
    """Evaluate one net: gray-box from the next seed of its arm, transfer from the plain net that is in no arm."""
    path = args.out / f"{arm}-seed{seed}" / "result.json"
    if path.exists():
        return Result.read(path)
    images = load_data(args.data, split="test", limit=args.test_images)
    result = hardy.evaluate(
        net_of(arm, seed, args),
        images.images().to(args.device),
        images.y.to(args.device),
        threat=hardy.Threat("linf", args.eps),
        axes=AXES,
        suite=[PGD(steps=20)],
        sources=[("plain, own seed", net_of("plain", args.seeds, args))],
        siblings=[("same method, next seed", net_of(arm, (seed + 1) % args.seeds, args))],
        rows=images.index.to(args.device),
        seed=seed,
        budget=budget(args.eps),
        model_name=f"{arm}-seed{seed}",
        data_name=f"{args.data.partition(':')[0]} held-out, {len(images)} images",
        class_names=images.class_names,
        methods=io.read(path.parent / "model.safetensors").trained_with,
        command="python benchmarks/quality/small_scale.py",
    )
    result.save(path)
    print(f"{arm} seed {seed}: evaluated in {result.seconds:.0f} s", file=sys.stderr, flush=True)
    return result


def interval(values: list[float]) -> dict[str, float]:
    """Give the mean and its 95 % t-interval over seeds."""
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return {"mean": mean}
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = float(stats.t.ppf(0.975, n - 1)) * spread
    return {"mean": mean, "low": mean - half, "high": mean + half}


def table(results: dict[str, list[Result]]) -> dict[str, Any]:
    """Give every point of every axis: means per arm and paired differences to plain."""
    out: dict[str, Any] = {}
    for axis in results["plain"][0].axes:
        for point in axis.points:
            values = {
                arm: [r.accuracy(axis.name, point.label) for r in rs]
                for arm, rs in results.items()
                if _has(rs, axis.name, point.label)
            }
            row: dict[str, Any] = {arm: {"per_seed": v, **interval(v)} for arm, v in values.items()}
            for arm in [arm for arm in values if arm != "plain"]:
                row[f"{arm} - plain"] = interval([a - b for a, b in zip(values[arm], values["plain"], strict=True)])
            out[f"{axis.name}/{point.label}"] = row
    return out


def _has(results: list[Result], axis: str, label: str) -> bool:
    return all(label in {p.label for p in r.axis(axis).points} for r in results)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--net", default="cifar_resnet8")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/small_scale"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--images", type=int)
    parser.add_argument("--augment", nargs="*", default=["crop"])
    parser.add_argument("--eps", type=parse_budget, default=0.1)
    parser.add_argument("--test-images", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    args.arms = list(dict.fromkeys(["plain", *args.arms]))
    cells = [(arm, seed) for seed in range(args.seeds) for arm in args.arms]
    with ProcessPoolExecutor(args.workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        trained = [pool.submit(fit, arm, seed, args) for arm, seed in [("plain", args.seeds), *cells]]
        seconds_of = dict(zip([("plain", args.seeds), *cells], [t.result() for t in trained], strict=True))
        measured = {cell: pool.submit(measure, *cell, args) for cell in cells}
        results = {arm: [measured[arm, seed].result() for seed in range(args.seeds)] for arm in args.arms}
    rows = table(results)
    for name, row in rows.items():
        cells = [f"{arm} {row[arm]['mean']:.3f}" for arm in args.arms if arm in row]
        cells += [
            f"{k} {v['mean']:+.3f} [{v['low']:+.3f}, {v['high']:+.3f}]"
            for k, v in row.items()
            if " - " in k and "low" in v
        ]
        print(f"{name}: {'  '.join(cells)}", file=sys.stderr)
    seconds = {arm: interval([seconds_of[arm, seed] for seed in range(args.seeds)]) for arm in args.arms}
    plain = recipe("plain", 0, args)
    anonymous = replace(plain, data=replace(plain.data, name=args.data.partition(":")[0]))
    document = {
        "benchmark": "small_scale",
        "recipe": anonymous.to_toml(),
        "arms": {arm: list(ARMS[arm]) for arm in args.arms},
        "seeds": args.seeds,
        "test_images": args.test_images,
        "threat": str(hardy.Threat("linf", args.eps)),
        "environment": {k: v for k, v in results["plain"][0].environment.items() if k != "command"},
        "training_seconds": seconds,
        "checks": {arm: [{c.code: c.status for c in r.checks} for r in rs] for arm, rs in results.items()},
        "points": rows,
    }
    (args.out / "summary.json").write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
