"""Scores that were measured over a strength, as charts."""

from collections.abc import Sequence

from hardy.reporting.charts import Line, line_chart
from hardy.reporting.compare import axis_names, axis_title, find_axis
from hardy.reporting.data import Cell, Chart, Curve, TableRow
from hardy.reporting.numbers import join, level
from hardy.reporting.runs import Run
from hardy.reporting.score_tables import score_cell
from hardy.results import Axis, Score

__all__ = ["score_curves"]

DIAGONAL = "reliability"  # a series whose level is what it should be


def score_curves(runs: Sequence[Run], name: str) -> tuple[Curve, ...]:
    """Draw every series of scores with two strengths or more, all runs in one chart.

    Args:
        runs: What to draw, the baseline first.
        name: Name of the axis.
    """
    axes = [find_axis(run.result, name) for run in runs]
    levels: dict[str, set[float]] = {}
    for score in (s for axis in axes if axis for s in axis.scores):
        if score.level is not None:
            levels.setdefault(score.series, set()).add(score.level)
    drawn = [series for series, found in levels.items() if len(found) > 1]
    return tuple(
        _curve(runs, axes, name, series, f"{axis_names(runs).index(name)}-{i}") for i, series in enumerate(drawn)
    )


def _curve(runs: Sequence[Run], axes: Sequence[Axis | None], name: str, series: str, number: str) -> Curve:
    found = [_by_level(axis, series) for axis in axes]
    levels = sorted({value for kept in found for value in kept})
    one = next(score for kept in found for score in kept.values())
    share = one.kind == "accuracy" or series == DIAGONAL
    level_name = next((axis.level_name for axis in axes if axis and axis.level_name), "level")
    lines = [_line(i, kept, levels, 100 if share else 1) for i, kept in enumerate(found) if kept]
    y_label = "accuracy (%)" if share else f"{series} ({one.unit})" if one.unit else series
    ticks = [(value, level(value, level_name)) for value in levels]
    svg = line_chart(
        lines,
        name=f"scores-{number}",
        x_label=level_name,
        y_label=y_label,
        ticks=ticks,
        percent=share,
        diagonal=series == DIAGONAL,
    )
    title = f"{axis_title(name)}: {series}" if series else axis_title(name)
    names = join([run.name for run, kept in zip(runs, found, strict=True) if kept])
    rows = [TableRow(head=text, cells=_cells(runs, found, value)) for value, text in ticks]
    return Curve(
        chart=Chart(title=title, svg=svg, alt=f"{title} over {level_name} for {names}. The numbers stand below."),
        question="",
        level_name=level_name,
        names=tuple(run.name for run in runs),
        rows=tuple(rows),
    )


def _by_level(axis: Axis | None, series: str) -> dict[float, Score]:
    scores = axis.scores if axis else ()
    return {s.level: s for s in scores if s.series == series and s.level is not None}


def _line(index: int, kept: dict[float, Score], levels: Sequence[float], scale: int) -> Line:
    x = [value for value in levels if value in kept]
    y = [scale * kept[value].value for value in x]
    bounds = [(kept[v].low, kept[v].high) for v in x]
    known = [(scale * low, scale * high) for low, high in bounds if low is not None and high is not None]
    whole = len(known) == len(x)
    return Line(
        index=index,
        x=tuple(x),
        y=tuple(y),
        low=tuple(low for low, _ in known) if whole else (),
        high=tuple(high for _, high in known) if whole else (),
    )


def _cells(runs: Sequence[Run], found: Sequence[dict[float, Score]], value: float) -> tuple[Cell, ...]:
    return tuple(score_cell(run.name, kept.get(value)) for run, kept in zip(runs, found, strict=True))
