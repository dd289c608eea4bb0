"""Copy the figures that method cards show from the results folders into ``src/hardy/methods/measured.json``.

    python benchmarks/record.py

The folders are named here; a rerun is a new folder and a new name.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TARGET = ROOT / "src" / "hardy" / "methods" / "measured.json"
STEP = "2026-11-20_methods_speed"
QUALITY = "2026-11-20_methods_digits"
POINTS = {  # point of the result -> how a card calls it
    "clean/clean": "clean",
    "noise/sigma 0.12": "Gaussian noise 0.12",
    "white_box/pgd": "white-box PGD-20",
    "transfer/plain, own seed": "transfer",
    "transfer/same method, next seed": "gray-box",
}


def read(folder: str) -> Any:
    return json.loads((RESULTS / folder / "result.json").read_text(encoding="utf-8"))


def cost() -> dict[str, Any]:
    found = read(STEP)["method_step"]
    methods = {
        name: f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for name, row in found["results"].items()
    }
    what = f"A training step of CIFAR ResNet-18 (batch {found['batch_size']}, CPU) against the plain one, ratio"
    return {"what": what, "folder": STEP, "methods": methods}


def gain() -> dict[str, Any]:
    found = read(QUALITY)
    methods = {}
    for name in found["arms"]:
        if name != "plain":
            rows = {said: found["points"][point][f"{name} - plain"] for point, said in POINTS.items()}
            methods[name] = ", ".join(
                f"{said} {100 * row['mean']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
                for said, row in rows.items()
            )
    what = (
        f"Digits, CIFAR ResNet-8, {found['seeds']} paired seeds, accuracy minus that of the plain net in points with "
        f"its 95 % interval, attacks at {found['threat']}"
    )
    return {"what": what, "folder": QUALITY, "methods": methods}


def figures() -> str:
    """Give the whole file."""
    return json.dumps({"cost": cost(), "gain": gain()}, indent=1) + "\n"


if __name__ == "__main__":
    TARGET.write_text(figures(), encoding="utf-8")
    sys.stderr.write(f"wrote {TARGET.name}\n")
