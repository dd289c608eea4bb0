"""Does Model Doctor make trained nets better than the same further training without it?

    python benchmarks/quality/treatments.py --data DIR [--scale cpu|gpu] [--nets ...] [--minutes 60] [--workers 2]
        [--work build/treatments] [--out build/treatments]

Question: the mean gain of the channel-wise constraint in clean accuracy over its control, over nets and seeds, beside
the paper's +0.68 points on CIFAR-10 over 16 nets (mean of its Table 1; no control of equal further training there) and
the re-run of a student that saw none at a small learning rate; and what it does to calibration, noise, small attacks.

Each patient is a net trained on CIFAR-10 from a seed. From it are trained, for as many epochs again by the recipe of
the paper (SGD, learning rate 0.01, cosine): the control, the noise of Model Doctor alone, the constraint with the
defaults (the paper's at batches of 128), and with the preset "repo"; from slow nets control and defaults alone. Rule: a
difference counts where the 95 % t-interval over the means of the nets excludes 0 (seeds of one net are not independent
nets); the interval of one net is over its seeds. Means over nets are of the nets that have both arms.

Trainings and evaluations are kept in --work and go on where they stopped. The last line of stdout is JSON.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

SHARED = ("control",)  # arms that two treatments of one patient have in common
AXES = ("clean", "calibration")
HARD = ("noise", "eps_curve")  # on few images


@dataclass(frozen=True)
class Size:
    """How much is trained and tested.

    Attributes:
        images: Training images.
        epochs: Of the patient, and again of every arm.
        seeds: Of the patients.
        hard_images: Test images of noise and attacks; clean accuracy and calibration take all.
    """

    images: int
    epochs: int
    seeds: int
    hard_images: int


@dataclass(frozen=True)
class Net:
    """A net and how it is built; ``share`` cuts the training images, and ``arms`` is what a slow one can afford."""

    name: str
    args: tuple[tuple[str, int], ...] = ()
    share: float = 1.0
    full: bool = True


SIZES = {"cpu": Size(10_000, 6, 3, 256), "gpu": Size(40_000, 60, 3, 1000)}
NETS = {
    "cpu": {
        "ResNet-20": Net("cifar_resnet20", full=False),
        "VGG-16, a quarter wide": Net("cifar_vgg16", (("width", 16),)),
        "ResNet-10-T (timm)": Net("timm:resnet10t"),
        "DenseNet-121, growth 4": Net("cifar_densenet121", (("growth", 4),), share=0.4, full=False),
    },
    "gpu": {
        "ResNet-18": Net("cifar_resnet18"),
        "VGG-16": Net("cifar_vgg16"),
        "DenseNet-121": Net("cifar_densenet121"),
        "WRN-28-10": Net("cifar_wrn28_10", full=False),
        "GoogLeNet": Net("cifar_googlenet"),
        "SENet-18": Net("cifar_senet18"),
        "ResNet-10-T (timm)": Net("timm:resnet10t"),
    },
}


@dataclass(frozen=True)
class Job:
    """One patient and its treatments."""

    label: str
    net: Net
    seed: int
    size: Size
    data: str
    work: Path
    device: str
    until: float


def run(job: Job) -> str:
    """Train a patient and all that follows; what is there is read."""
    if time.time() > job.until:
        return f"{job.label} {job.seed}: no time left"
    import torch

    import hardy
    from hardy.data import load_data
    from hardy.evaluation import evaluate
    from hardy.results import Result
    from hardy.training import TrainRecipe

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    began = time.time()
    limit = round(job.size.images * job.net.share)
    images = load_data(f"cifar10:{job.data}", split="train", val_fraction=0.0).limit(limit, seed=0)
    test = load_data(f"cifar10:{job.data}", split="test")
    few = test.limit(job.size.hard_images, seed=0)
    where = job.work / job.label.replace(" ", "_") / f"seed{job.seed}"
    base = TrainRecipe(epochs=job.size.epochs, lr=0.1, warmup_epochs=1.0)
    patient = hardy.load_model(job.net.name, num_classes=10, input_size=32, args=dict(job.net.args), seed=job.seed)
    hardy.train(patient, images, options=base, out=where / "patient", seed=job.seed, resume=True, device=job.device)
    treatments: dict[str, Any] = {"channel": {"noise_control": job.net.full}}
    if job.net.full:
        treatments["repo"] = {"preset": "repo"}
    for name, more in treatments.items():
        out = where / name
        for arm in SHARED:  # the same training: not done twice
            done = where / "channel" / arm
            if name != "channel" and done.exists() and not (out / arm).exists():
                shutil.copytree(done, out / arm)
        hardy.treat(
            patient, images, test=test, out=out, how="channel", options=replace(base, lr=0.01, warmup_epochs=0.0),
            seeds=(job.seed,), axes=AXES, device=job.device, **more,
        )  # fmt: skip
    for folder in sorted(p.parent for p in where.rglob("result.json")):
        file = folder / "hard.json"
        if file.exists():
            continue
        net = patient if folder.name == "before" else hardy.load(folder / "model.safetensors")
        found = evaluate(
            net.to(job.device), few.images().to(job.device), few.y.to(job.device), axes=HARD,
            rows=few.index.to(job.device), suite="quick",
        )  # fmt: skip
        found.save(file)
        Result.read(file)
    return f"{job.label} {job.seed}: {time.time() - began:.0f} s"


def numbers(folder: Path) -> dict[str, float]:
    """Read what was measured of one net."""
    from hardy.results import Result

    found = {}
    for file in (folder / "result.json", folder / "hard.json"):
        for axis in Result.read(file).axes:
            for each in (*axis.points, *axis.scores):
                value = each.accuracy if hasattr(each, "accuracy") else each.value
                found[f"{axis.name}/{each.label}"] = float(value)
    return found


def collect(work: Path, nets: dict[str, Net], seeds: int) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Read all nets: label of the net -> arm -> one dictionary of numbers for each seed that is finished."""
    places = {
        "before": "channel/before",
        "control": "channel/control/seed{0}",
        "noise_control": "channel/noise_control/seed{0}",
        "channel": "channel/channel/seed{0}",
        "repo": "repo/channel/seed{0}",
    }
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for label, net in nets.items():
        arms = list(places) if net.full else ["before", "control", "channel"]
        for seed in range(seeds):
            where = work / label.replace(" ", "_") / f"seed{seed}"
            folders = {arm: where / places[arm].format(seed) for arm in arms}
            if all((folder / "hard.json").exists() for folder in folders.values()):
                for arm, folder in folders.items():
                    found.setdefault(label, {}).setdefault(arm, []).append(numbers(folder))
    return found


