"""The axes without an adversary, one section each: scores, heat maps, curves."""

from collections.abc import Sequence

from hardy.reporting.attack_tables import heat
from hardy.reporting.compare import axis_names, axis_title, find_axis
from hardy.reporting.curves import ATTACKED, curved, curves
from hardy.reporting.data import AxisSection, Heat, Matrix, MatrixRow
from hardy.reporting.numbers import level, percent
from hardy.reporting.runs import Run
from hardy.reporting.score_curves import score_curves
from hardy.reporting.score_tables import score_tables
from hardy.reporting.trust import void
from hardy.results import Axis, Point

__all__ = ["sections"]

MOST_CHARTS = 4  # series of an axis that are drawn; more become a heat map, and charts on demand
TABLE = ("eps", "radius")  # details of points that make a table of two strengths
WORST = "worst case"  # how their series begin


def sections(runs: Sequence[Run]) -> tuple[AxisSection, ...]:
    """Make one section per axis without an adversary that says more than one number.

    Args:
        runs: What to show, the baseline first.
    """
    names = [name for name in axis_names(runs) if name not in (*ATTACKED, "clean")]
    made = [_section(runs, name) for name in names]
    return tuple(s for s in made if s.tables or s.matrices or s.curves or s.folded)


def _section(runs: Sequence[Run], name: str) -> AxisSection:
    series = curved(runs, name)
    drawn = (*curves(runs, [name]), *score_curves(runs, name))
    many = len(series) > MOST_CHARTS and _alike(runs, name, series)
    matrices = (*_tables(runs, name), *(_overview(runs, name, series) if many else ()))
    axes = [axis for run in runs if (axis := find_axis(run.result, name))]
    voids = [
        f"{run.name} is {text}." for run in runs if find_axis(run.result, name) and (text := void(run.result, name))
    ]
    return AxisSection(
        anchor=f"beyond-{axis_names(runs).index(name)}",
        title=axis_title(name),
        question=axes[0].question,
        tables=score_tables(runs, name),
        matrices=matrices,
        curves=() if many else drawn,
        folded=drawn if many else (),
        notes=tuple(voids),
    )


def _alike(runs: Sequence[Run], name: str, series: Sequence[str]) -> bool:
    """Say whether the series have strengths in common, so that a table of them has few holes."""
    points = [p for run in runs if (axis := find_axis(run.result, name)) for p in axis.points if p.level is not None]
    levels = [{p.level for p in points if p.series == one} for one in series]
    return len(set[float | None]().union(*levels)) < 2 * max(len(found) for found in levels)


def _overview(runs: Sequence[Run], name: str, series: Sequence[str]) -> tuple[Matrix, ...]:
    """Show an axis of many series at a glance: over their strengths for one run, their means for several."""
    if len(runs) == 1:
        return (_over_levels(runs[0], name, series),)
    axes = {run.name: axis for run in runs if (axis := find_axis(run.result, name))}
    rows = [
        MatrixRow(
            head=one,
            sub="",
            cells=tuple(_mean(run, axes.get(run.name), one) for run in runs),
        )
        for one in series
    ]
    title = f"{axis_title(name)}: mean over strengths"
    heads = tuple((run.name, "") for run in runs)
    return (Matrix(title=title, corner="", heads=heads, rows=tuple(rows), question="Accuracy in %."),)


def _over_levels(run: Run, name: str, series: Sequence[str]) -> Matrix:
    axis = find_axis(run.result, name)
    points = {(p.series, p.level): p for p in (axis.points if axis else ()) if p.level is not None}
    unit = axis.level_name if axis else ""
    levels = sorted({value for kind, value in points if kind in series})
    is_void = bool(void(run.result, name))
    rows = [
        MatrixRow(head=one, sub="", cells=tuple(_plain(points.get((one, value)), is_void) for value in levels))
        for one in series
    ]
    return Matrix(
        title=f"{axis_title(name)}: by strength",
        corner=unit,
        heads=tuple((level(value, unit), "") for value in levels),
        rows=tuple(rows),
        question="Accuracy in %.",
    )


def _tables(runs: Sequence[Run], name: str) -> tuple[Matrix, ...]:
    """Show points that vary in two strengths as a table of them, one per run."""
    return tuple(
        made for run in runs if (axis := find_axis(run.result, name)) and (made := _table(run, axis, len(runs) > 1))
    )


def _table(run: Run, axis: Axis, named: bool) -> Matrix | None:
    worst = [p for p in axis.points if p.details.keys() >= set(TABLE) and p.series.startswith(WORST)]
    points = {(_strength(p, "eps"), _strength(p, "radius")): p for p in worst}
    rows, columns = (sorted({key[i] for key in points}) for i in (0, 1))
    if len(rows) < 2 or len(columns) < 2:
        return None
    is_void = bool(void(run.result, axis.name))
    return Matrix(
        title=f"{axis_title(axis.name)}: input and weights together" + (f", {run.name}" if named else ""),
        corner="eps of the input",
        heads=tuple((level(radius, ""), "of the weights" if i == 0 else "") for i, radius in enumerate(columns)),
        rows=tuple(
            MatrixRow(
                head=level(eps, "eps"),
                sub="",
                cells=tuple(_plain(points.get((eps, radius)), is_void) for radius in columns),
            )
            for eps in rows
        ),
        question="Accuracy in %. The first row and the first column are one disturbance alone.",
    )


def _strength(p: Point, key: str) -> float:
    value = p.details[key]
    return float(value) if isinstance(value, int | float) else 0.0


def _plain(point: Point | None, is_void: bool) -> Heat:
    return heat(point, void=is_void)


def _mean(run: Run, axis: Axis | None, series: str) -> Heat:
    found = [p.accuracy for p in (axis.points if axis else ()) if p.series == series and p.level is not None]
    if not found or axis is None:
        return Heat(text="", tint=0)
    mean = sum(found) / len(found)
    is_void = bool(void(run.result, axis.name))
    return Heat(text=percent(mean), tint=0 if is_void else round(10 * mean), void=is_void)
