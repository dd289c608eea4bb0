"""Four CIFAR-10 nets under honest attack: plain, LFM, defective convolution, lightly adversarially trained.

Question: what is the full picture of each net (every axis, with intervals and checks), and do the two methods without
adversarial training beat their own base where a light adversarial training does?

Rule, written before the runs: a net beats its base where the 95 % interval of the paired difference over images
excludes 0. One pair of seeds is an illustration of the page, no evidence for a method.

Part 1 trains the nets on images from ``HARDY_DATA``, with one recipe; the adversarial net for more epochs, as it learns
slowly. A second plain net is the source of transferred examples; LFM and defective have a sibling from another seed.

Adversarial training here is the plain form of Madry et al., "Towards deep learning models resistant to adversarial
attacks", ICLR 2018, https://arxiv.org/abs/1706.06083 (Eq. 2.1): cross-entropy of PGD images alone; 3 steps of
2.5 * eps / 3 from a random start, with the statistics of BatchNorm fixed while attacking (eval mode).

Part 2 measures every net of seed 0 on test images: all axes, the standard suite, all checks, the plain net as base; and
writes the report of all four beside the runs.

    python benchmarks/quality/adversarial.py --out runs/adversarial

Stopped runs go on where they were; finished ones are skipped. The last line is JSON.
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hardy
from hardy import io
from hardy.attacks.norms import project, random_start, steepest_step
from hardy.data import load_data
from hardy.evaluation import Budget
from hardy.evaluation.journal import Journal
from hardy.results import Result
from hardy.surgery import Attachment, Insert, insert
from hardy.threats import parse_budget
from hardy.training import DataRecipe, ModelRecipe, Recipe, RunFolder, TrainRecipe, train
from hardy.training.build import build_model, load_training_data

ARMS: dict[str, tuple[dict[str, Any], ...]] = {
    "plain": (),
    "lfm": ({"name": "lfm"},),
    "defective_conv": ({"name": "defective_conv"},),
    "adversarial": (),
}
# the slowest first; seed 1: the source of transfer and the siblings
CELLS = (
    *(("adversarial", 0), ("plain", 0), ("lfm", 0), ("defective_conv", 0)),
    *(("plain", 1), ("lfm", 1), ("defective_conv", 1)),
)


def perturb(model: nn.Module, x: Tensor, y: Tensor, key: Tensor, *, eps: float, steps: int) -> Tensor:
    """Give PGD's images: linf, steps of ``2.5 * eps / steps`` along the gradient's sign, from a random start."""
    budget = torch.full((len(x),), eps, device=x.device)
    x_adv = project(x + random_start(key, 0, x.shape[1:], eps=budget, norm="linf"), x=x, eps=budget, norm="linf")
    for _ in range(steps):
        leaf = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        moved = x_adv + 2.5 * eps / steps * steepest_step(gradient, norm="linf")
        x_adv = project(moved, x=x, eps=budget, norm="linf")
    return x_adv.detach()


@dataclass(frozen=True)
class AdversarialTraining:
    """Train on adversarial images only; a method as a user would write it."""

    eps: float
    steps: int = 3

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> Attachment:
        """Leave the layers alone."""
        del example
        return insert(model, AdversarialInputs(self, model, seed=seed), method="adversarial_training")


class AdversarialInputs(Insert):
    """Replaces every training image by an adversarial one for the weights of that step."""

    def __init__(self, spec: AdversarialTraining, model: nn.Module, *, seed: int) -> None:
        super().__init__(spec, seed=seed)
        self.model = [model]  # in a list: the model is no part of what it holds

    def inputs(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Attack the batch in eval mode and go back to training."""
        model = self.model[0].eval()
        x_adv = perturb(model, x, y, key, eps=self.spec.eps, steps=self.spec.steps)
        model.train()
        return x_adv, y


def recipe(arm: str, seed: int, args: argparse.Namespace) -> Recipe:
    """Give the recipe of a net; the images and the validation split depend on the seed alone."""
    epochs = args.adversarial_epochs if arm == "adversarial" else args.epochs
    return Recipe(
        seed=seed,
        model=ModelRecipe(name=args.net),
        data=DataRecipe(name=args.data, limit=args.images, val_fraction=0.05),
        methods=ARMS[arm],
        train=TrainRecipe(
            epochs=epochs, batch_size=128, lr=args.lr, warmup_epochs=min(1.0, epochs / 12), precision=args.precision
        ),
    )


def folder_of(arm: str, seed: int, args: argparse.Namespace) -> Path:
    path: Path = args.out / f"{arm}-seed{seed}"
    return path


