"""``hardy train``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from hardy.cli.common import Device, Download, Json, Quiet, Seed, SkipBad, console, device_of, guarded, print_json
from hardy.cli.launch import check_processes, launch, rank
from hardy.cli.stops import settle, stopping
from hardy.errors import RankError

__all__ = ["command"]


@contextmanager
def _say_how_to_go_on(recipe: Path, out: Path | None) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        settle(error)
        if not (stopping() or isinstance(error, KeyboardInterrupt | RankError)):
            raise
        folder = out or Path("runs") / recipe.stem
        if rank() == 0 and (folder / "recipe.toml").exists():
            kept = "The last checkpoint is kept." if (folder / "checkpoints").exists() else "No epoch is finished yet."
            console().print(f"{kept} Go on: add --resume (--out {folder}).", highlight=False)
        raise


@guarded
def command(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a TOML file.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder to write; default runs/RECIPE.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe, repeatable.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Over the recipe's train.epochs.")] = None,
    seed: Seed = None,
    device: Device = "auto",
    devices: Annotated[int, typer.Option("--devices", help="Local processes, a GPU or some cores each.")] = 1,
    restarts: Annotated[int, typer.Option("--restarts", help="How often to begin again when a process dies.")] = 0,
    download: Download = False,
    skip_bad: SkipBad = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a net with the methods of a recipe; writes a run folder.

    Examples:

        hardy train recipe.toml --out runs/lfm

        hardy train recipe.toml --out runs/lfm-1 --seed 1 --set train.epochs=60

        hardy train recipe.toml --devices 2 --restarts 3

        hardy train recipes/finetune_folder.toml --set data.name=folder:photos --set train.class_weights=balanced
    """
    switches = {"download": download, "skip_bad": skip_bad}
    options = {
        "out": out,
        "epochs": epochs,
        "seed": seed,
        "device": device_of(device),
        "resume": resume,
        "overrides": [*(set_ or ()), *(f"data.{name}=true" for name, on in switches.items() if on)],
    }
    check_processes(devices, restarts=restarts, device=device_of(device))
    with _say_how_to_go_on(recipe, out):
        if devices > 1 or restarts:
            done = launch(_train, recipe, options, quiet, processes=devices, restarts=restarts)
        else:
            done = _train(recipe, options, quiet)
    if rank() > 0:
        return
    last, where = done["history"][-1], done["out"]
    if json:
        print_json({"out": where, "seconds": done["seconds"], **last, "history": done["history"]})
    if not quiet:
        said = f"validation accuracy {last['val_accuracy']:.1%}, " if "val_accuracy" in last else ""
        console().print(f"{said}{done['seconds']:.0f} s of training -> {where}", highlight=False)
        console().print(f"next: hardy evaluate {where}", highlight=False)


def _train(recipe: Path, options: dict[str, Any], quiet: bool) -> dict[str, Any]:
    """Train, in this process, alone or as one of several; say what came out."""
    from hardy.cli.progress import training_progress
    from hardy.training import train

    with training_progress(quiet=quiet or rank() > 0) as on_progress:
        run = train(recipe, on_progress=on_progress, **options)
    return {"out": str(run.folder), "seconds": run.seconds, "history": run.history}
