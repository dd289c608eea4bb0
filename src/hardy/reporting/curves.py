"""Axes as curves over their strength, as tables of their conditions, and the training curves."""

from collections.abc import Sequence

from hardy.reporting.attack_tables import stages
from hardy.reporting.cells import cell
from hardy.reporting.charts import Line, line_chart
from hardy.reporting.compare import Difference, axis_names, axis_title, find_axis, holm, pair, partner
from hardy.reporting.data import Cell, Chart, Curve, PointRow, PointTable, TableRow
from hardy.reporting.numbers import join, level, percent
from hardy.reporting.refusals import GRAY_BOX
from hardy.reporting.runs import Run
from hardy.reporting.trust import WORST, caution, subject, void
from hardy.results import Axis, Point

__all__ = ["ATTACKED", "curved", "curves", "detail", "point_tables", "training_charts"]

ATTACKED = (  # axes with an adversary
    *("white_box", "eps_curve", "minimal_norm", "frequency", "transfer", "query", "worst_case"),
)
SEES = {"scores": "This attacker sees the scores of all classes.", "labels only": "This attacker sees the class only."}
MEDIANS = {
    "minimal_norm": ("median_distance", "Smallest change found, median over the images right before"),
    "query": ("median_queries", "Queries that broke an image, median over the images right before"),
}
RADIUS = "radius, relative to each layer's weights"
UNITS = {  # of one series, where those of an axis have several
    ("noise", "gaussian"): "sigma (pixels in [0, 1])",
    ("noise", "uniform"): "largest change (pixels in [0, 1])",
    ("noise", "salt and pepper"): "share of pixels",
    ("texture", "patch shuffle"): "pieces per side",
    ("texture", "low pass"): "cutoff (share of the highest frequency)",
    ("texture", "high pass"): "cutoff (share of the highest frequency)",
    ("occlusion", "foreground removed"): "share of the relevance",
    ("occlusion", "only the foreground kept"): "share of the relevance",
    ("weights", "random direction"): RADIUS,
    ("weights", "bits"): "bits per weight",
    ("weights", "bit flips"): "share of bits",
    ("weights", "random zeros"): "share of weights",
    ("weights", "smallest zeros"): "share of weights",
    ("weights", "analogue noise"): "sigma, relative to the largest weight of a layer",
}
NOT_A_LOSS = {"epoch", "step", "lr", "seconds", "forward_passes", "backward_passes"}


def curves(runs: Sequence[Run], names: Sequence[str]) -> tuple[Curve, ...]:
    """Draw every series of these axes that was measured at two strengths or more, all runs in one chart.

    Args:
        runs: What to draw, the baseline first.
        names: Names of axes.
    """
    order = axis_names(runs)
    return tuple(
        _curve(runs, name, series, f"{order.index(name)}-{i}")
        for name in names
        for i, series in enumerate(curved(runs, name))
    )


def point_tables(runs: Sequence[Run], names: Sequence[str]) -> tuple[PointTable, ...]:
    """List the conditions of every axis that has several and is neither a curve nor a table of attacks.

    Args:
        runs: What to list, the baseline first.
        names: Names of axes.
    """
    tables = []
    for name in names:
        if name == WORST:
            continue
        drawn = curved(runs, name)
        several = bool({point.series for run in runs for point in _points(run, name)} - set(drawn))
        found = [
            (run, axis, point)
            for run in runs
            if (axis := find_axis(run.result, name)) is not None and len(axis.points) > 1 and not stages(axis)
            for point in axis.points
            if several or point.series not in drawn or point.level is None
        ]
        if found:
            compared = holm([_compared(runs[0], run, axis, point) for run, axis, point in found])
            rows = [_point_row(runs[0], *each, difference) for each, difference in zip(found, compared, strict=True)]
            heads = ("Run", "Condition", "Accuracy", "Details")
            tables.append(
                PointTable(title=axis_title(name), question=_question(runs, name), heads=heads, rows=tuple(rows))
            )
    return tuple(tables)


