"""Print the table of an evidence grid: means of the arms, and paired differences to the plain net.

    python benchmarks/quality/grid_table.py results/2026-11-20_full_scale_cpu/result.json [--arms lfm mixup ...]

For the README of a results folder: one row a number, one column an arm; accuracy in %, differences in points with the
95 % t-interval over paired seeds, bold where it excludes 0.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

NUMBERS = {
    "clean/all": "clean, all test images",
    "calibration/expected calibration error": "calibration error (lower is better)",
    "noise/sigma 0.1": "Gaussian noise 0.1",
    "noise/sigma 0.2": "Gaussian noise 0.2",
    "noise/salt and pepper 0.1": "salt and pepper, 10 %",
    "corruptions/mean accuracy": "corruptions, severity 3, mean",
    "corruptions/noise": "corruptions: noise",
    "corruptions/blur": "corruptions: blur",
    "corruptions/weather": "corruptions: weather",
    "corruptions/digital": "corruptions: digital",
    "texture/low pass 0.3": "low pass 0.3 (description)",
    "texture/high pass 0.3": "high pass 0.3 (description)",
    "texture/2x2": "2x2 patches shuffled (description)",
    "eps_curve/linf 1/255": "white-box, 1/255",
    "eps_curve/linf 2/255": "white-box, 2/255",
    "eps_curve/linf 4/255": "white-box, 4/255",
    "white_box/pgd": "white-box, 8/255",
    "strong/PGD-30 without random start": "PGD-30 from the image itself, 8/255",
    "strong/standard": "standard suite, 8/255",
    "transfer/source": "transfer from a plain net, 8/255",
    "transfer/source, linf 16/255": "transfer from a plain net, 16/255",
    "transfer/gray-box": "gray-box: same method, other seed, 8/255",
    "transfer/methods removed": "from the same net without its masks, 8/255",
}


def cell(row: dict[str, Any]) -> str:
    text = f"{100 * row['mean']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    return f"**{text}**" if row["low"] > 0 or row["high"] < 0 else text


def table(found: dict[str, Any], arms: list[str]) -> str:
    lines = [f"| number | plain | {' | '.join(arms)} |", "|---" * (len(arms) + 2) + "|"]
    for number, said in NUMBERS.items():
        rows = found["points"].get(number, {})
        if "plain" not in rows and not any(arm in rows for arm in arms):
            continue
        plain = f"{100 * rows['plain']['mean']:.1f}" if "plain" in rows else ""
        cells = [cell(rows[f"{arm} - plain"]) if f"{arm} - plain" in rows else "" for arm in arms]
        if "plain" not in rows:  # the plain net has no such number
            cells = [f"{100 * rows[arm]['mean']:.1f}" if arm in rows else "" for arm in arms]
        lines.append(f"| {said} | {plain} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--arms", nargs="*", default=[])
    args = parser.parse_args()
    result = json.loads(args.result.read_text(encoding="utf-8"))
    sys.stdout.write(table(result, args.arms or [arm for arm in result["arms"] if arm != "plain"]) + "\n")
