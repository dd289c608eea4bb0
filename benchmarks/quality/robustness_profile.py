"""Where do feature methods really help? The whole robustness profile of plain, LFM and defective nets on CIFAR-10.

Question: against the same net without the method, trained from the same seeds at the same number of steps, how does the
number that stands for each axis change: confidence, corruptions, noise, occlusion, texture, attacks of every kind,
weights, certificates?

Rule, written before the runs: a difference counts where the 95 % t-interval over paired seeds excludes 0. Three seeds
allow a look, five a claim; with some seventeen axes and two methods about two of 34 such intervals exclude 0 by chance.

The nets are those of ``adversarial.py`` (same recipe, found there if they were trained). Each is evaluated on every
axis with the quick suite; transfer from the plain net of the next seed; other data: MNIST; cue-conflict images if
``HARDY_DATA`` has them.

    python benchmarks/quality/robustness_profile.py --out runs/adversarial

Finished nets are skipped. The last line is JSON.
"""

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from adversarial import fit, folder_of, net_of
from small_scale import interval

import hardy
from hardy import io
from hardy.data import ArrayData, cue_conflict, load_data
from hardy.evaluation import Budget, Material
from hardy.results import Result

ARMS = ("plain", "lfm", "defective_conv")


def material(images: ArrayData, args: argparse.Namespace) -> Material:
    """Give training images, MNIST in the size of CIFAR, and cue-conflict images."""
    train = load_data(args.data, split="train", limit=2000)
    digits = load_data(f"npz:{args.folder / 'mnist.npz'}", limit=args.test_images).images().expand(-1, 3, -1, -1)
    cues = args.folder / "cue_conflict.npz"
    return Material(
        train=(train.images(), train.y),
        other={"MNIST": F.interpolate(digits, size=images.shape[1:], mode="bilinear", align_corners=False)},
        cue_conflict=cue_conflict(cues, class_names=images.class_names, size=32) if cues.exists() else None,
    )


def measure(arm: str, seed: int, args: argparse.Namespace) -> Result:
    """Evaluate one net on every axis, or find it evaluated."""
    path = args.out / "profile" / f"{arm}-seed{seed}" / "result.json"
    if path.exists():
        return Result.read(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    images = load_data(args.data, split="test", limit=args.test_images)
    following = (seed + 1) % args.seeds
    result = hardy.evaluate(
        net_of(arm, seed, args),
        images.images(),
        images.y,
        suite="quick",
        sources=[("plain, next seed", net_of("plain", following, args))],
        rows=images.index,
        budget=Budget(queries=args.queries, min_norm_steps=args.min_norm_steps),
        material=material(images, args),
        model_name=f"{arm}-seed{seed}",
        data_name=f"{args.data.partition(':')[0]} held-out, {len(images)} images",
        class_names=images.class_names,
        methods=io.read(folder_of(arm, seed, args) / "model.safetensors").trained_with,
        command="python benchmarks/quality/robustness_profile.py",
    )
    result.save(path)
    print(f"{arm} seed {seed}: evaluated in {result.seconds:.0f} s", file=sys.stderr, flush=True)
    return result


def numbers(result: Result) -> dict[str, float]:
    """Give every accuracy and score of a result, by axis and label."""
    found: dict[str, float] = {}
    for axis in result.axes:
        found |= {f"{axis.name}/{p.label}": p.accuracy for p in axis.points}
        found |= {f"{axis.name}/{s.label}": s.value for s in axis.scores if s.level is None}
    return found


def table(results: dict[str, list[Result]]) -> dict[str, Any]:
    """Give means per arm and paired differences to plain, of every number that all nets have."""
    kept = {arm: [numbers(result) for result in found] for arm, found in results.items()}
    names = [name for name in kept["plain"][0] if all(name in each for found in kept.values() for each in found)]
    out: dict[str, Any] = {}
    for name in names:
        row: dict[str, Any] = {arm: interval([each[name] for each in found]) for arm, found in kept.items()}
        for arm in [arm for arm in kept if arm != "plain"]:
            pairs = zip(kept[arm], kept["plain"], strict=True)
            row[f"{arm} - plain"] = interval([a[name] - b[name] for a, b in pairs])
        out[name] = row
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/adversarial"))
    parser.add_argument("--folder", type=Path, help="default: the folder that HARDY_DATA names")
    parser.add_argument("--net", default="cifar_resnet20")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=20000, help="training images")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="bf16-mixed")
    parser.add_argument("--test-images", type=int, default=300)
    parser.add_argument("--queries", type=int, default=300, help="of the axis query, per image")
    parser.add_argument("--min-norm-steps", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    args = parser.parse_args()
    if args.folder is None:
        if "HARDY_DATA" not in os.environ:
            parser.error("--folder or the environment variable HARDY_DATA must name a folder with cifar10.npz")
        args.folder = Path(os.environ["HARDY_DATA"])
    args.data = f"cifar10:{args.folder}"
    cells = [(arm, seed) for seed in range(args.seeds) for arm in ARMS]
    with ProcessPoolExecutor(args.workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for job in [pool.submit(fit, arm, seed, args) for arm, seed in cells]:
            job.result()
        measured = {cell: pool.submit(measure, *cell, args) for cell in cells}
        results = {arm: [measured[arm, seed].result() for seed in range(args.seeds)] for arm in ARMS}
    pages = [args.out / "profile" / f"{arm}-seed0" for arm in ARMS]
    hardy.report(pages, out=args.out / "profile" / "report.html")
    rows = table(results)
    heads = [f"{axis.name}/{axis.headline}" for axis in results["plain"][0].axes]
    for name in [name for name in heads if name in rows]:
        cells_ = [
            f"{k} {v['mean']:+.3f} [{v['low']:+.3f}, {v['high']:+.3f}]" for k, v in rows[name].items() if "low" in v
        ]
        print(f"{name}: {'  '.join(cells_)}", file=sys.stderr)
    document = {
        "benchmark": "robustness_profile",
        "seeds": args.seeds,
        "test_images": args.test_images,
        "headlines": heads,
        "environment": {k: v for k, v in results["plain"][0].environment.items() if k != "command"},
        "checks": {
            arm: [{c.code: c.status for c in result.checks if c.status != "pass"} for result in found]
            for arm, found in results.items()
        },
        "seconds": {arm: [round(result.seconds) for result in found] for arm, found in results.items()},
        "numbers": rows,
    }
    (args.out / "profile" / "summary.json").write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
