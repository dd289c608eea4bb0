"""What the page says, as plain records: every number is already text, so the template has nothing to compute."""

from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

__all__ = [
    "Cell",
    "Chart",
    "CheckLine",
    "ClassRow",
    "Column",
    "Curve",
    "Definition",
    "Difference",
    "Example",
    "Gallery",
    "Heat",
    "Legend",
    "PerClass",
    "PointRow",
    "PointTable",
    "Provenance",
    "ReportData",
    "RunRow",
    "Statement",
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
class Column:
    """Head of a column of the verdict table; ``sub`` names the condition behind the number."""

    title: str
    sub: str
    href: str


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One row of the verdict table."""

    name: str
    href: str
    methods: str
    is_base: bool
    cells: tuple[Cell, ...]
    training: str
    training_note: str


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One line of the verdict: a short label and what is true."""

    label: str
    text: str


@dataclass(frozen=True, kw_only=True)
class CheckLine:
    """One finding of one check, and the runs that share it word for word."""

    code: str
    status: str
    symbol: str
    word: str
    runs: str
    evidence: str
    remedy: str
    anchor: str


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


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A chart over the strength of something, and its numbers."""

    chart: Chart
    question: str
    level_name: str
    names: tuple[str, ...]
    rows: tuple[TableRow, ...]


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
class Example:
    """An image, the attacked image and their difference as data URIs."""

    clean: str
    attacked: str
    change: str
    truth: str
    before: str
    after: str
    fooled: bool
    alt: str


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Examples of one run; ``note`` states the amplification."""

    run: str
    note: str
    pixelated: bool
    examples: tuple[Example, ...]


@dataclass(frozen=True, kw_only=True)
class Heat:
    """A share and how strongly its cell is tinted, 0 to 10."""

    text: str
    tint: int


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """Accuracy of one class under each head of the table."""

    name: str
    count: str
    cells: tuple[Heat, ...]


@dataclass(frozen=True, kw_only=True)
class PerClass:
    """Accuracy by class: ``groups`` are runs and the number of their columns, ``heads`` the columns."""

    groups: tuple[tuple[str, int], ...]
    heads: tuple[str, ...]
    rows: tuple[ClassRow, ...]
    note: str


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What an axis asks and what was done to answer it."""

    anchor: str
    title: str
    name: str
    question: str
    done: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How one run came about and how to repeat its evaluation."""

    anchor: str
    name: str
    facts: tuple[tuple[str, str], ...]
    command: str
    recipe: str
    environments: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """The whole page."""

    title: str
    subtitle: str
    seeds: str
    alarm: str
    lead: str
    statements: tuple[Statement, ...]
    columns: tuple[Column, ...]
    rows: tuple[RunRow, ...]
    base: str
    table_notes: tuple[str, ...]
    fired: tuple[CheckLine, ...]
    checks_summary: tuple[str, ...]
    legends: tuple[Legend, ...]
    curves: tuple[Curve, ...]
    point_tables: tuple[PointTable, ...]
    galleries: tuple[Gallery, ...]
    per_class: PerClass | None
    training: tuple[Chart, ...]
    training_legends: tuple[Legend, ...]
    checks: tuple[CheckLine, ...]
    definitions: tuple[Definition, ...]
    provenance: tuple[Provenance, ...]
    version: str
