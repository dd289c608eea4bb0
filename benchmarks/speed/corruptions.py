"""How much faster are the batched corruptions than a per-image implementation in NumPy, SciPy and Pillow?

Rule, fixed before the runs: over both sizes and all nineteen corruptions together at least 10 times less time (the
lower end of the interval), and no single corruption slower at either size (its median ratio at least 1). A corruption
whose interval holds 1 is listed as undecided.

The peer are the slow references that the tests compare with, ``tests/corruptions/reference_*.py``: one image (h, w, c)
in float64 after the other, in one process, as the published generators work, with what NumPy, SciPy and Pillow do well
left to them. Glass blur swaps pixels in a Python loop, as the published code does; since that one loop dominates the
peer's time, the total without glass blur is printed as well. Both sides start from pixels in [0, 1] in the form they
take and end with 256 levels; conversions before that are not timed. Severity 3, "cifar" constants at 32 px, "imagenet"
at 224 px. torch uses ``--threads`` threads, the peer what NumPy gives it (mostly one): the ratio of processor times,
which counts both threads, stands beside the ratio of times.

Each round times both sides of every corruption one after the other, in alternating order, after a warm-up; a ratio is
peer / hardy of one round, printed as the median over rounds with its 95 % bootstrap interval. ``linear`` is hardy's
time per image on all images over that on a quarter of them. Images are CIFAR-10's test images if HARDY_DATA is set
(enlarged for 224 px), else generated.

    python benchmarks/speed/corruptions.py [--quick] [--rounds 5] [--threads 2] [--only fog snow]

The last line of stdout is JSON.
"""

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hardy import seeding
from hardy.corruptions import CORRUPTIONS, corrupt
from hardy.data import load_data

SEVERITY = 3
SIZES = {"cifar": (32, 1000, 100), "imagenet": (224, 100, 6)}  # scale: side, images, images of --quick
LEAST_TOTAL, LEAST_EACH = 10.0, 1.0
WARM = 4  # images
SLOWEST = "glass_blur"
Reference = Callable[..., Any]
Times = dict[str, float]


def references(names: list[str]) -> Mapping[str, Reference]:
    """Load the per-image implementations from the tests, by path: they are no package."""
    folder, found = Path(__file__).parents[2] / "tests" / "corruptions", {}
    for path in sorted(folder.glob("reference_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise SystemExit(f"{path} cannot be loaded")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        found.update(module.REFERENCES)
    if missing := sorted(set(names) - set(found)):
        raise SystemExit(f"no reference for {', '.join(missing)} in {folder}")
    return found


def pictures(n: int, side: int) -> Tensor:
    """Give n colour images on 256 levels, of CIFAR-10 or generated."""
    folder = os.environ.get("HARDY_DATA")
    if folder and (Path(folder) / "cifar10.npz").is_file():
        x = load_data(f"cifar10:{folder}", split="test", limit=n).images()
    else:
        coarse = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        grain = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        x = 0.8 * F.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1) + 0.2 * grain
    if side != x.shape[-1]:
        x = F.interpolate(x, size=side, mode="bicubic").clamp(0, 1)
    return (x * 255).floor() / 255


def by_hardy(name: str, scale: str, x: Tensor, seed: int) -> Tensor:
    """Corrupt all images in one call."""
    key = seeding.keys(seeding.root(seed, name), torch.arange(len(x)))
    return corrupt(x, name, severity=SEVERITY, key=key, scale=scale)  # type: ignore[arg-type]


def by_peer(reference: Reference, scale: str, images: list[Any], seed: int) -> list[Any]:
    """Corrupt one image after the other."""
    rng = np.random.default_rng(seed)
    return [np.uint8(np.clip(reference(image, SEVERITY, scale, rng), 0, 1) * 255) for image in images]


def timed(run: Callable[[], object]) -> Times:
    """Measure wall-clock and processor seconds."""
    began, worked = time.perf_counter(), time.process_time()
    run()
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - worked}


