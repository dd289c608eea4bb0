"""The parts that pages are made of, as plain records: cells, charts, tables, heat maps."""

from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

__all__ = [
    "Cell",
    "Chart",
    "Curve",
    "Difference",
    "Heat",
    "Legend",
    "Matrix",
    "MatrixRow",
    "PointRow",
    "PointTable",
    "ScoreTable",
    "TableRow",
]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A paired difference to the baseline, in points; ``word`` and ``symbol`` say what the colour says.

    Both are empty where more is neither better nor worse.
    """

    text: str
    interval: str
    verdict: Literal["gain", "loss", "unclear", "description"]
    symbol: str
    word: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One accuracy with its interval; "not measured" where there is none, ``void`` where it is no evidence."""

    column: str
    accuracy: str
    measured: bool
    interval: str = ""
    count: str = ""
    href: str = ""
    difference: Difference | None = None
    note: str = ""
    void: bool = False


@dataclass(frozen=True, kw_only=True)
class Legend:
    """How a run is drawn in every chart."""

    name: str
    swatch: Markup
    is_base: bool


@dataclass(frozen=True, kw_only=True)
class Chart:
    """An inline SVG and the text that stands for it."""

    title: str
    svg: Markup
    alt: str


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A row head and its cells."""

    head: str
    cells: tuple[Cell, ...]
    sub: str = ""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A chart over the strength of something, its numbers, and what they come to in a sentence each."""

    chart: Chart
    question: str
    level_name: str
    names: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PointRow:
    """One condition of an axis that is no curve, for one run."""

    run: str
    label: str
    series: str
    cell: Cell
    details: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PointTable:
    """All conditions of an axis that is no curve."""

    title: str
    question: str
    heads: tuple[str, ...]
    rows: tuple[PointRow, ...]


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Numbers of an axis that are no accuracy under one condition: one row per number, one column per run."""

    title: str
    names: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Heat:
    """A share and how strongly its cell is tinted, 0 to 10; no text where nothing was measured.

    ``mark`` stands beside the number, ``notes`` below it; a number that is ``void`` is no evidence.
    """

    text: str
    tint: int
    interval: str = ""
    mark: str = ""
    notes: tuple[str, ...] = ()
    void: bool = False


@dataclass(frozen=True, kw_only=True)
class MatrixRow:
    """A row of a matrix; ``total`` where it sums up the others."""

    head: str
    sub: str
    cells: tuple[Heat, ...]
    total: bool = False


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A heat map as a table: ``corner`` names its rows, each head and its sub a column."""

    title: str
    corner: str
    heads: tuple[tuple[str, str], ...]
    rows: tuple[MatrixRow, ...]
    question: str
    notes: tuple[str, ...] = ()
