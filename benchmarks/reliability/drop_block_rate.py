"""Which share of a feature map does DropBlock really drop? Hardy, torchvision and timm, asked for p, on small maps.

Each implementation drops blocks of a map of ones many times; the share of zeros is its rate. Beside it stands the rate
that follows from where it places blocks: a value under m possible blocks of chance gamma is dropped with probability
1 - (1 - gamma)^m. An implementation that refuses a size has no rate.

    python benchmarks/reliability/drop_block_rate.py [--values 2000000] [--p 0.1 0.25 0.5]

Rule (decided before the runs): every measured rate lies within 4 standard errors of its formula, and those of Hardy
within 4 standard errors of p.
"""

import argparse
import json
import sys
from collections.abc import Callable

import timm
import torch
import torchvision
from timm.layers import drop_block_2d
from torchvision.ops import drop_block2d

from hardy.methods.drop_block import drop_block, drop_rate, seed_rate
from hardy.seeding import keys, root

SIZES, BLOCKS = (2, 4, 7, 8, 14, 16, 32), (3, 5, 7)


def ours(x: torch.Tensor, p: float, k: int) -> torch.Tensor:
    gamma = seed_rate((x.shape[2], x.shape[3]), p=p, block_size=k, rate="exact")
    key = keys(root(0, "bench"), torch.arange(len(x)))
    return drop_block(x, gamma=gamma, block_size=k, shared=False, scale=1.0, training=True, key=key)


def of_torchvision(x: torch.Tensor, p: float, k: int) -> torch.Tensor:
    return drop_block2d(x, p, k)


def of_timm(x: torch.Tensor, p: float, k: int) -> torch.Tensor:
    return drop_block_2d(x, drop_prob=p, block_size=k, couple_channels=False)


def inside(size: int, p: float, k: int) -> float:
    """Blocks inside the map with the rate of the paper: torchvision, and ``rate="paper"`` of Hardy."""
    return drop_rate((size, size), gamma=seed_rate((size, size), p=p, block_size=k, rate="paper"), block_size=k)


def across(size: int, p: float, k: int) -> float:
    """Blocks around any pixel, cut at the border, with the rate for blocks inside: timm."""
    gamma, k = seed_rate((size, size), p=p, block_size=k, rate="paper"), min(k, size)
    # the window of max pooling around a pixel; of an even one, timm leaves out the first row of results
    low, high = (k // 2, k // 2) if k % 2 else (k // 2 - 1, k // 2)
    near = [min(i + high, size - 1) - max(i - low, 0) + 1 for i in range(size)]
    return 1 - sum((1 - gamma) ** (a * b) for a in near for b in near) / size**2


def exact(_size: int, p: float, _k: int) -> float:
    return p


WHO: dict[str, tuple[Callable[[torch.Tensor, float, int], torch.Tensor], Callable[[int, float, int], float]]] = {
    "hardy": (ours, exact),
    "torchvision": (of_torchvision, inside),
    "timm": (of_timm, across),
}


def measure(who: str, size: int, p: float, k: int, values: int) -> dict[str, float | None]:
    """Give the measured rate, its standard error over maps and the rate by formula; None where it is refused."""
    drop, formula = WHO[who]
    try:
        y = drop(torch.ones(max(100, values // size**2 // 50), 50, size, size), p, k)
    except ValueError:
        return {"rate": None, "error": None, "formula": None}
    share = (y == 0).float().mean((2, 3)).flatten()
    return {
        "rate": share.mean().item(),
        "error": (share.std() / len(share) ** 0.5).item(),
        "formula": formula(size, p, k),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=2_000_000, help="values to drop for each number")
    parser.add_argument("--p", type=float, nargs="*", default=[0.1, 0.25, 0.5])
    args = parser.parse_args()
    torch.manual_seed(0)
    rows, wrong = [], []
    for p in args.p:
        for k in BLOCKS:
            for size in SIZES:
                row: dict[str, object] = {"p": p, "block_size": k, "size": size}
                for who in WHO:
                    row[who] = found = measure(who, size, p, k, args.values)
                    if found["rate"] is not None and abs(found["rate"] - found["formula"]) > 4 * found["error"] + 1e-6:
                        wrong.append(f"{who} p={p} block={k} size={size}: {found}")
                rows.append(row)
                shown = [
                    f"{who} {'refuses' if row[who]['rate'] is None else format(row[who]['rate'], '.4f')}" for who in WHO
                ]
                print(f"p {p:<5} block {k}  {size:>2} px   {'   '.join(shown)}")
    print("not as the formula says:", *wrong or ["nothing"], sep="\n  ")
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__}
    print(json.dumps({"question": "drop_block_rate", "versions": versions, "rows": rows, "passed": not wrong}))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