def training_charts(runs: Sequence[Run]) -> tuple[Chart, ...]:
    """Draw accuracy and every named loss term over epochs, for the runs that logged them."""
    keys = list(dict.fromkeys(key for run in runs for row in run.metrics for key in row if key not in NOT_A_LOSS))
    keys.sort(key=lambda key: not key.endswith("accuracy"))
    charts = []
    for number, key in enumerate(keys):
        share = key.endswith("accuracy")
        lines = [_training_line(i, run, key, 100 if share else 1) for i, run in enumerate(runs)]
        lines = [line for line in lines if line.x]
        title = key.replace("_", " ") if share else f"loss: {key}"
        names = join([runs[line.index].name for line in lines])
        y_label = f"{title} (%)" if share else key
        svg = line_chart(lines, name=f"train-{number}", x_label="epoch", y_label=y_label, percent=share)
        charts.append(Chart(title=title, svg=svg, alt=f"{title} over epochs of training, for {names}."))
    return tuple(charts)


def _training_line(index: int, run: Run, key: str, scale: int) -> Line:
    kept = [(row.get("epoch", float(i)), row[key]) for i, row in enumerate(run.metrics, start=1) if key in row]
    return Line(index=index, x=tuple(x for x, _ in kept), y=tuple(scale * y for _, y in kept))


def curved(runs: Sequence[Run], name: str) -> list[str]:
    """List the series of an axis that have two strengths or more, and in every run one point at each."""
    levels: dict[str, set[float]] = {}
    twice = set()
    for run in runs:
        seen = set()
        for point in _points(run, name):
            if point.level is not None:
                levels.setdefault(point.series, set()).add(point.level)
                twice |= {point.series} if (point.series, point.level) in seen else set()
                seen.add((point.series, point.level))
    return [series for series, found in levels.items() if len(found) > 1 and series not in twice]


def _points(run: Run, name: str) -> tuple[Point, ...]:
    axis = find_axis(run.result, name)
    return axis.points if axis else ()


def _curve(runs: Sequence[Run], name: str, series: str, number: str) -> Curve:
    axes = [find_axis(run.result, name) for run in runs]
    points = [_by_level(axis, series) for axis in axes]
    levels = sorted({value for found in points for value in found})
    level_name = next((axis.level_name for axis in axes if axis and axis.level_name), "level")
    ticks = [(value, level(value, level_name)) for value in levels]
    unit = UNITS.get((name, series), level_name)
    lines = [_line(i, [found[v] for v in levels if v in found]) for i, found in enumerate(points) if found]
    classes = {run.result.num_classes for run in runs}
    several = len({point.series for run in runs for point in _points(run, name)}) > 1
    title = f"{axis_title(name)}: {series}" if several else axis_title(name)
    svg = line_chart(
        lines, name=f"curve-{number}", x_label=unit, y_label="accuracy (%)", ticks=ticks, percent=True,
        chance=100 / classes.pop() if len(classes) == 1 else None, mark=_threat(runs, name),
    )  # fmt: skip
    drawn = [run.name for run, found in zip(runs, points, strict=True) if found]
    alt = f"Accuracy over {unit} for {join(drawn)}, with 95 % intervals. The numbers stand in the table below."
    return Curve(
        chart=Chart(title=title, svg=svg, alt=alt),
        question=" ".join([_question(runs, name), *([SEES[series]] if series in SEES else []), *_voids(runs, name)]),
        level_name=unit,
        names=tuple(run.name for run in runs),
        rows=_level_rows(runs, name, points, ticks),
        notes=_medians(runs, name, points),
    )


def _threat(runs: Sequence[Run], name: str) -> float | None:
    """Give the budget of the threat, to be marked on a curve over budgets, where all runs have the same."""
    threats = {run.result.threat for run in runs if find_axis(run.result, name)}
    return threats.pop().eps if name in ("eps_curve", "minimal_norm") and len(threats) == 1 else None


