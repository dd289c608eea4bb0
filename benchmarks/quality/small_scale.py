"""What do LFM and a defective bottom buy a CIFAR ResNet-20, at CPU scale?

Question: against the same net without them, trained from the same seeds at the same cost, how do clean accuracy,
accuracy under Gaussian noise, patch shuffle, white-box PGD, transfer from an independent plain net and gray-box
transfer change?

Rule, written before the runs: a difference counts where the 95 % t-interval over paired seeds excludes 0. Three seeds
allow a look, not a claim. The last epoch is evaluated; nothing is selected on test images.

    python benchmarks/quality/cifar10_small.py --data DIR [--out runs/cifar10_small] [--seeds 3] [--workers 2]

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
from hardy.data import load_data
from hardy.evaluation import Budget
from hardy.results import Result
from hardy.training import DataRecipe, ModelRecipe, Recipe, RunFolder, TrainRecipe, train

ARMS: dict[str, tuple[dict[str, Any], ...]] = {
    "plain": (),
    "lfm": ({"name": "lfm"},),
    "defective": ({"name": "defective_conv", "keep": 0.5},),
}
THREAT = hardy.Threat("linf", 8 / 255)
BUDGET = Budget(restarts=1, sigmas=(0.02, 0.04, 0.08, 0.12), grids=(2, 4), transfer_eps=(4 / 255, 16 / 255))


def recipe(arm: str, seed: int, args: argparse.Namespace) -> Recipe:
    return Recipe(
        seed=seed,
        model=ModelRecipe(name="cifar_resnet20"),
        data=DataRecipe(name=f"cifar10:{args.data}", limit=args.images, val_fraction=0.05),
        methods=ARMS[arm],
        train=TrainRecipe(epochs=args.epochs, batch_size=128, lr=0.1, warmup_epochs=0.5, channels_last=True),
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
    images = load_data(f"cifar10:{args.data}", split="test", limit=args.test_images)
    result = hardy.evaluate(
        net_of(arm, seed, args),
        images.images().to(args.device),
        images.y.to(args.device),
        threat=THREAT,
        sources=[("plain, own seed", net_of("plain", args.seeds, args))],
        siblings=[("same method, next seed", net_of(arm, (seed + 1) % args.seeds, args))],
        rows=images.index.to(args.device),
        seed=seed,
        budget=BUDGET,
        model_name=f"{arm}-seed{seed}",
        data_name=f"cifar10 held-out, {len(images)} images",
        class_names=images.class_names,
        methods=io.read(path.parent / "model.safetensors").trained_with,
        command="python benchmarks/quality/cifar10_small.py --data DIR",
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
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10_small"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--test-images", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    cells = [(arm, seed) for seed in range(args.seeds) for arm in ARMS]
    with ProcessPoolExecutor(args.workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        trained = [pool.submit(fit, arm, seed, args) for arm, seed in [("plain", args.seeds), *cells]]
        seconds_of = dict(zip([("plain", args.seeds), *cells], [t.result() for t in trained], strict=True))
        measured = {cell: pool.submit(measure, *cell, args) for cell in cells}
        results = {arm: [measured[arm, seed].result() for seed in range(args.seeds)] for arm in ARMS}
    rows = table(results)
    for name, row in rows.items():
        cells = [f"{arm} {row[arm]['mean']:.3f}" for arm in ARMS if arm in row]
        cells += [
            f"{k} {v['mean']:+.3f} [{v['low']:+.3f}, {v['high']:+.3f}]"
            for k, v in row.items()
            if " - " in k and "low" in v
        ]
        print(f"{name}: {'  '.join(cells)}", file=sys.stderr)
    seconds = {arm: interval([seconds_of[arm, seed] for seed in range(args.seeds)]) for arm in ARMS}
    anonymous = replace(recipe("lfm", 0, args), data=replace(recipe("lfm", 0, args).data, name="cifar10:DIR"))
    document = {
        "benchmark": "cifar10_small",
        "recipe": anonymous.to_toml(),
        "arms": {arm: list(methods) for arm, methods in ARMS.items()},
        "seeds": args.seeds,
        "test_images": args.test_images,
        "threat": str(THREAT),
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
