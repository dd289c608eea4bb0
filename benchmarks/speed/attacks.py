"""How much faster is the standard suite than AutoAttack, and PGD than torchattacks and foolbox, at equal verdicts?

Same net, same images, one process. Each round times both sides one after the other, in alternating order; the ratio of
a round is paired, so that a slow minute of the machine hits both. Printed: the median ratio (peer / hardy) and its 95 %
bootstrap interval, and the median ratio of processor times, which other programs disturb less. Passes are rows that
went through the net, counted by the same wrapper for both sides, padding and all checks included. Both sides get the
same batch size; a verdict is the net's prediction in float32.

suite       ``hardy.evaluate(axes=["white_box"])`` with its guards, controls and derived checks (with ``--bare`` the
            attacks alone), against AutoAttack standard of pyautoattack
pgd         ``hardy.attack`` with PGD-20 against torchattacks and foolbox: same steps, step size, random start; hardy's
            time holds the clean prediction and the verification, which the others leave to the caller
linear      time of the quick suite on n, 2n and 4n images (the same ones again, as other rows) per image
invariance  verdicts of the standard suite on the standard net and of the quick suite on the robust one, in batches of 7
            and of 64 in another order; margins under 1e-5 may fall on the other side and are listed

    python benchmarks/speed/attacks.py --standard runs/adversarial/plain-seed0 \
        --robust runs/adversarial/adversarial-seed0

A net is a run folder, a checkpoint, or ``small``: a small CNN trained on the digits at the start (eps 0.1), which shows
that the script works. Other nets see CIFAR-10's test images from HARDY_DATA.

Bounds (decided before the runs). Standard net: suite at least 8x less time and 20x fewer passes, PGD at least 3x less
time. Robust net: suite at least 1.5x less time, PGD never slower. Both: at least 99 % equal verdicts, robust accuracy
never more than 0.5 points higher; time per image at 4n at most 1.1 of that at n; no verdict that changes.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import torch
import torch.nn.functional as F
import torchattacks
from pyautoattack import AutoAttack
from torch import Tensor, nn

import hardy
from hardy.attacks import PGD
from hardy.attacks.suites import suite
from hardy.data import load_data
from hardy.threats import parse_budget

BOUNDS = {
    "standard": {"suite": 8.0, "passes": 20.0, "torchattacks": 3.0, "foolbox": 3.0},
    "robust": {"suite": 1.5, "torchattacks": 1.0, "foolbox": 1.0},
}
PARTS = ("suite", "pgd", "linear", "invariance")
STEPS = 20
Found = dict[str, Any]  # a part of the JSON document


class Counted(nn.Module):
    """A net that counts the rows that pass through it, and through copies of it, forward and backward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, rows = net, {"forward": 0, "backward": 0}

        def count(kind: str, n: int) -> dict[str, int]:  # a copy of the module keeps this very function
            rows[kind] += n
            return rows

        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits."""
        self.count("forward", len(x))
        logits: Tensor = self.net(x)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self.count("backward", len(gradient)) and None)
        return logits


@dataclass(frozen=True)
class Case:
    """What both sides get."""

    net: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    batch_size: int
    seed: int

    @property
    def threat(self) -> hardy.Threat:
        """The budget as hardy takes it."""
        return hardy.Threat("linf", self.eps)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give images and labels in batches."""
        return zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True)


def suite_by_hardy(case: Case) -> Tensor:
    """Run the axis with everything that comes with it by default."""
    result = hardy.evaluate(
        case.net,
        case.x,
        case.y,
        threat=case.threat,
        axes=["white_box"],
        seed=case.seed,
        batch_size=case.batch_size,
    )
    return torch.from_numpy(np.asarray(result.outcomes("white_box")))


def suite_by_hardy_bare(case: Case) -> Tensor:
    """Run the attacks of the suite and nothing else."""
    return in_sequence(case, "standard")[0]


def suite_by_autoattack(case: Case) -> Tensor:
    """Run AutoAttack standard."""
    logging.disable(logging.CRITICAL)
    attack = AutoAttack(case.net, norm="Linf", eps=case.eps, version="standard", seed=case.seed)
    x_adv, _ = attack.run_standard_evaluation(case.x, case.y, batch_size=case.batch_size)
    logging.disable(logging.NOTSET)
    return x_adv


def pgd_by_hardy(case: Case) -> Tensor:
    """Run PGD-20."""
    found = hardy.attack(
        case.net,
        case.x,
        case.y,
        PGD(steps=STEPS),
        threat=case.threat,
        seed=case.seed,
        batch_size=case.batch_size,
    )
    return ~found.success


def pgd_by_torchattacks(case: Case) -> Tensor:
    """Run PGD-20 of torchattacks; no verdict comes with it."""
    torch.manual_seed(case.seed)
    attack = torchattacks.PGD(case.net, eps=case.eps, alpha=2.5 * case.eps / STEPS, steps=STEPS, random_start=True)
    return torch.cat([attack(x, y) for x, y in case.batches()])