def _medians(runs: Sequence[Run], name: str, points: list[dict[float, Point]]) -> tuple[str, ...]:
    """Say what half of the images take, for the searches that tell."""
    if name not in MEDIANS:
        return ()
    key, what = MEDIANS[name]
    found = []
    for run, series in zip(runs, points, strict=True):
        facts = {k: v for point in series.values() for k, v in point.details.items()}
        value = facts.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            text = f"{value:,.0f}" if name == "query" else level(value, "eps")
            found.append(f"{run.name} {text}" if len(runs) > 1 else text)
        elif series:
            found.append(f"{run.name} not reached" if len(runs) > 1 else "not reached")
    return (f"{what}: {', '.join(found)}.",) if found else ()


def _by_level(axis: Axis | None, series: str) -> dict[float, Point]:
    points = axis.points if axis else ()
    return {point.level: point for point in points if point.series == series and point.level is not None}


def _line(index: int, points: list[Point]) -> Line:
    x = tuple(point.level or 0.0 for point in points)
    y, low, high = (tuple(100 * getattr(p, key) for p in points) for key in ("accuracy", "low", "high"))
    return Line(index=index, x=x, y=y, low=low, high=high)


def _level_rows(
    runs: Sequence[Run], name: str, points: list[dict[float, Point]], ticks: Sequence[tuple[float, str]]
) -> tuple[TableRow, ...]:
    axes = [find_axis(run.result, name) for run in runs]
    grid = [
        (run, axis, found.get(value)) for value, _ in ticks for run, axis, found in zip(runs, axes, points, strict=True)
    ]
    compared = holm([_compared(runs[0], run, axis, point) if axis and point else None for run, axis, point in grid])
    cells = [
        _cell(runs[0], run, name, point, difference, column=run.name)
        for (run, _, point), difference in zip(grid, compared, strict=True)
    ]
    width = len(runs)
    return tuple(
        TableRow(head=text, cells=tuple(cells[width * i : width * (i + 1)])) for i, (_, text) in enumerate(ticks)
    )


def _compared(base: Run, run: Run, axis: Axis, point: Point) -> Difference:
    if run is base:
        return None
    return pair(base, run, axis.name, partner(find_axis(base.result, axis.name), point), point)


def _voids(runs: Sequence[Run], name: str) -> list[str]:
    """Say below a chart which of its lines are no evidence."""
    found = [(run.name, text) for run in runs if _points(run, name) and (text := void(run.result, name))]
    return [f"{run} is {text}." for run, text in found]


def _cell(base: Run, run: Run, axis: str, point: Point | None, compared: Difference, *, column: str) -> Cell:
    about = subject(axis, point) if point else axis
    warning = caution(base.result, run.result, about)
    return cell(column, point, compared, void=void(run.result, about), warning=warning)


def _point_row(base: Run, run: Run, axis: Axis, point: Point, compared: Difference) -> PointRow:
    details = [
        f"{key.replace('_', ' ')}: {detail(key, value)}" for key, value in point.details.items() if value is not None
    ]
    details += [f"{key} passes: {count:,}" for key, count in point.passes.items()]
    return PointRow(
        run=run.name,
        label=point.label,
        series="gray-box" if point.series in GRAY_BOX else point.series,
        cell=_cell(base, run, axis.name, point, compared, column="Accuracy"),
        details=tuple(details),
    )


def detail(key: str, value: str | int | float | bool) -> str:
    """Write one fact about a point."""
    if isinstance(value, float) and key.endswith(("rate", "accuracy")) and 0 <= value <= 1:
        return f"{percent(value)} %"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _question(runs: Sequence[Run], name: str) -> str:
    return next((axis.question for run in runs if (axis := find_axis(run.result, name))), "")