def fit(arm: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Train one net, or find it trained; give its last accuracies and its seconds."""
    out = folder_of(arm, seed, args)
    if not (out / "model.safetensors").exists():
        began = time.perf_counter()
        todo = recipe(arm, seed, args)
        if arm == "adversarial":
            data, val_data = load_training_data(todo)
            run = train(
                build_model(todo, data),
                data,
                methods=[AdversarialTraining(args.eps)],
                options=todo.train,
                augment=todo.data.augment,
                val_data=val_data,
                seed=seed,
                out=out,
                resume=True,
                device="cpu",
            )
        else:
            run = train(todo, out=out, resume=True, device="cpu")
        said = f"{arm} seed {seed}: validation {run.history[-1]['val_accuracy']:.3f}"
        print(f"{said} ({time.perf_counter() - began:.0f} s)", file=sys.stderr, flush=True)
    rows = RunFolder(out).rows()
    return {
        "validation": rows[-1]["val_accuracy"],
        "train": rows[-1]["train_accuracy"],
        "epochs": len(rows),
        "seconds": sum(row["seconds"] for row in rows),
    }


def fit_all(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    with ProcessPoolExecutor(args.workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        cells = [cell for cell in CELLS if cell[0] in args.arms]
        jobs = {f"{arm}-seed{seed}": pool.submit(fit, arm, seed, args) for arm, seed in cells}
        return {name: job.result() for name, job in jobs.items()}


def net_of(arm: str, seed: int, args: argparse.Namespace) -> nn.Module:
    return io.load(folder_of(arm, seed, args) / "model.safetensors").eval()


def measure(arm: str, args: argparse.Namespace) -> Path:
    """Evaluate one net, or find it evaluated."""
    path = folder_of(arm, 0, args) / "result.json"
    if path.exists():
        return path
    images = load_data(args.data, split="test", limit=args.test_images)
    journal = path.with_suffix(".partial")
    result = hardy.evaluate(
        net_of(arm, 0, args),
        images.images(),
        images.y,
        threat=hardy.Threat("linf", args.eps),
        sources=[("plain, seed 1", net_of("plain", 1, args))],
        siblings=[("same method, seed 1", net_of(arm, 1, args))] if (arm, 1) in CELLS and arm != "plain" else [],
        base=net_of("plain", 0, args) if arm != "plain" else None,
        rows=images.index,
        checks="full",
        budget=Budget(queries=args.queries, min_norm_steps=args.min_norm_steps),
        journal=journal,
        model_name=arm,
        data_name=f"{images.name} {images.split}",
        class_names=images.class_names,
        methods=io.read(path.parent / "model.safetensors").trained_with,
        command="python benchmarks/quality/adversarial.py",
    )
    result.save(path)
    Journal(journal).clear()
    print(f"{arm}: evaluated in {result.seconds:.0f} s", file=sys.stderr, flush=True)
    return path


def measure_all(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate all nets, write the report, and give the figures."""
    with ProcessPoolExecutor(args.workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        jobs = {arm: pool.submit(measure, arm, args) for arm in sorted(args.arms, key=lambda arm: arm != "adversarial")}
        paths = {arm: jobs[arm].result() for arm in args.arms}
    hardy.report([path.parent for path in paths.values()], out=args.out / "report.html")
    return {arm: figures(Result.read(path)) for arm, path in paths.items()}


def figures(result: Result) -> dict[str, Any]:
    """Give every accuracy with its interval, the verdict against the base, and the checks that did not pass."""
    return {
        "n": result.n,
        "axes": {
            axis.name: {p.label: [round(v, 4) for v in (p.accuracy, p.low, p.high)] for p in axis.points}
            for axis in result.axes
        },
        "passes": {p.label: p.passes for p in result.axis("white_box").points if p.passes},
        "median_distance": result.point("minimal_norm").details.get("median_distance"),
        "versus": [asdict(v) for v in result.versus],
        "checks": {c.code: [c.status, c.evidence] for c in result.checks if c.status != "pass"},
        "passed": sorted(c.code for c in result.checks if c.status == "pass"),
        "seconds": round(result.seconds),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/adversarial"))
    parser.add_argument("--data", help="default: cifar10: and the folder that HARDY_DATA names")
    parser.add_argument("--net", default="cifar_resnet20")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--images", type=int, default=20000, help="training images")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--adversarial-epochs", type=int, default=15)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--eps", type=parse_budget, default=8 / 255)
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="bf16-mixed")
    parser.add_argument("--test-images", type=int, default=200)
    parser.add_argument("--queries", type=int, default=300, help="of the axis query, per image")
    parser.add_argument("--min-norm-steps", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    args = parser.parse_args()
    if args.data is None:
        if "HARDY_DATA" not in os.environ:
            parser.error("--data or the environment variable HARDY_DATA must name a folder with cifar10.npz")
        args.data = f"cifar10:{os.environ['HARDY_DATA']}"
    trained = fit_all(args)
    found = {"benchmark": "adversarial", "hardy": hardy.__version__, "trained": trained, "nets": measure_all(args)}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
