"""Does reading images from the disk keep a training step fed?

Rule, fixed before the runs: the upper end of the interval of the ratio, step time with images from the disk over step
time with images in memory, must be at most 1.05, with one worker process beside one training thread.

Both train CIFAR ResNet-20 with SGD for an epoch of batches of 128 from the same 32x32 images, with random crop and
flip: once in memory (``Batches``), once as a folder of files that one worker process decodes (``StreamBatches``). Both
give the same batches bit for bit, which the warm-up checks. The time of a step has everything from the request of a
batch to the update; that of the first batch of an epoch, for which the worker has had no time, is among it. Rounds are
interleaved and the order within a round alternates. Images come from ``$HARDY_DATA/cifar10.npz`` if the variable is
set, else from a generator (noise, which takes longest to decode).

    python benchmarks/speed/streaming.py [--images 2560] [--rounds 9] [--format png|jpg] [--workers 1] [--threads 1]

It needs two idle cores: on a busy machine the worker takes its time from the training. The load average is printed and
recorded. The last line of stdout is JSON: seconds per step, seconds of it waiting for data, the median ratio and its
95 % bootstrap interval over rounds.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from hardy.data import Batches, StreamBatches, make_batches, open_data
from hardy.io import load_model

BATCH_SIZE = 128
AT_MOST = 1.05


def write_images(root: Path, images: int, suffix: str) -> str:
    """Write images as files, one folder per class; give where they come from."""
    folder = os.environ.get("HARDY_DATA")
    if folder and (Path(folder) / "cifar10.npz").is_file():
        source = "cifar10"
        with np.load(Path(folder) / "cifar10.npz") as file:
            x, y = file["x_train"][:images], file["y_train"].reshape(-1)[:images]
    else:
        source = "synthetic"
        x = np.random.default_rng(0).integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
        y = np.arange(images) % 10
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        here = root / "train" / f"class{label}"
        here.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(here / f"{i:05}.{suffix}", **({"quality": 95} if suffix == "jpg" else {}))
    return source


def run_epoch(
    batches: Batches | StreamBatches, epoch: int, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[float, float]:
    """Train for an epoch; give seconds per step, and those of them in which it waited for data."""
    waited, start = 0.0, time.perf_counter()
    source = iter(batches.epoch(epoch))
    for _ in range(len(batches)):
        asked = time.perf_counter()
        x, y, _ = next(source)
        waited += time.perf_counter() - asked
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return (time.perf_counter() - start) / len(batches), waited / len(batches)


def check_same(resident: Batches | StreamBatches, streamed: Batches | StreamBatches) -> None:
    """Stop if the two do not give the same batches; starts the workers, too."""
    for a, b in zip(resident.epoch(0), streamed.epoch(0), strict=True):
        if not all(torch.equal(one, other) for one, other in zip(a, b, strict=True)):
            raise SystemExit("the two pipelines must give the same batches")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--format", choices=["png", "jpg"], default="png")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load_before = os.getloadavg()[0]
    model = load_model("cifar_resnet20", num_classes=10, seed=0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    times: dict[str, list[tuple[float, float]]] = {"memory": [], "disk": []}
    with tempfile.TemporaryDirectory() as folder:
        source = write_images(Path(folder), args.images, args.format)
        batches = {
            name: make_batches(
                open_data(f"folder:{folder}", split="train", val_fraction=0.0, stream=stream, workers=args.workers),
                batch_size=BATCH_SIZE,
                seed=0,
            )
            for name, stream in (("memory", False), ("disk", True))
        }
        check_same(batches["memory"], batches["disk"])
        run_epoch(batches["memory"], 0, model, optimizer)
        for number in range(1, args.rounds + 1):
            for name in sorted(times, reverse=bool(number % 2)):
                times[name].append(run_epoch(batches[name], number, model, optimizer))
        batches["disk"].close()
    report(args, source, times, load_before)


def report(
    args: argparse.Namespace, source: str, times: dict[str, list[tuple[float, float]]], load_before: float
) -> None:
    step = {name: np.array([whole for whole, _ in rows]) for name, rows in times.items()}
    wait = {name: np.array([waited for _, waited in rows]) for name, rows in times.items()}
    ratios = step["disk"] / step["memory"]
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    print(
        f"{source}, {args.images} {args.format} files, {args.rounds} interleaved rounds, {os.cpu_count()} cores, "
        f"{args.threads} threads, {args.workers} workers, load average before the runs {load_before:.1f}"
    )
    print(f"{'images from':<12}{'ms per step':>14}{'of it for data':>16}")
    for name in times:
        print(f"{name:<12}{1000 * np.median(step[name]):>14.1f}{1000 * np.median(wait[name]):>16.2f}")
    print(f"ratio {np.median(ratios):.3f}, 95 % interval {low:.3f} to {high:.3f}; at most {AT_MOST} is asked for")
    result = {
        "name": "streaming",
        "data": source,
        "images": args.images,
        "format": args.format,
        "batch_size": BATCH_SIZE,
        "model": "cifar_resnet20",
        "rounds": args.rounds,
        "workers": args.workers,
        "cores": os.cpu_count(),
        "threads": args.threads,
        "load_average_before": load_before,
        **{f"{name}_step_seconds": values.tolist() for name, values in step.items()},
        **{f"{name}_data_seconds": values.tolist() for name, values in wait.items()},
        "ratio": float(np.median(ratios)),
        "ratio_low": float(low),
        "ratio_high": float(high),
        "at_most": AT_MOST,
        "passed": bool(high <= AT_MOST),
        "versions": {"torch": torch.__version__, "pillow": PIL.__version__, "python": platform.python_version()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
