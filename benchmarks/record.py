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
TREATMENTS = "2026-11-21_model_doctor"
ARMS = {  # folder of a grid -> its arms -> the method each is, at its defaults but for the words in brackets
    "2026-11-20_full_scale_cpu": {
        "lfm": "lfm",
        "masks 0.5": "defective_conv",
        "drop_block": "drop_block",
        "random_erasing": "random_erasing",
        "mixup": "mixup",
    },
    "2026-11-21_patterns_cpu": {
        "fpcc": "fpcc",
        "sfm": "sfm",
        "cfs": "cfs",
        "pro": "pro",
        "fast_at, equal cost": "fast_at",
        "pgd_at 3, equal cost": "pgd_at",
    },
}
GRID_POINTS = {
    "clean/all": "clean",
    "corruptions/mean accuracy": "corruptions",
    "eps_curve/linf 2/255": "white-box PGD-20 at 2/255",
    "white_box/pgd": "at 8/255",
    "transfer/source": "transfer at 8/255",
    "transfer/gray-box": "gray-box at 8/255",
}
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
    methods = {name: differences(found, name, POINTS) for name in found["arms"] if name != "plain"}
    what = (
        f"Digits, CIFAR ResNet-8, {found['seeds']} paired seeds, accuracy minus that of the plain net in points with "
        f"its 95 % interval, attacks at {found['threat']}"
    )
    return {"what": what, "folder": QUALITY, "methods": methods}


def grid(folder: str) -> dict[str, Any]:
    found = read(folder)
    arms = ARMS[folder].items()
    methods = {name: differences(found, arm, GRID_POINTS) + _shortened(found, arm) for arm, name in arms}
    size = found["size"]
    what = (
        f"CIFAR-10, {size['images']:,} training images, ResNet-20, {size['epochs']} epochs, {found['seeds']} paired "
        "seeds, accuracy minus that of the plain net in points with its 95 % interval"
    )
    return {"what": what, "folder": folder, "methods": methods}


def _shortened(found: Any, arm: str) -> str:
    """Say by how much an arm was cut to cost what the plain one does."""
    share = found["arms"][arm].get("epochs", 1)
    return "" if share == 1 else f"; {arm}: {found['size']['epochs'] * share:g} epochs"


def treatment() -> dict[str, Any]:
    """Say what Model Doctor did beside its control."""
    found = json.loads((RESULTS / TREATMENTS / "treatments.json").read_text(encoding="utf-8"))
    clean = found["differences"]["clean/clean"]
    said = ", ".join(
        f"{words} {100 * row['mean']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        for words, row in (
            ("less its control", clean["channel - control"]["all"]),
            ("less the untreated net", clean["channel - before"]["all"]),
            ("the untreated net less the control", clean["before - control"]["all"]),
        )
    )
    what = f"CIFAR-10, {len(found['nets'])} nets x {found['size']['seeds']} seeds, clean accuracy in points"
    return {"what": what, "folder": TREATMENTS, "methods": {"model_doctor": said}}


def differences(found: Any, arm: str, points: dict[str, str]) -> str:
    rows = {said: found["points"][point][f"{arm} - plain"] for point, said in points.items()}
    return ", ".join(
        f"{said} {100 * row['mean']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        for said, row in rows.items()
    )


def figures() -> str:
    """Give the whole file."""
    return (
        json.dumps(
            {"cost": cost(), "gain": gain()} | {folder: grid(folder) for folder in ARMS} | {TREATMENTS: treatment()},
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    TARGET.write_text(figures(), encoding="utf-8")
    sys.stderr.write(f"wrote {TARGET.name}\n")
