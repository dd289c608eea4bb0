"""Does the space-wise constraint of Model Doctor make a net look at the object? ETH-80, backgrounds changed by mask.

    python benchmarks/quality/backgrounds.py --data DIR [--minutes 20] [--workers 2] [--work build/backgrounds]

ETH-80: 8 categories of 10 objects, 41 views of each, on a blue cloth, with masks. Five objects of each category train,
the other five test, so that no test object was seen. Images are at 32 pixels. From each of 3 patients (ResNet-20, seeds
0 to 2) are trained: the control, the noise of Model Doctor alone, "space" (Eq. 6 alone), "both" (Eq. 5 and 6). Tested
are plain test images, images whose background is swapped with that of another category, replaced by CIFAR-10 pictures,
or by noise, and the share of gradient on the background. Rule: a difference to the control counts where its 95 %
t-interval over paired seeds excludes 0.

The last line of stdout is JSON.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

EPOCHS, SIZE, SEEDS = 12, 32, 3
ARMS = ("control", "noise_control", "space", "both")


@dataclass(frozen=True)
class Job:
    """One patient and its treatments."""

    seed: int
    data: str
    work: Path
    until: float


def eth80(folder: str) -> tuple[Any, Any, Any, Any]:
    """Give training and test images with masks (n, h, w): bool."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from hardy.data import ArrayData

    with np.load(Path(folder) / "eth80.npz") as held:
        x = torch.from_numpy(held["x"]).permute(0, 3, 1, 2).contiguous()
        masks, y = torch.from_numpy(held["masks"] != 0), torch.from_numpy(held["category"].astype(np.int64))
        names, objects = tuple(map(str, held["category_names"])), held["object_id"]
    x = F.interpolate(x.float(), size=SIZE, mode="area").round().to(torch.uint8)
    masks = F.interpolate(masks[:, None].float(), size=SIZE, mode="area")[:, 0] >= 0.5
    first = np.concatenate([sorted({int(o) for o in objects[(y == c).numpy()]})[:5] for c in range(len(names))])
    train = torch.from_numpy(np.isin(objects, first))
    whole = ArrayData.make(x, y, class_names=names, name="eth80", split="train")
    test = replace(whole, split="test").subset(~train)
    return whole.subset(train), masks[train], test, masks[~train]


