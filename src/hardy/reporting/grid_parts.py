"""What the page says of a grid, as plain records of text."""

from dataclasses import dataclass

from hardy.reporting.parts import Cell, Chart, Difference, Legend

__all__ = ["BaseRow", "GridColumn", "GridPage", "GridRow", "GridTable"]


@dataclass(frozen=True, kw_only=True)
class GridColumn:
    """Head of a column: an axis, with a link to what it means."""

    title: str
    href: str


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """One arm: its means, and what its training costs."""

    arm: str
    methods: str
    seeds: str
    is_base: bool
    cells: tuple[Cell, ...]
    passes: str
    passes_note: str
    seconds: str
    seconds_note: str


@dataclass(frozen=True, kw_only=True)
class BaseRow:
    """One net beside the baseline's net of the same seed."""

    cell: str
    own: str
    base: str
    difference: Difference | None
    p: str
    answer: str
    note: str


@dataclass(frozen=True, kw_only=True)
class GridTable:
    """All arms on one net."""

    net: str
    columns: tuple[GridColumn, ...]
    rows: tuple[GridRow, ...]
    charts: tuple[tuple[Chart, str], ...]
    legends: tuple[Legend, ...]
    bases: tuple[BaseRow, ...]


@dataclass(frozen=True, kw_only=True)
class GridPage:
    """The section "Comparison"; ``missing`` are cells and why they are not there."""

    lead: str
    tables: tuple[GridTable, ...]
    notes: tuple[str, ...]
    base_note: str
    missing: tuple[tuple[str, str], ...]
