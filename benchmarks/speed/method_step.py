"""What does a method cost? A training step with each method against the plain step, CIFAR ResNet-18, in one process.

Each round times the plain step and the step with the method one after the other, in alternating order; the ratio of
a round is paired, so that a slow minute of the machine hits both. Printed: the median ratio and its 95 % bootstrap
interval.

    python benchmarks/speed/method_step.py [--rounds 15] [--batch-size 64] [--threads 2] [--device cpu]
        [--methods lfm sfm+cfs ...]

Bounds (decided before the runs): lfm at most 1.02, defective_conv at most 1.05, sfm and cfs together at most 1.05, fpcc
at most 1.3, model_doctor at most 3. The latter has random numbers for the relevance of channels, distillation the plain
net as its teacher.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import hardy
from hardy.last_map import last_map
from hardy.methods import METHODS
from hardy.methods.model_doctor import write_relevance
from hardy.seeding import keys, root

BOUNDS = {"lfm": 1.02, "defective_conv": 1.05, "sfm+cfs": 1.05, "fpcc": 1.3, "model_doctor": 3.0}


def make_step(
    model: torch.nn.Module, methods: list[object], x: torch.Tensor, y: torch.Tensor, device: str
) -> Callable[[int], float]:
    """Build a model with methods and a function that times one training step."""
    model = copy.deepcopy(model).to(device)
    attached = hardy.attach(model, methods, example=x[:1], seed=0)
    objective = hardy.Objective(model, attached).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    rows = torch.arange(len(x), device=device)

    def step(number: int) -> float:
        key = keys(root(number, "bench"), rows)
        _wait(device)
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        _, losses = objective(x, y, key)
        sum(losses.values()).backward()
        optimizer.step()
        _wait(device)
        return time.perf_counter() - began

    return step


def spec(name: str, model: torch.nn.Module, folder: str) -> object:
    """Make a method with its defaults, and what these leave to the user."""
    if name == "distillation":
        return METHODS[name](teacher=model)
    if name == "model_doctor":
        file = Path(folder) / "relevance.safetensors"
        site, _ = last_map(model, torch.rand(1, 3, 32, 32))
        write_relevance(file, {site: torch.rand(10, model.get_submodule(site).out_channels)})
        return METHODS[name](relevance=str(file))
    return METHODS[name]()


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """Give the median and its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).choice(ratios, size=(2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = hardy.load_model("cifar_resnet18", num_classes=10)
    x = torch.rand(args.batch_size, 3, 32, 32, device=args.device)
    y = torch.randint(10, (args.batch_size,), device=args.device)
    plain = make_step(model, [], x, y, args.device)
    results = {}
    for name in args.methods:
        with tempfile.TemporaryDirectory() as folder:
            step = make_step(model, [spec(part, model, folder) for part in name.split("+")], x, y, args.device)
        plain(0), step(0)  # warm up
        ratios = []
        for number in range(1, args.rounds + 1):
            if number % 2:
                a, b = plain(number), step(number)
            else:
                b, a = step(number), plain(number)
            ratios.append(b / a)
        ratio, low, high = interval(np.array(ratios))
        results[name] = {"ratio": ratio, "low": low, "high": high, "bound": BOUNDS.get(name)}
        bound = f"  bound {BOUNDS[name]}" if name in BOUNDS else ""
        print(f"{name:>18}: {ratio:.3f} [{low:.3f}, {high:.3f}]{bound}", file=sys.stderr, flush=True)
    print(
        json.dumps(
            {
                "benchmark": "method_step",
                "net": "cifar_resnet18",
                "batch_size": args.batch_size,
                "rounds": args.rounds,
                "threads": args.threads,
                "device": args.device,
                "torch": torch.__version__,
                "results": results,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