def summary(found: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, Any]:
    """Give paired differences to the control by net, and over nets."""
    import numpy as np

    from hardy.stats import mean_interval

    def said(values: list[float]) -> dict[str, Any]:
        low, high = mean_interval(np.array(values)) if len(values) > 1 else (None, None)
        return {"n": len(values), "mean": float(np.mean(values)), "low": low, "high": high, "values": values}

    compared = [(arm, "control") for arm in ("before", "noise_control", "channel", "repo")]
    compared += [("channel", "noise_control"), ("channel", "before")]
    keys = sorted({key for net in found.values() for arm in net.values() for row in arm for key in row})
    differences: dict[str, Any] = {}
    for key in keys:
        for arm, other in compared:
            pairs = {
                label: [a[key] - c[key] for a, c in zip(net[arm], net[other], strict=True) if key in a and key in c]
                for label, net in found.items()
                if arm in net and other in net
            }
            pairs = {label: values for label, values in pairs.items() if values}
            if pairs:
                differences.setdefault(key, {})[f"{arm} - {other}"] = {
                    "all": said([float(np.mean(values)) for values in pairs.values()]),
                    "nets": {label: said(values) for label, values in pairs.items()},
                }
    means = {
        label: {
            arm: {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if all(key in row for row in rows)}
            for arm, rows in net.items()
        }
        for label, net in found.items()
    }
    return {"differences": differences, "means": means}


def main() -> None:
    """Run what fits into the time, and print what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--scale", choices=SIZES, default="cpu")
    parser.add_argument("--nets", nargs="*")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--work", type=Path, default=Path("build/treatments"))
    args = parser.parse_args()
    import torch

    from hardy.environment import environment

    size = SIZES[args.scale] if args.seeds is None else replace(SIZES[args.scale], seeds=args.seeds)
    nets = {label: net for label, net in NETS[args.scale].items() if args.nets is None or label in args.nets}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    until = time.time() + 60 * args.minutes
    jobs = [
        Job(label, net, seed, size, args.data, args.work, device, until)
        for seed in range(size.seeds)
        for label, net in nets.items()
    ]
    with multiprocessing.get_context("spawn").Pool(args.workers, maxtasksperchild=1) as pool:
        for said in pool.imap_unordered(run, jobs, chunksize=1):
            sys.stderr.write(said + "\n")
    found = collect(args.work, nets, size.seeds)
    result = {
        "benchmark": "treatments",
        "scale": args.scale,
        "size": asdict(size),
        "nets": {label: asdict(net) for label, net in nets.items()},
        "environment": environment(device),
        **summary(found),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