def changed(test: Any, masks: Any, folder: str) -> dict[str, Any]:
    """Make the test images on other backgrounds, float in [0, 1]; which one an image gets is keyed."""
    import torch

    from hardy import seeding
    from hardy.data import load_data

    x, n = test.images(), len(test)
    u = seeding.uniform(seeding.keys(seeding.root(0, "backgrounds"), test.index), 0, (2,))
    order = u[:, 0].argsort()
    partner = torch.empty_like(order)
    partner[order] = order.roll(n // 2)
    while bool((same := test.y[partner] == test.y).any()):  # of another category
        partner[same] = (partner[same] + 41) % n
    mean = (x * ~masks[:, None]).sum((0, 2, 3)) / (~masks).sum()
    filled = torch.where(masks[:, None], mean[None, :, None, None], x)  # backgrounds without their objects
    pictures = load_data(f"cifar10:{folder}", split="test", limit=n).images()[(u[:, 1] * n).long()]
    noise = seeding.uniform(seeding.keys(seeding.root(0, "noise"), test.index), 0, x.shape[1:])
    others = {
        "swapped": filled[partner],
        "CIFAR-10 pictures": pictures,
        "noise": noise,
        "mean colour": mean[None, :, None, None],
    }
    made = {name: torch.where(masks[:, None], x, other.expand_as(x)) for name, other in others.items()}
    return {"plain": x, **made, "background alone": filled}


def run(job: Job) -> str:
    """Train a patient and its arms; what is there is read."""
    if time.time() > job.until:
        return f"seed {job.seed}: no time left"
    import torch

    import hardy
    from hardy.training import TrainRecipe

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    began = time.time()
    train, masks, test, test_masks = eth80(job.data)
    where = job.work / f"seed{job.seed}"
    options = TrainRecipe(epochs=EPOCHS, lr=0.05, batch_size=64, warmup_epochs=1.0)
    patient = hardy.load_model("cifar_resnet20", num_classes=8, input_size=SIZE, seed=job.seed)
    hardy.train(patient, train, options=options, out=where / "patient", seed=job.seed, resume=True)
    place = {int(index): i for i, index in enumerate(train.index)}
    for how in ("space", "both"):
        if how != "space" and not (where / how / "control").exists():
            shutil.copytree(where / "space" / "control", where / how / "control")  # the same training
        hardy.treat(
            patient, train, test=test, out=where / how, how=how,
            masks=lambda _, index: torch.stack([masks[place[int(i)]] for i in index]),
            options=replace(options, lr=0.01, warmup_epochs=0.0), seeds=(job.seed,), axes=("clean",),
            noise_control=how == "space",
        )  # fmt: skip
    images = changed(test, test_masks, job.data)
    found = {}
    for arm in ("patient", *ARMS):
        net = patient if arm == "patient" else hardy.load(_model(where, arm, job.seed))
        found[arm] = _measured(net.eval(), images, test.y, test_masks)
    (where / "found.json").write_text(json.dumps(found), encoding="utf-8")
    return f"seed {job.seed}: {time.time() - began:.0f} s"


def _model(where: Path, arm: str, seed: int) -> Path:
    return where / ("both" if arm == "both" else "space") / arm / f"seed{seed}" / "model.safetensors"


def _measured(net: Any, images: dict[str, Any], y: Any, masks: Any) -> dict[str, float]:
    """Give accuracies, and the share of the gradient of the true logit, by pixels, that falls on the background."""
    import torch

    with torch.no_grad():
        found = {
            name: float((torch.cat([net(part) for part in x.split(128)]).argmax(1) == y).float().mean())
            for name, x in images.items()
        }
    shares = []
    for x, labels, mask in zip(images["plain"].split(128), y.split(128), masks.split(128), strict=True):
        given = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(net(given).gather(1, labels[:, None]).sum(), given)
        size = slope.abs().sum(1)
        shares.append((size * ~mask).sum((1, 2)) / size.sum((1, 2)).clamp(min=1e-12))
    return found | {"gradient on the background": float(torch.cat(shares).mean())}


def main() -> None:
    """Run what fits into the time, and print what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("build/backgrounds"))
    args = parser.parse_args()
    import numpy as np

    from hardy.environment import environment
    from hardy.stats import mean_interval

    jobs = [Job(seed, args.data, args.work, time.time() + 60 * args.minutes) for seed in range(SEEDS)]
    with multiprocessing.get_context("spawn").Pool(args.workers, maxtasksperchild=1) as pool:
        for said in pool.imap_unordered(run, jobs, chunksize=1):
            sys.stderr.write(said + "\n")
    files = [args.work / f"seed{seed}" / "found.json" for seed in range(SEEDS)]
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    numbers: dict[str, Any] = {}
    for key in rows[0]["patient"] if rows else ():
        numbers[key] = {arm: float(np.mean([row[arm][key] for row in rows])) for arm in ("patient", *ARMS)}
        for arm in ARMS[1:]:
            paired = np.array([row[arm][key] - row["control"][key] for row in rows])
            low, high = mean_interval(paired) if len(paired) > 1 else (None, None)
            numbers[key][f"{arm} - control"] = {"mean": float(paired.mean()), "low": low, "high": high}
    train, _, test, masks = eth80(args.data)
    result = {
        "benchmark": "backgrounds",
        "seeds": len(rows),
        "epochs": EPOCHS,
        "train_images": len(train),
        "test_images": len(test),
        "background_share": float((~masks).float().mean()),
        "environment": environment("cpu"),
        "numbers": numbers,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
