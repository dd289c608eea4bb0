"""What does PGD adversarial training cost? Its step with k = 1, 3, 7, 10 against the plain step and against theory.

Each round times the plain step, the step with each k, and the parts below one after the other, in an order that turns
by one every round; ratios are taken within a round, so that a slow minute of the machine hits all alike. Printed:
medians and their 95 % bootstrap intervals.

Two theories. "passes": k + 1 plain steps, the usual count. A pass of the search costs less than a plain step: no
gradients of weights, no optimizer. "parts" adds up what has to be done: k forward passes in evaluation mode with the
backward pass to the pixels, timed alone, and one plain step. "over_parts" is what the method adds to that: the steps
and projections, the random start, leaving no trace.

    python benchmarks/speed/adversarial_training.py [--rounds 9] [--nets cifar_resnet18 cifar_resnet20] [--device cpu]

Bound (decided before the runs): the step at most 1.10 of (k + 1) plain steps, for every k.
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
from hardy.methods import PGDAdversarialTraining
from hardy.seeding import keys, root

BOUND = 1.10
Step = Callable[[int], float]


def make_step(
    model: torch.nn.Module, methods: list[object], x: torch.Tensor, y: torch.Tensor, *, channels_last: bool
) -> Step:
    """Build a model with methods and a function that times one training step."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = copy.deepcopy(model).to(x.device, memory_format=layout)
    attached = hardy.attach(model, methods, example=x[:1], seed=0)
    objective = hardy.Objective(model, attached).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    rows = torch.arange(len(x), device=x.device)

    def step(number: int) -> float:
        key = keys(root(number, "bench"), rows)
        wait(x.device)
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        _, losses = objective(x, y, key)
        sum(losses.values()).backward()
        optimizer.step()
        wait(x.device)
        return time.perf_counter() - began

    return step


def make_pass(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, *, channels_last: bool) -> Step:
    """Build a function that times one forward pass in evaluation mode with its backward pass to the pixels."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = copy.deepcopy(model).to(x.device, memory_format=layout).eval()

    def step(_: int) -> float:
        wait(x.device)
        began = time.perf_counter()
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
        wait(x.device)
        return time.perf_counter() - began

    return step


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def interval(ratios: np.ndarray) -> dict[str, float]:
    """Give the median and its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).choice(ratios, size=(2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high)}


def measure(net: str, args: argparse.Namespace) -> dict[str, object]:
    """Time all steps of one net."""
    model = hardy.load_model(net, num_classes=10)
    x = torch.rand(args.batch_size, 3, 32, 32, device=args.device)
    x = x.contiguous(memory_format=torch.channels_last) if args.channels_last else x
    y = torch.randint(10, (args.batch_size,), device=args.device)
    steps: dict[str, Step] = {
        "plain": make_step(model, [], x, y, channels_last=args.channels_last),
        "pass": make_pass(model, x, y, channels_last=args.channels_last),
    }
    for k in args.steps:
        steps[str(k)] = make_step(model, [PGDAdversarialTraining(steps=k)], x, y, channels_last=args.channels_last)
    for step in steps.values():
        step(0)  # warm up
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(1, args.rounds + 1):
        names = list(steps)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(steps[name](number))
    found = {name: np.array(values) for name, values in seconds.items()}
    rows: dict[str, object] = {}
    for k in args.steps:
        mine, plain = found[str(k)], found["plain"]
        rows[str(k)] = {
            "over_plain": interval(mine / plain),
            "over_passes": interval(mine / ((k + 1) * plain)),
            "over_parts": interval(mine / (k * found["pass"] + plain)),
            "bound": BOUND,
        }
        print(f"{net} k = {k:2}: {rows[str(k)]}", file=sys.stderr, flush=True)
    medians = {name: float(np.median(values)) for name, values in found.items()}
    return {"seconds": medians, "search_pass_over_plain": interval(found["pass"] / found["plain"]), "steps": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 3, 7, 10])
    parser.add_argument("--nets", nargs="+", default=["cifar_resnet18", "cifar_resnet20"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {net: measure(net, args) for net in args.nets}
    facts = {"batch_size": args.batch_size, "rounds": args.rounds, "threads": args.threads, "device": args.device}
    facts |= {"channels_last": args.channels_last, "torch": torch.__version__}
    print(json.dumps({"benchmark": "adversarial_training", **facts, "results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
