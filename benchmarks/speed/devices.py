"""How much sooner is an evaluation done by two processes than by one, with one thread each?

Rule, fixed before the runs: the median ratio of wall times (one process / two processes) is at least 1.6, and every
outcome of every image is the same.

The work: axes clean, noise, corruptions and white_box with the standard suite and the quick budget, on test images of
CIFAR-10 (HARDY_DATA) and a trained net; a net with random weights would not be worth an attack. Three processes are
started once, so that imports and loading do not count: one that evaluates alone, and two that evaluate together. Each
round times the one, then the two, or the other way round; while one side works, the other waits for its turn without
using the processor. A round has a seed of its own, the same for both sides.

    python benchmarks/speed/devices.py --net runs/plain [--images 256] [--eps 8/255] [--suite standard] [--rounds 5]

On a machine with less than two idle cores no wall time means anything: the load average is printed and recorded. Beside
it stands the ratio of processor times (that of the busier of the two), which other programs disturb less. The last line
of stdout is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO, cast

import numpy as np
import torch
import torch.distributed as dist

import hardy
from hardy.data import load_data
from hardy.evaluation import Budget
from hardy.threats import parse_budget

BOUND = 1.6
AXES = ("clean", "noise", "corruptions", "white_box")


def work(args: argparse.Namespace) -> None:
    """Be one of the processes: wait for a seed on stdin, evaluate, answer on stdout."""
    torch.set_num_threads(1)
    if args.size > 1:
        dist.init_process_group("gloo", init_method=f"file://{args.meeting}", rank=args.rank, world_size=args.size)
    found = load_data(f"cifar10:{os.environ['HARDY_DATA']}", split="test", limit=args.images)
    net = hardy.load(args.net / "model.safetensors" if args.net.is_dir() else args.net).eval()
    threat = hardy.Threat("linf", parse_budget(args.eps))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        began = time.process_time()
        result = hardy.evaluate(
            net,
            found.images(),
            found.y,
            rows=found.index,
            threat=threat,
            axes=AXES,
            suite=args.suite,
            budget=Budget.quick(),
            batch_size=args.batch_size,
            seed=int(line),
        )
        cpu = time.process_time() - began
        digest = {name: values.tobytes().hex() for name, values in result.outcomes_by_point.items()}
        accuracy = {axis: result.accuracy(axis) for axis in AXES}
        print(json.dumps({"cpu": cpu, "outcomes": digest, "accuracy": accuracy}), flush=True)


class Side:
    """Some processes that evaluate together."""

    def __init__(self, size: int, folder: str) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], "--size", str(size), "--meeting", f"{folder}/{size}"]
        pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.processes = [subprocess.Popen([*command, "--rank", str(i)], env=env, **pipe) for i in range(size)]
        self.answers()

    def answers(self) -> list[Any]:
        """Wait for one line of each process."""
        lines = [cast("TextIO", each.stdout).readline() for each in self.processes]
        if not all(lines):
            sys.exit("a process has ended; see what it said")
        return [json.loads(line) for line in lines]

    def run(self, seed: int) -> tuple[float, list[Any]]:
        """Evaluate once: seconds until all are done, and what they found."""
        began = time.perf_counter()
        for each in self.processes:
            print(seed, file=each.stdin, flush=True)
        found = self.answers()
        return time.perf_counter() - began, found

    def close(self) -> None:
        """Let the processes end."""
        for each in self.processes:
            each.communicate()


def main(args: argparse.Namespace) -> None:
    if "HARDY_DATA" not in os.environ:
        sys.exit("set HARDY_DATA to a folder with cifar10.npz")
    load, seconds, cpu, same = [os.getloadavg()[0]], [], [], True
    with TemporaryDirectory() as folder:
        sides = {size: Side(size, folder) for size in (1, 2)}
        for number in range(args.rounds):
            found = {size: sides[size].run(number) for size in ((1, 2), (2, 1))[number % 2]}
            seconds.append([found[size][0] for size in (1, 2)])
            cpu.append([max(each["cpu"] for each in found[size][1]) for size in (1, 2)])
            every = [each["outcomes"] for _, answers in found.values() for each in answers]
            same &= all(each == every[0] for each in every)
            load.append(os.getloadavg()[0])
            one, two = seconds[-1]
            said = f"round {number}: {one:.1f} s, {two:.1f} s, ratio {one / two:.2f}"
            print(f"{said}, of processor times {cpu[-1][0] / cpu[-1][1]:.2f}, load {load[-1]:.1f}", flush=True)
        accuracy = found[1][1][0]["accuracy"]
        for side in sides.values():
            side.close()
    ratios = np.array([one / two for one, two in seconds])
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    median = float(np.median(ratios))
    verdict = "holds" if same and median >= BOUND else "does not hold"
    print(f"ratio {median:.2f} [{low:.2f}, {high:.2f}], outcomes {'equal' if same else 'DIFFER'}: the rule {verdict}")
    document = {
        "ratio": median, "low": float(low), "high": float(high), "bound": BOUND, "equal": same, "seconds": seconds,
        "cpu_seconds": cpu, "load": load, "images": args.images, "eps": args.eps, "suite": args.suite,
        "batch_size": args.batch_size, "accuracy": accuracy, "axes": AXES, "torch": torch.__version__,
        "cores": os.cpu_count(),
    }  # fmt: skip
    print(json.dumps(document))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--net", type=Path, required=True, help="run folder or checkpoint of a CIFAR-10 net")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    for hidden in ("--rank", "--size"):
        parser.add_argument(hidden, type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--meeting", help=argparse.SUPPRESS)
    given = parser.parse_args()
    (work if given.size else main)(given)
