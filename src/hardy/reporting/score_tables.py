"""Numbers that are no accuracy under one condition, with their intervals and paired differences."""

import math
from collections.abc import Sequence

from hardy.reporting.cells import SYMBOLS, cell
from hardy.reporting.cells import difference as in_points
from hardy.reporting.compare import Difference as Compared
from hardy.reporting.compare import Paired, as_point, find_axis, holm, pair
from hardy.reporting.data import Cell, Difference, ScoreTable, TableRow
from hardy.reporting.numbers import ABSENT, number
from hardy.reporting.runs import Run
from hardy.reporting.trust import caution, void
from hardy.results import Axis, Score

__all__ = ["compare_scores", "is_share", "score_cell", "score_tables"]

CLASS = "class"  # a series that stands under Classes
BETTER = {"accuracy": "", "quality": "", "error": "lower is better", "description": "neither better nor worse"}


def score_tables(runs: Sequence[Run], name: str) -> tuple[ScoreTable, ...]:
    """List the scores of an axis, one table per group; curves of scores are left to the charts.

    Args:
        runs: What to compare, the baseline first.
        name: Name of the axis.
    """
    axes = [find_axis(run.result, name) for run in runs]
    shown = [(run, axis) for run, axis in zip(runs, axes, strict=True) if axis is not None and axis.scores]
    groups: dict[str, dict[str, Score]] = {}
    for _, axis in shown:
        for score in axis.scores:
            if score.level is None and score.series != CLASS:
                groups.setdefault(score.series, {}).setdefault(score.label, score)
    return tuple(_table(shown, runs[0], series, list(kept.values())) for series, kept in groups.items())


def compare_scores(base: Run, run: Run, axis: str, before: Score | None, after: Score) -> Compared:
    """Compare two scores image by image, or say in words why not; a run is not compared with itself."""
    if run is base:
        return None
    if before is None:
        return "the baseline lacks it"
    return pair(base, run, axis, as_point(before), as_point(after), kind=after.kind)


def score_cell(column: str, score: Score | None, compared: Compared = None, *, href: str = "", void: str = "") -> Cell:
    """Write one score as a cell; shares of images in percent, other numbers as they are.

    Args:
        column: Head of the column.
        score: The number; None where there is none.
        compared: Its difference to the baseline, or why there is none.
        href: Where it is explained.
        void: Why it is no evidence.
    """
    if score is None or not math.isfinite(score.value):
        return Cell(column=column, accuracy=ABSENT, measured=False)
    if is_share(score):
        made = cell(column, as_point(score), compared, href, void=void)
        return made if score.low is not None else Cell(**{**vars(made), "interval": ""})
    bounds = "" if score.low is None or score.high is None else f"[{number(score.low)}, {number(score.high)}]"
    told = compared if isinstance(compared, Paired) and not void else None
    return Cell(
        column=column,
        accuracy=f"{number(score.value)} {score.unit}".strip(),
        measured=True,
        interval=bounds,
        count=f"{score.n} images",
        href=href,
        difference=None if told is None else _difference(told),
        note=void,
        void=bool(void),
    )


def is_share(score: Score) -> bool:
    """Say whether a score is written in percent: a mean of accuracies."""
    return score.kind == "accuracy"


def _table(shown: Sequence[tuple[Run, Axis]], base: Run, series: str, kept: Sequence[Score]) -> ScoreTable:
    name = shown[0][1].name
    grid = [[_find(axis, score.label) for _, axis in shown] for score in kept]
    before = find_axis(base.result, name)
    compared = holm(
        [
            None if score is None else compare_scores(base, run, name, _find(before, score.label), score)
            for row in grid
            for (run, _), score in zip(shown, row, strict=True)
        ]
    )
    rows = []
    for i, (score, row) in enumerate(zip(kept, grid, strict=True)):
        differences = compared[i * len(shown) : (i + 1) * len(shown)]
        cells = [
            _cell(base, run, name, found, difference)
            for (run, _), found, difference in zip(shown, row, differences, strict=True)
        ]
        better = BETTER[score.kind]
        rows.append(TableRow(head=score.label, sub=better, cells=tuple(cells)))
    return ScoreTable(title=series, names=tuple(run.name for run, _ in shown), rows=tuple(rows))


def _cell(base: Run, run: Run, axis: str, score: Score | None, compared: Compared) -> Cell:
    kept = compared if isinstance(compared, Paired) else None  # why there is none stands in the verdict table
    made = score_cell(run.name, score, kept, void=void(run.result, axis))
    warning = caution(base.result, run.result, axis)
    clear = made.difference is not None and made.difference.verdict in ("gain", "loss")
    return Cell(**{**vars(made), "note": warning}) if warning and clear and not made.note else made


def _find(axis: Axis | None, label: str) -> Score | None:
    return next((s for s in axis.scores if s.label == label), None) if axis else None


def _difference(paired: Paired) -> Difference:
    """Write a difference of numbers that are no shares."""
    made = in_points(paired)
    signs = [f"{'+' if value > 0 else ''}{number(value)}" for value in (paired.mean, paired.low, paired.high)]
    return Difference(
        text=signs[0],
        interval=f"[{signs[1]}, {signs[2]}]",
        verdict=made.verdict,
        symbol=SYMBOLS[made.verdict],
        word=made.word,
    )
