"""``hardy train``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from hardy.cli.common import Device, Json, Quiet, Seed, console, device_of, guarded, print_json

__all__ = ["command"]


@contextmanager
def _say_how_to_go_on(recipe: Path, out: Path | None) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        folder = out or Path("runs") / recipe.stem
        if (folder / "checkpoints").exists():
            console().print(f"The last whole epoch is kept. Go on: add --resume (--out {folder}).", highlight=False)
        raise


@guarded
def command(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a TOML file.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder to write; default runs/RECIPE.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe, repeatable.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Over the recipe's train.epochs.")] = None,
    seed: Seed = None,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a net with the methods of a recipe; writes a run folder.

    Examples:

        hardy train recipe.toml --out runs/lfm

        hardy train recipe.toml --out runs/lfm-1 --seed 1 --set train.epochs=60
    """
    from hardy.cli.progress import training_progress
    from hardy.training import train

    with training_progress(quiet=quiet) as on_progress, _say_how_to_go_on(recipe, out):
        run = train(
            recipe,
            out=out,
            epochs=epochs,
            seed=seed,
            device=device_of(device),
            resume=resume,
            overrides=set_ or (),
            on_progress=on_progress,
        )
    last = run.history[-1]
    if json:
        print_json({"out": str(run.folder), "seconds": run.seconds, **last, "history": run.history})
    if not quiet:
        said = f"validation accuracy {last['val_accuracy']:.1%}, " if "val_accuracy" in last else ""
        console().print(f"{said}{run.seconds:.0f} s of training -> {run.folder}", highlight=False)
        console().print(f"next: hardy evaluate {run.folder}", highlight=False)
