"""The page of a grid: the comparison of its arms first, then every net by itself as on any page of several runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from hardy.reporting.build import collect, render
from hardy.reporting.data import ProfileRow, RunRow
from hardy.reporting.grid import Comparison, GridCell
from hardy.reporting.grid_numbers import compare_grid
from hardy.reporting.grid_page import grid_page
from hardy.reporting.numbers import join
from hardy.reporting.runs import Run, read_runs
from hardy.reporting.words import seeds_label
from hardy.safefile import write_text

__all__ = ["grid_report"]

T = TypeVar("T", RunRow, ProfileRow)


def grid_report(
    cells: Sequence[GridCell],
    out: str | Path,
    *,
    arms: Mapping[str, tuple[str, ...]],
    baseline: str,
    budget: str,
    title: str = "",
    lead: str = "",
    single: Sequence[str] = (),
) -> Comparison:
    """Compare the arms of a grid and write the page; without a finished cell there is none.

    Args:
        cells: All cells, finished or not.
        out: Where to write the page.
        arms: ``repr`` of the methods of every arm, by its name.
        baseline: The arm that the others are compared with.
        budget: What was equal: "epochs" or "passes".
        title: Of the page; by default what was compared.
        lead: What it comes to, in words, below the title.
        single: Arms of one net that no seed of the others' trainings made: they say nothing of the number of seeds.

    Raises:
        DataError: a run cannot be read, or the page cannot be written.
    """
    runs = _runs(cells, baseline)
    made = compare_grid(cells, runs, arms=arms, baseline=baseline, budget=budget)
    if runs:
        write_text(Path(out), grid_html(made, list(runs.values()), title=title, lead=lead, single=single))
    return made


def grid_html(
    made: Comparison, runs: Sequence[Run], *, title: str = "", lead: str = "", single: Sequence[str] = ()
) -> str:
    """Make the page of a comparison and its runs, one of the baseline first."""
    others = [arm for arm in made.arms if arm != made.baseline]
    named = f"{join(others) if len(others) <= 4 else f'{len(others)} arms'}, compared with {made.baseline}"
    data = collect(runs, title=title or (named if others else f"How robust is {made.baseline}?"))
    anchors = {axis.name: f"#{axis.anchor}" for axis in data.definitions}
    page = grid_page(made, anchors)
    rows = tuple(_alone(row) for row in data.rows)
    profile = data.profile and replace(data.profile, rows=tuple(_alone(row) for row in data.profile.rows))
    return render(
        replace(
            data,
            lead="",
            seeds=seeds_label([run for run in runs if run.name.partition("/")[0] not in single]),
            statements=(),
            rows=rows,
            table_notes=data.table_notes[:1],
            profile=profile,
            comparison=replace(page, lead=lead) if lead else page,
        )
    )


def _alone(row: T) -> T:
    """Take the differences to the first run out: in a grid, nets are compared with that of the same seed."""
    cells = tuple(replace(cell, difference=None) for cell in row.cells)
    return replace(row, cells=cells)


def _runs(cells: Sequence[GridCell], baseline: str) -> dict[str, Run]:
    """Read the finished cells, a baseline first, named as the cells are."""
    finished = [(cell, cell.folder) for cell in cells if cell.folder is not None]
    order = list(dict.fromkeys([baseline, *(cell.arm for cell in cells)]))
    finished.sort(key=lambda pair: (order.index(pair[0].arm), pair[0].net, pair[0].seed))
    if not finished:
        return {}
    runs = read_runs([folder for _, folder in finished], None)
    return {cell.name: replace(run, name=cell.name) for (cell, _), run in zip(finished, runs, strict=True)}
