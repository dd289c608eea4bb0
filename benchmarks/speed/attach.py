"""What does it cost to attach? ``stages`` and ``attach`` against one forward pass, ResNet-50 at 224 px, one process.

Each round times a forward pass of the example, ``stages``, and ``attach`` of each method with its undoing left out, in
turn. Printed: median seconds, and the median of (it - the forward pass of its round) with a 95 % bootstrap interval.

    python benchmarks/speed/attach.py [--rounds 7] [--threads 2] [--net timm:resnet50] [--size 224]

Bound (decided before the runs): stages, and attach of any method, at most one forward pass plus 0.2 s.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

import hardy
from hardy.errors import HardyError
from hardy.methods import METHODS

BOUND = 0.2


def timed(work: Callable[[], object]) -> tuple[float, object]:
    began = time.perf_counter()
    out = work()
    return time.perf_counter() - began, out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--net", default="timm:resnet50")
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = hardy.load_model(args.net, num_classes=10).eval()
    x = torch.rand(1, 3, args.size, args.size)
    seconds: dict[str, list[float]] = {name: [] for name in ("forward", "stages", *METHODS)}

    def forward() -> object:
        with torch.no_grad():
            return model(x)

    for number in range(args.rounds + 1):
        found = {"forward": timed(forward)[0], "stages": timed(lambda: hardy.stages(model, x))[0]}
        for name in METHODS:
            attach = partial(hardy.attach, model, [METHODS[name]()], example=x, seed=0)
            try:
                found[name], attached = timed(attach)
            except HardyError:
                continue
            attached.detach()
        if number:  # the first warms up
            for name, value in found.items():
                seconds[name].append(value)
    results = {}
    for name, values in seconds.items():
        if values:
            more = np.array(values) - np.array(seconds["forward"])
            draws = np.random.default_rng(0).choice(more, size=(2000, len(more)))
            low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
            results[name] = {
                "seconds": float(np.median(values)),
                "beyond_forward": float(np.median(more)),
                "low": float(low),
                "high": float(high),
            }
            shown = f"{results[name]['seconds']:.3f} s, {float(np.median(more)):+.3f} [{low:+.3f}, {high:+.3f}]"
            print(f"{name:>18}: {shown}", file=sys.stderr)
    facts = {"benchmark": "attach", "net": args.net, "size": args.size, "rounds": args.rounds, "threads": args.threads}
    print(json.dumps({**facts, "bound": BOUND, "torch": torch.__version__, "results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
