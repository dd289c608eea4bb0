"""``hardy.compare``: recipe in, run folders and one page out."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hardy.comparing.cells import Cell, State, cells_of, state_of
from hardy.comparing.pool import Event, work_through
from hardy.comparing.recipe import PAGE, TABLE, Grid, load_grid
from hardy.comparing.trial import try_out
from hardy.errors import ConfigError, ParameterError
from hardy.locks import locked
from hardy.methods import Method
from hardy.reporting import Comparison, GridCell, grid_report
from hardy.safefile import check_writable, make_folder, write_json
from hardy.training.recipe import build_methods

__all__ = ["PAGE", "TABLE", "Plan", "compare", "plan"]


@dataclass(frozen=True)
class Plan:
    """What a comparison would do.

    Attributes:
        grid: The comparison.
        out: Its folder.
        cells: All cells, in the order in which they are begun.
        states: How far each is, by its name.
    """

    grid: Grid
    out: Path
    cells: tuple[Cell, ...]
    states: dict[str, State]


def plan(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> Plan:
    """Read and check a comparison, and look how far its cells are; nothing is written.

    Args:
        recipe: TOML file with a part ``[compare]``.
        out: Folder of the comparison; by default ``runs/NAME`` for a recipe NAME.toml.
        overrides: ``key.sub=value`` texts over the recipe.
        overwrite: Whether cells that another recipe made count as not there; else they are an error.

    Raises:
        ConfigError: the recipe is wrong, or a cell was made by another one.
        HardyError: images or nets that are not there or do not fit.
    """
    folder = Path("runs") / Path(recipe).stem if out is None else Path(out)
    grid = load_grid(recipe, overrides)
    found = try_out(grid)
    cells = cells_of(grid, folder, found.passes, found.origins)
    return Plan(grid, folder, cells, {cell.name: state_of(cell, overwrite=overwrite) for cell in cells})


def compare(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    workers: int = 1,
    device: str = "auto",
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> Comparison:
    """Train and evaluate a grid of methods, nets and seeds under one budget, and compare its arms.

    Every cell is an ordinary run folder, ``OUT/<arm>/<net>/seed<k>``. Finished cells are left alone, stopped ones go on
    from their checkpoint; one that fails does not stop the others. Then ``OUT/report.html`` and ``OUT/comparison.json``
    are written, about the cells that are finished.

    With several workers a script must call this below ``if __name__ == "__main__":``, as their processes read it.

    Args:
        recipe: TOML file: a training recipe with a part ``[compare]`` (docs/compare.md).
        out: Folder of the comparison; by default ``runs/NAME`` for a recipe NAME.toml.
        workers: Local processes, a cell and an equal share of the cores each; 1: this process. On a CPU other numbers
            of threads may change the last digits of weights.
        device: "auto", "cpu", "cuda"; workers share a GPU.
        overrides: ``key.sub=value`` texts over the recipe.
        overwrite: Begin cells anew that another recipe made, and evaluate anew what was asked another question.
        on_event: Called when a cell begins to train or to evaluate, is done, or failed.

    Returns:
        The table behind the page; ``missing`` says which cells failed, and why.

    Raises:
        ConfigError: the recipe is wrong, a cell was made by another one (the message names it), or another comparison
            is at work in ``out``.
        ParameterError: fewer than 1 worker.
        HardyError: images or nets that are not there or do not fit; nothing was computed then.
    """
    if workers < 1:
        raise ParameterError(f"compare: workers must be at least 1; got {workers}.")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    todo = plan(recipe, out=out, overrides=overrides, overwrite=overwrite)
    check_writable(todo.out / PAGE)
    make_folder(todo.out)
    with _alone(todo.out):
        unfinished = [cell for cell in todo.cells if todo.states[cell.name] != "finished"]
        failed = work_through(
            unfinished,
            workers=workers,
            device=device,
            overwrite=overwrite,
            on_event=on_event or (lambda _: None),
        )
        return _reported(todo, failed)


def _reported(todo: Plan, failed: dict[str, str]) -> Comparison:
    """Write page and table from what is finished; without any cell there is no page."""
    c = todo.grid.compare
    cells = [
        GridCell(
            name=cell.name,
            arm=cell.arm,
            net=cell.net,
            seed=cell.seed,
            folder=None if cell.name in failed else cell.folder,
            why=failed.get(cell.name, ""),
        )
        for cell in todo.cells
    ]
    arms = {arm: _described(build_methods(todo.grid.methods[arm])) for arm in c.arms}
    made = grid_report(cells, todo.out / PAGE, arms=arms, baseline=c.baseline, budget=c.budget)
    write_json(todo.out / TABLE, made.to_json())
    return made


def _described(methods: Sequence[Method]) -> tuple[str, ...]:
    return tuple(map(repr, methods))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other comparisons out of the folder.

    Raises:
        ConfigError: one is at work there.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, ConfigError))
        except ConfigError as error:
            again = "then run the same command again, which goes on"
            raise ConfigError(str(error).replace("then go on with --resume", again)) from error
        yield
