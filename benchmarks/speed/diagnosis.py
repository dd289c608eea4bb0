"""What does a diagnosis cost? ``hardy.diagnose`` of all convolutions against one forward and backward pass.

The net is CIFAR ResNet-18 with ten classes; each image is labelled as the net answers, so that all of them go into the
maps, the dearest case. Each round times, one after the other in alternating order,

    pass        one forward and backward pass over the images as in training: train mode, gradients of all weights
    diagnosis   ``diagnose`` with its default parts: maps of all layers, dead channels, predictions, calibration
    maps        ``class_channel_map`` alone, with its own forward pass to find the sure images

and ratios are taken within a round, so that a slow minute of the machine hits all alike. Printed: the median ratio and
its 95 % bootstrap interval. Besides, once a round, the naive loop that the maps replace: for every class and layer a
forward pass over the images of the class, and the gradient by that layer alone; on ``--naive-images`` images, and
scaled to all of them.

    python benchmarks/speed/diagnosis.py [--rounds 7] [--images 1000] [--naive-images 40] [--batch-size 100]
        [--threads 2] [--device cpu]

Bound (decided before the runs): the diagnosis at most 3 passes. On CUDA the peak memory of each is printed too.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

import hardy
from hardy.diagnosis import class_channel_map, diagnose

BOUND = 3.0
NET = "cifar_resnet18"


def answering(images: int, device: str) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """Make a net that answers with all classes about equally often, images, and its answers."""
    torch.manual_seed(0)
    model = hardy.load_model(NET, num_classes=10).eval().to(device)
    x = torch.rand(images, 3, 32, 32, device=device)
    head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        z = torch.cat([model(part) for part in x.split(100)])
        std, mean = z.std(0) + 1e-6, z.mean(0)
        head.weight.div_(std[:, None])
        head.bias.sub_(mean).div_(std)
        y = torch.cat([model(part) for part in x.split(100)]).argmax(1)
    return model, x, y


def timed(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Give the seconds that it takes, and on CUDA the peak of its memory in MiB beyond what there was."""
    cuda = device.startswith("cuda")
    held = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began, (torch.cuda.max_memory_allocated() - held) / 2**20 if cuda else 0.0


def one_pass(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, size: int) -> Callable[[], None]:
    """Make the yardstick."""
    twin = copy.deepcopy(model).train()

    def work() -> None:
        for part, labels in zip(x.split(size), y.split(size), strict=True):
            twin.zero_grad(set_to_none=True)
            F.cross_entropy(twin(part), labels).backward()

    return work


def naive(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, size: int) -> dict[str, torch.Tensor]:
    """Compute the maps class by class and layer by layer."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)}
    maps = {}
    for name, layer in layers.items():
        rows = []
        for c in range(10):
            total: torch.Tensor | float = 0.0
            for part in x[y == c].split(size):
                kept: list[torch.Tensor] = []
                handle = layer.register_forward_hook(lambda _m, _a, out, kept=kept: kept.append(out))
                score = model(part)[:, c].sum()
                handle.remove()
                (gradient,) = torch.autograd.grad(score, kept)
                total = total + gradient.abs().sum((0, 2, 3))
            rows.append(torch.as_tensor(total, device=x.device) / (y == c).sum())
        maps[name] = torch.stack([row.expand(max(r.numel() for r in rows)) for row in rows])
    return maps


def interval(ratios: list[float]) -> dict[str, float]:
    """Give the median and its 95 % bootstrap interval."""
    values = np.array(ratios)
    draws = np.random.default_rng(0).choice(values, size=(2000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {"ratio": float(np.median(values)), "low": float(low), "high": float(high)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--naive-images", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, x, y = answering(args.images, args.device)
    few, size = args.naive_images, args.batch_size
    found = class_channel_map(model, x[:few], y[:few], top=few, batch_size=size).maps
    slow = naive(model, x[:few], y[:few], size)
    worst = max(
        float((found[n] - slow[n]).nan_to_num(0).abs().max() / slow[n].nan_to_num(0).max()) for n in slow
    )  # a class without images is NaN in both
    work = {
        "pass": one_pass(model, x, y, size),
        "diagnosis": lambda: diagnose(model, x, y, top=args.images, batch_size=size),
        "maps": lambda: class_channel_map(model, x, y, top=args.images, batch_size=size),
    }
    work["pass"]()  # warm up
    ratios: dict[str, list[float]] = {"diagnosis": [], "maps": [], "naive": []}
    memory = dict.fromkeys(work, 0.0)
    seconds: list[float] = []
    for number in range(args.rounds):
        order = list(work) if number % 2 else list(work)[::-1]
        took = {}
        for name in order:
            took[name], peak = timed(work[name], args.device)
            memory[name] = max(memory[name], peak)
        loop, _ = timed(lambda: naive(model, x[:few], y[:few], size), args.device)
        seconds.append(took["pass"])
        for name in ("diagnosis", "maps"):
            ratios[name].append(took[name] / took["pass"])
        ratios["naive"].append(loop * args.images / few / took["maps"])
        print(f"round {number + 1}: {json.dumps(took)}, naive {loop:.2f} s", file=sys.stderr, flush=True)
    results = {name: interval(values) for name, values in ratios.items()}
    print(
        json.dumps(
            {
                "benchmark": "diagnosis",
                "net": NET,
                "images": args.images,
                "naive_images": few,
                "batch_size": size,
                "rounds": args.rounds,
                "threads": args.threads,
                "device": args.device,
                "torch": torch.__version__,
                "pass_seconds": float(np.median(seconds)),
                "diagnosis_over_pass": {**results["diagnosis"], "bound": BOUND},
                "maps_over_pass": results["maps"],
                "naive_over_maps": {**results["naive"], "scaled_from_images": few},
                "largest_relative_difference_from_naive": worst,
                "peak_mib": memory,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
