"""What the page says, as plain records: every number is already text, so the template has nothing to compute."""

from dataclasses import dataclass
from typing import Literal

from hardy.reporting.grid_parts import GridPage
from hardy.reporting.parts import (
    Cell,
    Chart,
    Curve,
    Difference,
    Heat,
    Legend,
    Matrix,
    MatrixRow,
    PointRow,
    PointTable,
    ScoreTable,
    TableRow,
)

__all__ = [
    "AttackGroup",
    "AttackRow",
    "AxisSection",
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
    "Matrix",
    "MatrixRow",
    "PerClass",
    "PointRow",
    "PointTable",
    "Profile",
    "ProfileRow",
    "Provenance",
    "ReportData",
    "RunRow",
    "ScoreTable",
    "Statement",
    "TableRow",
    "UnderAttack",
    "VersusRow",
]


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
class ProfileRow:
    """One axis of the profile; ``condition`` names the number that stands for it, ``better`` says which way."""

    title: str
    href: str
    condition: str
    better: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Every axis of robustness side by side: a dot plot, and its numbers; ``names`` are runs, or the base and a run."""

    chart: Chart
    legends: tuple[Legend, ...]
    names: tuple[str, ...]
    rows: tuple[ProfileRow, ...]
    notes: tuple[str, ...]


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
    budget: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Examples of one run; ``note`` states the amplification."""

    run: str
    note: str
    pixelated: bool
    examples: tuple[Example, ...]


@dataclass(frozen=True, kw_only=True)
class AttackRow:
    """What one attack of a suite did; ``kind`` tells attacks from the plain images, the whole suite and controls."""

    name: str
    settings: str
    attacked: str
    broke: str
    left: Heat
    forward: str
    backward: str
    kind: Literal["plain", "attack", "whole", "control"]


@dataclass(frozen=True, kw_only=True)
class AttackGroup:
    """The attacks on one run, in order."""

    run: str
    note: str
    rows: tuple[AttackRow, ...]


@dataclass(frozen=True, kw_only=True)
class AxisSection:
    """All that was found on one axis without an adversary; ``folded`` curves are shown on demand."""

    anchor: str
    title: str
    question: str
    tables: tuple[ScoreTable, ...]
    matrices: tuple[Matrix, ...]
    curves: tuple[Curve, ...]
    folded: tuple[Curve, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class VersusRow:
    """A run against its own base on one axis; no difference where a check voids the comparison, as ``note`` says."""

    run: str
    base: str
    where: str
    own: str
    base_own: str
    difference: Difference | None
    p: str
    note: str


@dataclass(frozen=True, kw_only=True)
class UnderAttack:
    """What attackers did: the parts that were measured."""

    checks: str
    curves: tuple[Curve, ...]
    groups: tuple[AttackGroup, ...]
    worst: Matrix | None
    versus: tuple[VersusRow, ...]
    transfer: Matrix | None
    galleries: tuple[Gallery, ...]


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
    """The whole page; ``comparison`` where the runs are cells of a grid."""

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
    attack: UnderAttack | None
    profile: Profile | None
    section_legends: tuple[Legend, ...]
    sections: tuple[AxisSection, ...]
    point_tables: tuple[PointTable, ...]
    per_class: PerClass | None
    training: tuple[Chart, ...]
    training_legends: tuple[Legend, ...]
    checks: tuple[CheckLine, ...]
    definitions: tuple[Definition, ...]
    provenance: tuple[Provenance, ...]
    version: str
    comparison: GridPage | None = None
