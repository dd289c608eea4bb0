"""``hardy attack``."""

from pathlib import Path
from typing import Annotated

import typer

from hardy.cli.common import (
    BatchSize,
    Data,
    Device,
    Download,
    Json,
    Limit,
    Quiet,
    Seed,
    Size,
    SkipBad,
    Split,
    Weights,
    batch_size_of,
    console,
    device_of,
    guarded,
    in_box,
    print_json,
)

__all__ = ["command"]


@guarded
def command(
    model: Annotated[str, typer.Argument(help="Run folder, checkpoint, timm:NAME, torchvision:NAME, file.py:factory.")],
    data: Data = None,
    attack: Annotated[str, typer.Option("--attack", help="A name that `hardy attacks` lists.")] = "pgd",
    threat: Annotated[str, typer.Option("--threat", help="linf:8/255, l2:0.5, l1:12, or a preset.")] = "linf:8/255",
    split: Split = "test",
    limit: Limit = None,
    size: Size = None,
    download: Download = False,
    skip_bad: SkipBad = False,
    weights: Weights = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Save the adversarial images (.npz: x_adv y success).")
    ] = None,
    seed: Seed = None,
    device: Device = "auto",
    batch_size: BatchSize = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Attack a model once and say how often it worked; every success is verified.

    Examples:

        hardy attack runs/lfm --threat linf:4/255

        hardy attack runs/lfm --attack fgsm --threat l2:0.5 --limit 100 --out adversarial.npz
    """
    import numpy as np

    from hardy.attacks import attack as run_attack
    from hardy.cli.targets import open_data, open_target, recipe_of
    from hardy.safefile import check_writable, write_atomic
    from hardy.threats import parse_threat

    chosen = in_box(parse_threat(threat))
    where = device_of(device)
    if out is not None:
        check_writable(out)
    images = open_data(
        data,
        recipe_of(model),
        split=split,
        limit=limit,
        size=size,
        seed=seed or 0,
        model=model,
        download=download,
        skip_bad=skip_bad,
    )
    target = open_target(model, images, device=where, weights=weights)
    found = run_attack(
        target.model,
        images.images().to(where),
        images.y.to(where),
        attack,
        threat=chosen,
        rows=images.index.to(where),
        seed=seed or 0,
        batch_size=batch_size_of(batch_size, shape=images.shape),
    )
    summary = {
        "attack": found.attack,
        "threat": str(chosen),
        "n": len(images.y),
        "clean_accuracy": float(found.clean_correct.float().mean()),
        "robust_accuracy": float((~found.success).float().mean()),
        "forward_passes": found.passes["forward"],
        "backward_passes": found.passes["backward"],
    }
    if out is not None:
        arrays = {"x_adv": found.x_adv, "y": images.y, "success": found.success, "margin": found.margin}
        plain = {name: value.cpu().numpy() for name, value in arrays.items()}
        write_atomic(out, lambda file: np.savez_compressed(file, **plain))  # type: ignore[arg-type]  # savez takes names
    if json:
        print_json(summary)
    if not quiet:
        console().print(
            f"{found.attack}, {chosen}: accuracy {summary['clean_accuracy']:.1%} clean, "
            f"{summary['robust_accuracy']:.1%} under attack ({summary['n']} images, "
            f"{summary['forward_passes']} forward and {summary['backward_passes']} backward passes)",
            highlight=False,
        )