def pgd_by_foolbox(case: Case) -> Tensor:
    """Run PGD-20 of foolbox."""
    torch.manual_seed(case.seed)
    model = foolbox.PyTorchModel(case.net, bounds=(0, 1), device=case.x.device)
    attack = foolbox.attacks.LinfPGD(rel_stepsize=2.5 / STEPS, steps=STEPS, random_start=True)
    return torch.cat([attack(model, x, y, epsilons=case.eps)[1] for x, y in case.batches()])


@torch.no_grad()
def right(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Predict once more, in float32."""
    return torch.cat([net(a).argmax(1) == b for a, b in zip(x.split(64), y.split(64), strict=True)])


def timed(run: Callable[[Case], Tensor], case: Case) -> dict[str, Any]:
    """Time one side and count its passes; a side gives verdicts, or images that are judged after the clock stops."""
    counted = Counted(case.net).eval()
    began, worked = time.perf_counter(), time.process_time()
    found = run(replace(case, net=counted))
    seconds, cpu = time.perf_counter() - began, time.process_time() - worked
    standing = found if found.dtype == torch.bool else right(case.net, found, case.y)
    passes = dict(counted.count("forward", 0))
    return {"seconds": seconds, "cpu": cpu, "standing": standing, "passes": passes}


def side_by_side(ours: Callable[[Case], Tensor], peer: Callable[[Case], Tensor], case: Case, rounds: int) -> Found:
    """Time both in alternating order; compare verdicts image by image."""
    pairs = []
    for number in range(rounds):
        seeded = replace(case, seed=number)
        if number % 2:
            b, a = timed(peer, seeded), timed(ours, seeded)
        else:
            a, b = timed(ours, seeded), timed(peer, seeded)
        pairs.append((a, b))
    passes = [[sum(side["passes"].values()) for side in pair] for pair in pairs]
    standing = torch.stack([torch.stack([side["standing"] for side in pair]) for pair in pairs])  # rounds 2 n
    return {
        "images": len(case.x),
        "time_ratio": interval([b["seconds"] / a["seconds"] for a, b in pairs]),
        "cpu_ratio": interval([b["cpu"] / a["cpu"] for a, b in pairs]),
        "passes_ratio": interval([b / a for a, b in passes]),
        "agreement": float((standing[:, 0] == standing[:, 1]).float().mean()),
        "robust_accuracy": {
            "hardy": float(standing[:, 0].float().mean()),
            "peer": float(standing[:, 1].float().mean()),
        },
        "rounds": [
            [{"seconds": side["seconds"], "cpu": side["cpu"], **side["passes"]} for side in pair] for pair in pairs
        ],
    }


def linear(case: Case, rounds: int) -> Found:
    """Time the quick suite on n, 2n and 4n images, per image."""
    case = replace(case, batch_size=min(32, len(case.x)))
    times: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for number in range(rounds):
        for k in sorted(times, reverse=bool(number % 2)):
            began = time.perf_counter()
            in_sequence(replace(case, x=case.x.repeat(k, 1, 1, 1), y=case.y.repeat(k), seed=number), "quick")
            times[k].append((time.perf_counter() - began) / k)
    return {f"{k}n": interval([a / b for a, b in zip(times[k], times[1], strict=True)]) for k in (2, 4)}


def in_sequence(case: Case, name: str, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Run a suite, each attack on what stands; give which images stand, and each one's lowest margin."""
    rows = torch.arange(len(case.x)) if rows is None else rows
    standing, margin = torch.ones(len(case.x), dtype=torch.bool), torch.full((len(case.x),), torch.inf)
    for attack in suite(name, norm="linf", num_classes=10).values():
        left = standing.nonzero()[:, 0]
        if len(left) == 0:
            break
        found = hardy.attack(
            case.net,
            case.x[left],
            case.y[left],
            attack,
            threat=case.threat,
            rows=rows[left],
            seed=case.seed,
            batch_size=case.batch_size,
        )
        standing[left], margin[left] = ~found.success, torch.minimum(margin[left], found.margin)
    return standing, margin


def invariance(case: Case, name: str) -> Found:
    """Compare the verdicts of batches of 64 with those of 7 in another order."""
    a, a_margin = in_sequence(replace(case, batch_size=64), name)
    order = torch.randperm(len(case.x), generator=torch.Generator().manual_seed(0))
    back = order.argsort()
    b, b_margin = in_sequence(replace(case, x=case.x[order], y=case.y[order], batch_size=7), name, rows=order)
    b, b_margin = b[back], b_margin[back]
    differ = (a != b).nonzero()[:, 0].tolist()
    close = [i for i in differ if min(abs(float(a_margin[i])), abs(float(b_margin[i]))) < 1e-5]
    return {"suite": name, "images": len(a), "differ": len(differ) - len(close), "near_zero": close}


def interval(ratios: list[float]) -> dict[str, float]:
    """Give the median and its 95 % bootstrap interval."""
    values = np.array(ratios)
    draws = np.random.default_rng(0).choice(values, size=(2000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def small(robust: bool, x: Tensor, y: Tensor) -> nn.Module:
    """Train a small CNN on the digits, on adversarial images if asked for."""
    torch.manual_seed(0)
    conv = [(1, 16, 1), (16, 32, 2), (32, 32, 1)]
    layers = [layer for i, o, s in conv for layer in (nn.Conv2d(i, o, 3, stride=s, padding=1), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for epoch in range(15):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(128):
            images = x[rows]
            if robust:
                attack, threat = PGD(steps=3, stop="never"), hardy.Threat("linf", 0.1)
                images = hardy.attack(net.eval(), images, y[rows], attack, threat=threat, rows=rows, seed=epoch).x_adv
            net.train()
            optimizer.zero_grad()
            F.cross_entropy(net(images), y[rows]).backward()
            optimizer.step()
    return net.eval()


def load(what: str, *, robust: bool) -> nn.Module:
    """Load a net, or train the small one."""
    if what == "small":
        data = load_data("digits", split="train", val_fraction=0.0)
        return small(robust, data.images(), data.y)
    path = Path(what)
    net: nn.Module = hardy.load(path / "model.safetensors" if path.is_dir() else path)
    return net.eval()


def measure(role: str, case: Case, args: argparse.Namespace) -> Found:
    """Run the parts on one net."""
    few = args.suite_images if role == "robust" else args.images
    in_sequence(replace(case, x=case.x[:8], y=case.y[:8]), "quick")  # warm up
    out: Found = {}
    if "pgd" in args.only:
        for name, peer in (("torchattacks", pgd_by_torchattacks), ("foolbox", pgd_by_foolbox)):
            out[name] = side_by_side(pgd_by_hardy, peer, case, args.rounds)
            tell(role, name, out[name])
    if "suite" in args.only:
        ours = suite_by_hardy_bare if args.bare else suite_by_hardy
        out["suite"] = side_by_side(
            ours, suite_by_autoattack, replace(case, x=case.x[:few], y=case.y[:few]), args.rounds
        )
        tell(role, "suite", out["suite"])
    if "linear" in args.only:
        out["linear"] = linear(replace(case, x=case.x[:32], y=case.y[:32]), args.rounds)
        print(f"{role} linear: {out['linear']}", file=sys.stderr, flush=True)
    if "invariance" in args.only:
        out["invariance"] = invariance(case, "quick" if role == "robust" else "standard")
        print(f"{role} invariance: {out['invariance']}", file=sys.stderr, flush=True)
    return out


def tell(role: str, name: str, found: dict[str, Any]) -> None:
    r, bound = found["time_ratio"], BOUNDS[role].get(name)
    cpu, passes = (found[name]["median"] for name in ("cpu_ratio", "passes_ratio"))
    accuracy = found["robust_accuracy"]
    print(
        f"{role} {name}: time {r['median']:.2f}x [{r['low']:.2f}, {r['high']:.2f}] (bound {bound}), "
        f"cpu {cpu:.2f}x, passes {passes:.2f}x, equal verdicts {found['agreement']:.3f}, "
        f"robust accuracy {accuracy['hardy']:.3f} against {accuracy['peer']:.3f}",
        file=sys.stderr,
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--standard", default="small", help="run folder, checkpoint, or small; none to leave it out")
    parser.add_argument("--robust", default="small", help="the same, for an adversarially trained net")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument(
        "--suite-images", type=int, default=24, help="for the suite on the robust net, the slowest part"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--bare", action="store_true", help="time the attacks of the suite without guards and checks")
    parser.add_argument("--eps", type=parse_budget, help="default: 8/255; 0.1 for small")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    given = {role: what for role, what in (("standard", args.standard), ("robust", args.robust)) if what != "none"}
    digits = "small" in given.values()
    if digits and set(given.values()) != {"small"}:
        parser.error("small sees digits; give both nets or none")
    if not digits and "HARDY_DATA" not in os.environ:
        parser.error("the environment variable HARDY_DATA must name a folder with cifar10.npz")
    args.eps = args.eps or (0.1 if digits else 8 / 255)
    data = load_data("digits" if digits else f"cifar10:{os.environ['HARDY_DATA']}", split="test", limit=args.images)
    case = Case(nn.Identity(), data.images(), data.y, args.eps, args.batch_size, seed=0)
    results = {
        role: {
            "net": "small CNN on digits" if digits else Path(what).name,
            **measure(role, replace(case, net=load(what, robust=role == "robust")), args),
        }
        for role, what in given.items()
    }
    document = {
        "benchmark": "attacks",
        "data": data.name.partition(":")[0],
        "threat": str(hardy.Threat("linf", args.eps)),
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "bare": args.bare,
        "threads": args.threads,
        "device": "cpu",
        "torch": torch.__version__,
        "bounds": BOUNDS,
        "results": results,
    }
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
