"""The numbers of a diagnosis as bars, lines and tables."""

import math
from collections.abc import Callable, Mapping, Sequence

from hardy.records import Score
from hardy.reporting.charts import Line, line_chart, swatch
from hardy.reporting.diagnosis_parts import Bar, Bars, Lines, Numbers
from hardy.reporting.numbers import ABSENT, gap, gap_interval, interval, join, level, number, percent
from hardy.reporting.parts import Cell, Chart, Curve, Legend, ScoreTable, TableRow

__all__ = ["bars", "cell", "counted", "is_difference", "is_share", "lines", "numbers_table", "told"]

PERCENT = frozenset(  # series and labels that are shares, though their kind is no accuracy
    {
        "accuracy",
        "accuracy change",
        "attention",
        "channels that carry 90 %",
        "confidence minus accuracy",
        "confident mistakes",
        "difference",
        "effective channels",
        "follows",
        "gradient",
        "kept",
        "reliability",
        "shared strongest channels",
    }
)
DIFFERENCES = ("accuracy change", "difference")  # series
SHARES = ("area that carries half of the map", "overlap of the mean maps")  # how their labels begin


def counted(n: int, word: str) -> str:
    """Write how many there are.

    Example:
        >>> counted(1, "image"), counted(1200, "image")
        ('1 image', '1,200 images')
    """
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def is_share(score: Score) -> bool:
    """Say whether a score is written in percent."""
    known = score.kind == "accuracy" or score.series in PERCENT or score.label in PERCENT
    known = known or score.label.startswith(SHARES)
    return known and not score.unit and -1 <= score.value <= 1


def is_difference(score: Score) -> bool:
    """Say whether a share is written in points, with its sign."""
    return score.series in DIFFERENCES or " minus " in score.label or " beyond " in score.label


def told(score: Score, *, share: bool | None = None) -> tuple[str, str]:
    """Write a score and its interval; the interval is empty where there is none.

    Args:
        score: The number.
        share: Write it in percent; by default where it is a share.
    """
    share = is_share(score) if share is None else share
    if not math.isfinite(score.value):
        return "not known", ""
    low, high = score.low, score.high
    if share and is_difference(score):
        return f"{gap(score.value)} points", "" if low is None or high is None else gap_interval(low, high)
    if share:
        return f"{percent(score.value)} %", "" if low is None or high is None else interval(low, high)
    text = f"{number(score.value)} {score.unit}".strip()
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    return text, f"[{number(low)}, {number(high)}]" if known and low is not None and high is not None else ""


def bars(
    scores: Sequence[Score],
    *,
    title: str,
    head: str,
    name: Callable[[Score], str] = lambda score: score.label,
    sub: Callable[[Score], str] = lambda _: "",
    mark: float | None = None,
    mark_text: str = "",
    notes: Sequence[str] = (),
    folded: bool = False,
) -> Bars:
    """Draw scores of one unit on one scale, which holds 0 and all intervals.

    Args:
        scores: The numbers, at least one.
        title: What they are.
        head: What a row is.
        name: Gives the label of a row.
        sub: Gives what stands below it.
        mark: Where on the scale something is expected by chance.
        mark_text: What that is.
        notes: What to know about them.
        folded: They are shown on request.
    """
    finite = [score for score in scores if math.isfinite(score.value)]
    share = all(map(is_share, finite))
    ends = [end for score in finite for end in (score.value, *_bounds(score))] + [
        0.0,
        *([] if mark is None else [mark]),
    ]
    whole = share and not any(map(is_difference, finite))
    low, high = min(ends), max([*ends, 1.0]) if whole else max(ends)
    width = high - low or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low) / width, 2)

    made = []
    for score in finite:
        text, within = told(score, share=share)
        start, end = sorted((place(0.0), place(score.value)))
        bounds = _bounds(score)
        made.append(
            Bar(
                label=name(score), sub=sub(score), text=text, interval=within, left=start, width=round(end - start, 2),
                low=place(bounds[0]), high=place(bounds[1]),
            )
        )  # fmt: skip
    unit = "%" if share else finite[0].unit if finite else ""
    return Bars(
        title=title, bars=tuple(made), head=head, unit=unit, mark=None if mark is None else place(mark),
        mark_text=mark_text, notes=tuple(notes), folded=folded,
    )  # fmt: skip


