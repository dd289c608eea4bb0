"""How much faster is the resident uint8 pipeline than a plain torchvision DataLoader with the same augmentation?

Rule, fixed before the runs: the lower end of the interval of the ratio must be at least 5 on two CPU cores.

Both make one epoch of random crop (padding 4), horizontal flip and floats in [0, 1] from the same 32x32 images in
batches of 128, without a net behind. The peer is what a torchvision tutorial would write: a map-style data set of
arrays in memory with PIL transforms (as torchvision's CIFAR10), two worker processes that stay alive between epochs.
Rounds are interleaved and the order within a round alternates. Images come from ``$HARDY_DATA/cifar10.npz`` if the
variable is set, else from a generator.

    python benchmarks/speed/data_pipeline.py [--images 10000] [--rounds 9] [--threads N] [--device cpu]

Without --threads torch keeps its default, one thread per core. On a busy machine neither figure means anything: the
load average is printed and recorded.

The last line of stdout is JSON: seconds, throughputs, the median ratio and its 95 % bootstrap interval over rounds.
"""

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from hardy.data import ArrayData, Batches, load_data

BATCH_SIZE = 128


class InMemory(Dataset[tuple[Tensor, int]]):
    """What torchvision's CIFAR10 does once it has read its files."""

    def __init__(self, data: ArrayData) -> None:
        self.images = data.x.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = data.y.tolist()
        self.transform = transforms.Compose(
            [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        """Decode and transform one image."""
        return self.transform(Image.fromarray(self.images[row])), self.labels[row]


def load(images: int) -> ArrayData:
    folder = os.environ.get("HARDY_DATA")
    if folder and (Path(folder) / "cifar10.npz").is_file():
        data = load_data(f"npz:{folder}/cifar10.npz", split="train", limit=images)
        return dataclasses.replace(data, name="cifar10")
    x = np.random.default_rng(0).integers(0, 256, (images, 3, 32, 32), dtype=np.uint8)
    return ArrayData.make(torch.from_numpy(x), torch.arange(images) % 10, name="synthetic", split="train")


def seconds(run: Callable[[], int], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(data: ArrayData, *, rounds: int, device: torch.device) -> tuple[list[float], list[float]]:
    """Time one epoch of each, ``rounds`` times, after a warm-up epoch of each."""
    batches = Batches(data, batch_size=BATCH_SIZE, seed=0, device=device)
    cuda = device.type == "cuda"
    loader = DataLoader(
        InMemory(data),
        batch_size=BATCH_SIZE,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
        pin_memory=cuda,
    )
    epochs = iter(range(rounds + 1))

    def ours() -> int:
        return sum(len(y) for _, y, _ in batches.epoch(next(epochs)))

    def peer() -> int:
        return sum(len(x.to(device, non_blocking=cuda)) for x, _ in loader)

    if ours() != peer():
        raise SystemExit("the two pipelines must give the same number of images")
    pairs = []
    for number in range(rounds):
        if number % 2:
            a = seconds(ours, device)
            pairs.append((a, seconds(peer, device)))
        else:
            b = seconds(peer, device)
            pairs.append((seconds(ours, device), b))
    return [a for a, _ in pairs], [b for _, b in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load_before = os.getloadavg()[0]
    data = load(args.images)
    ours, peer = measure(data, rounds=args.rounds, device=torch.device(args.device))
    ratios = np.array(peer) / np.array(ours)
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    images = len(data) // BATCH_SIZE * BATCH_SIZE
    print(
        f"{data.name}, {images} images an epoch, {args.rounds} interleaved rounds, {os.cpu_count()} cores, "
        f"{args.threads} threads, load average before the runs {load_before:.1f}"
    )
    print(f"{'pipeline':<24}{'median s':>10}{'IQR s':>10}{'images/s':>12}")
    for name, times in {"hardy Batches": ours, "torchvision DataLoader": peer}.items():
        q1, q2, q3 = np.quantile(times, [0.25, 0.5, 0.75])
        print(f"{name:<24}{q2:>10.4f}{q3 - q1:>10.4f}{images / q2:>12.0f}")
    print(f"ratio {np.median(ratios):.2f}, 95 % interval {low:.2f} to {high:.2f}; at least 5 is asked for")
    result = {
        "name": "data_pipeline",
        "data": data.name,
        "images": images,
        "batch_size": BATCH_SIZE,
        "rounds": args.rounds,
        "device": args.device,
        "cores": os.cpu_count(),
        "threads": args.threads,
        "load_average_before": load_before,
        "hardy_seconds": ours,
        "peer_seconds": peer,
        "hardy_images_per_second": images / float(np.median(ours)),
        "peer_images_per_second": images / float(np.median(peer)),
        "ratio": float(np.median(ratios)),
        "ratio_low": float(low),
        "ratio_high": float(high),
        "at_least": 5.0,
        "passed": bool(low >= 5.0),
        "versions": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
