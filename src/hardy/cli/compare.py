"""``hardy compare``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hardy.cli.common import Device, Json, Limit, Quiet, console, device_of, guarded, print_json
from hardy.cli.stops import stopping
from hardy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hardy.comparing.pool import Event
    from hardy.comparing.run import Plan
    from hardy.reporting import Comparison

__all__ = ["command", "show_comparison"]

WOULD = {
    "new": "train and evaluate",
    "started": "go on with its training, then evaluate",
    "trained": "evaluate",
    "finished": "nothing: finished",
}


@guarded
def command(
    recipe: Annotated[Path, typer.Argument(help="Recipe with a part compare, a TOML file.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write; default runs/RECIPE.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe, repeatable.")] = None,
    workers: Annotated[int, typer.Option("--workers", help="Local processes, a cell each.")] = 1,
    limit: Limit = None,
    device: Device = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin cells anew that another recipe made, or asked something else.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what every cell would do, and stop.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train and evaluate a grid of methods, nets and seeds under one budget; writes one page that compares them.

    Run the same command again after a stop: finished cells are left alone, the others go on. --limit is the number of
    test images of every cell. Exit code 2: some cell failed; the page is about the others.

    Examples:

        hardy compare recipes/compare_digits.toml --out runs/digits --workers 2

        hardy compare recipes/compare_digits.toml --set compare.seeds=[0,1,2,3,4] --dry-run
    """
    from hardy.comparing.run import PAGE, TABLE, compare, plan

    if workers < 1:
        raise ConfigError(f"--workers: must be at least 1; got {workers}.")
    overrides = [*(set_ or ()), *([] if limit is None else [f"evaluate.limit={limit}"])]
    where = device_of(device)
    if dry_run:
        todo = plan(recipe, out=out, overrides=overrides, overwrite=overwrite)
        if json:
            print_json(_plan(todo))
        if not quiet:
            _show_plan(todo)
        return
    try:
        made = compare(
            recipe,
            out=out,
            workers=workers,
            device=where,
            overrides=overrides,
            overwrite=overwrite,
            on_event=_teller(quiet=quiet),
        )
    except KeyboardInterrupt:
        console().print("What is finished is kept: run the same command again to go on.", highlight=False)
        raise
    folder = out or Path("runs") / recipe.stem
    if json:
        print_json({"out": str(folder), **made.to_json()})
    if not quiet:
        show_comparison(made)
        written = f"{folder / PAGE} and {TABLE}" if made.cells else folder / TABLE
        console().print(f"-> {written}", highlight=False)
    if made.missing:
        for cell in made.missing:
            console().print(f"failed: {cell.name}: {cell.why}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2)


def _teller(*, quiet: bool) -> "Callable[[Event], None]":
    """Tell what happens, a line each."""

    def tell(event: "Event") -> None:
        if stopping():  # a cell that the signal ended by another error; the others shall not begin
            raise KeyboardInterrupt
        if quiet:
            return
        text = f"{event.cell.name}: {event.what}" + (f", {event.error}" if event.error else "")
        if event.what in {"done", "failed"}:
            text = f"[{event.done}/{event.total}] {text} ({event.seconds:.0f} s)"
        console().print(text, highlight=False, markup=False, soft_wrap=True)

    return tell


def _plan(todo: "Plan") -> dict[str, Any]:
    """Describe what would be done."""
    cells = []
    for cell in todo.cells:
        forward, backward = (cell.recipe.train.epochs * count for count in cell.passes)
        cells.append(
            {
                "cell": cell.name,
                "state": todo.states[cell.name],
                "epochs": cell.recipe.train.epochs,
                "forward_passes": forward,
                "backward_passes": backward,
            }
        )
    return {"out": str(todo.out), "budget": todo.grid.compare.budget, "cells": cells}


def _show_plan(todo: "Plan") -> None:
    from rich.table import Table

    table = Table(title="forward and backward passes: of the whole training, per image", title_justify="left")
    for name in ("cell", "would", "epochs", "forward", "backward"):
        table.add_column(name, justify="left" if name in {"cell", "would"} else "right")
    for row in _plan(todo)["cells"]:
        numbers = (str(row[key]) for key in ("epochs", "forward_passes", "backward_passes"))
        table.add_row(row["cell"], WOULD[row["state"]], *numbers)
    console().print(table)


def show_comparison(made: "Comparison") -> None:
    """Print the mean of every arm on every axis in %, and whether the difference to the baseline counts."""
    from rich.table import Table

    words = {"gain": "gain", "loss": "loss", "unclear": "no difference", "few": "too few seeds", "description": ""}

    def cell(arm: str, net: str, axis: str) -> str:
        mean, gap = made.mean(arm, net, axis), made.difference(arm, net, axis)
        if mean is None:
            return "-"
        text = f"{100 * mean.mean:.1f}"
        if mean.void:
            return f"{text}\nvoid: {', '.join(mean.void)}"
        warned = "\nwarned" if mean.warned else ""
        return (
            text + warned
            if gap is None
            else f"{text}\n{100 * gap.mean:+.1f} {words.get(gap.verdict, gap.verdict)}{warned}"
        )

    seeds = f"{len(made.seeds)} {'seeds' if len(made.seeds) > 1 else 'seed'}"
    for net in made.nets:
        table = Table(title=f"{net}: accuracy in %, mean over {seeds}", title_justify="left")
        table.add_column("arm")
        for axis in made.axes:
            table.add_column(axis, justify="right")
        for arm in made.arms:
            table.add_row(arm, *(cell(arm, net, axis) for axis in made.axes), end_section=True)
        console().print(table)
    console().print(
        f"Below: difference to {made.baseline}, paired by seed; a gain or loss where its 95 % interval excludes 0. "
        "Intervals, costs and what checks warned of: on the page.",
        highlight=False,
        markup=False,
    )
