"""How long until the command line answers? ``import hardy`` and ``hardy --help`` in fresh processes, medians.

    python benchmarks/speed/startup.py [--rounds 20]

Bounds (decided before the runs): import 0.2 s, help 0.3 s, the start of the interpreter included.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

CASES = {
    "python": [sys.executable, "-c", "pass"],
    "import hardy": [sys.executable, "-c", "import hardy"],
    "hardy --help": [sys.executable, "-m", "hardy", "--help"],
}
BOUNDS = {"import hardy": 0.2, "hardy --help": 0.3}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for number in range(args.rounds + 1):
        for name, command in CASES.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if number:  # the first one warms the file cache
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        bound = f"  bound {BOUNDS[name]} s" if name in BOUNDS else ""
        print(f"{name:>14}: {median:.3f} s{bound}", file=sys.stderr)
    print(json.dumps({"benchmark": "startup", "rounds": args.rounds, "seconds": medians, "bounds": BOUNDS}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