def lines(
    scores: Sequence[Score],
    *,
    name: str,
    title: str,
    level_name: str,
    ticks: Sequence[float] | None = None,
    y_label: str = "",
    share: bool | None = None,
    question: str = "",
    diagonal: bool = False,
    chance: float | None = None,
) -> Lines:
    """Draw the series of scores over their level, with their intervals as bands.

    Args:
        scores: All with a level; those of one ``series`` are one line.
        name: Prefix of all ids inside, unique on the page.
        title: What is drawn.
        level_name: What the level is.
        ticks: Places of the texts on the x axis; none for whole numbers that fit; by default the levels.
        y_label: What is drawn; by default the unit.
        share: Written in percent; by default where all are shares.
        question: What the chart answers.
        diagonal: Draw where a share is its level.
        chance: Where guessing would be, as a share.
    """
    series = list(dict.fromkeys(score.series for score in scores))
    found = [{s.level: s for s in scores if s.series == each and s.level is not None} for each in series]
    levels = sorted({value for kept in found for value in kept})
    share = all(map(is_share, scores)) if share is None else share
    unit = scores[0].unit
    svg = line_chart(
        [_line(i + 1, kept, levels, 100 if share else 1) for i, kept in enumerate(found)],
        name=name,
        x_label=level_name,
        y_label=y_label or ("share (%)" if share else f"value ({unit})" if unit else "value"),
        ticks=[(value, level(value, level_name)) for value in (levels if ticks is None else ticks)],
        percent=share,
        diagonal=diagonal,
        chance=None if chance is None else 100 * chance,
    )
    rows = [
        TableRow(
            head=level(value, level_name),
            cells=tuple(cell(each, kept.get(value), share=share) for each, kept in zip(series, found, strict=True)),
        )
        for value in levels
    ]
    alt = f"{title}: {join(series)} over {level_name}. The numbers stand in the table below."
    curve = Curve(
        chart=Chart(title=title, svg=svg, alt=alt), question=question, level_name=level_name, names=tuple(series),
        rows=tuple(rows),
    )  # fmt: skip
    legends = [
        Legend(name=each, swatch=swatch(i + 1, name=f"{name}-key-{i}"), is_base=False) for i, each in enumerate(series)
    ]
    return Lines(curve=curve, legends=tuple(legends) if len(series) > 1 else ())


def numbers_table(rows: Mapping[str, Sequence[Score | None]], columns: Sequence[str], *, title: str) -> Numbers:
    """Set scores of any units side by side.

    Args:
        rows: By the name of a row, one score for each column, or None.
        columns: Heads.
        title: Heading.
    """
    made = []
    for name, scores in rows.items():
        counts = dict.fromkeys(counted(score.n, "image") for score in scores if score is not None)
        cells = tuple(cell(column, score) for column, score in zip(columns, scores, strict=True))
        made.append(TableRow(head=name, sub=" / ".join(counts), cells=cells))
    return Numbers(title=title, table=ScoreTable(title="Number", names=tuple(columns), rows=tuple(made)))


def cell(column: str, score: Score | None, *, share: bool | None = None) -> Cell:
    """Write a score as a cell of a table; in percent where asked, by default where it is a share."""
    if score is None or not math.isfinite(score.value):
        return Cell(column=column, accuracy=ABSENT, measured=False)
    text, within = told(score, share=share)
    return Cell(column=column, accuracy=text, measured=True, interval=within, count=counted(score.n, "image"))


def _bounds(score: Score) -> tuple[float, float]:
    low, high = score.low, score.high
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    return (low, high) if known and low is not None and high is not None else (score.value, score.value)


def _line(index: int, kept: dict[float, Score], levels: Sequence[float], scale: int) -> Line:
    found = [kept[value] for value in levels if value in kept and math.isfinite(kept[value].value)]
    banded = any(score.low is not None for score in found)
    bounds = [_bounds(score) for score in found]
    return Line(
        index=index,
        x=tuple(score.level for score in found if score.level is not None),
        y=tuple(scale * score.value for score in found),
        low=tuple(scale * low for low, _ in bounds) if banded else (),
        high=tuple(scale * high for _, high in bounds) if banded else (),
    )