def side_by_side(name: str, reference: Reference, scale: str, x: Tensor, rounds: int) -> list[dict[str, Times]]:
    """Time both sides, and hardy on a quarter of the images, once per round."""
    images = list(x.double().permute(0, 2, 3, 1).contiguous().numpy())
    few = x[: max(1, len(x) // 4)]
    by_hardy(name, scale, x[:WARM], 0)
    by_peer(reference, scale, images[:WARM], 0)
    found = []
    for number in range(rounds):
        runs = {
            "hardy": lambda seed=number: by_hardy(name, scale, x, seed),
            "peer": lambda seed=number: by_peer(reference, scale, images, seed),
            "quarter": lambda seed=number: by_hardy(name, scale, few, seed),
        }
        order = list(runs) if number % 2 else list(reversed(runs))
        found.append({side: timed(runs[side]) for side in order})
    return found


def summary(rounds: list[dict[str, Times]], n: int) -> dict[str, Any]:
    """Give ratios and medians of one corruption at one size."""
    share = max(1, n // 4) / n
    return {
        "ratio": interval([r["peer"]["seconds"] / r["hardy"]["seconds"] for r in rounds]),
        "cpu_ratio": interval([r["peer"]["cpu"] / max(r["hardy"]["cpu"], 1e-9) for r in rounds]),
        "linear": interval([r["hardy"]["seconds"] * share / r["quarter"]["seconds"] for r in rounds]),
        "ms_per_image": {
            side: float(np.median([r[side]["seconds"] for r in rounds])) / n * 1000 for side in ("hardy", "peer")
        },
        "rounds": rounds,
    }


def total(results: dict[str, dict[str, Any]], *, without: str = "", kind: str = "seconds") -> dict[str, float]:
    """Give the ratio of the sums of times over corruptions and sizes, round by round."""
    kept = [found["rounds"] for each in results.values() for name, found in each.items() if name != without]
    ratios = []
    for together in zip(*kept, strict=True):
        peer, ours = (sum(r[side][kind] for r in together) for side in ("peer", "hardy"))
        ratios.append(peer / max(ours, 1e-9))
    return interval(ratios)


def interval(ratios: list[float]) -> dict[str, float]:
    """Give the median and its 95 % bootstrap interval."""
    values = np.array(ratios)
    draws = np.random.default_rng(0).choice(values, size=(2000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def show(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:8.1f}x [{ratio['low']:.1f}, {ratio['high']:.1f}]"


def verdict(results: dict[str, dict[str, Any]], totals: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Apply the rule."""
    each = {f"{name} ({scale})": r["ratio"] for scale, found in results.items() for name, r in found.items()}
    return {
        "total_at_least_10": totals["all"]["low"] >= LEAST_TOTAL,
        "slower": [name for name, ratio in each.items() if ratio["median"] < LEAST_EACH],
        "undecided": [name for name, ratio in each.items() if ratio["low"] < LEAST_EACH <= ratio["median"]],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images and three rounds; no verdict to quote")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=list(CORRUPTIONS), default=list(CORRUPTIONS))
    parser.add_argument("--images", type=int, help="at 32 px; a tenth of them at 224 px")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rounds = args.rounds or (3 if args.quick else 5)
    known = references(args.only)
    results: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    print(f"load average {os.getloadavg()[0]:.2f}, {args.threads} threads, {rounds} rounds")
    for scale, (side, many, few) in SIZES.items():
        n = few if args.quick else many
        if args.images is not None:
            n = max(1, args.images * many // SIZES["cifar"][1])
        x, results[scale], counts[scale] = pictures(n, side), {}, n
        print(f"\n{len(x)} images of {side} px, constants of {scale}: time, cpu, ms per image of hardy and of the peer")
        for name in args.only:
            found = results[scale][name] = summary(side_by_side(name, known[name], scale, x, rounds), len(x))
            ms = found["ms_per_image"]
            print(
                f"{name:18}{show(found['ratio'])}  cpu {found['cpu_ratio']['median']:.1f}x  "
                f"{ms['hardy']:.3f} {ms['peer']:.3f}  linear {found['linear']['median']:.2f}",
                flush=True,
            )
    totals = {"all": total(results), "all_cpu": total(results, kind="cpu")}
    totals |= {scale: total({scale: found}) for scale, found in results.items()}
    if set(args.only) != {SLOWEST}:
        totals[f"without_{SLOWEST}"] = total(results, without=SLOWEST)
    print()
    for name, ratio in totals.items():
        print(f"total, {name:20}{show(ratio)}")
    decided = verdict(results, totals)
    print(f"no corruption slower: {'yes' if not decided['slower'] else 'no: ' + ', '.join(decided['slower'])}")
    document = {
        "benchmark": "corruptions",
        "severity": SEVERITY,
        "images": counts,
        "quick": args.quick,
        "rounds": rounds,
        "threads": args.threads,
        "device": "cpu",
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "bounds": {"total": LEAST_TOTAL, "each": LEAST_EACH},
        "totals": totals,
        "verdict": decided,
        "results": results,
    }
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
