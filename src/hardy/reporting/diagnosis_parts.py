"""The parts that the page of a diagnosis is made of, as plain records: findings, bars, maps, pictures, sections."""

from dataclasses import dataclass

from hardy.reporting.parts import Curve, Legend, Matrix, ScoreTable

__all__ = [
    "Bar",
    "Bars",
    "Block",
    "DiagnosisPage",
    "Fact",
    "LayerMap",
    "LayerMaps",
    "Legible",
    "Lines",
    "MapPicture",
    "Named",
    "Numbers",
    "Picture",
    "Pictures",
    "Section",
    "Word",
]


@dataclass(frozen=True, kw_only=True)
class Word:
    """A finding: what is wrong and what to try, and where its numbers stand."""

    code: str
    status: str
    symbol: str
    word: str
    text: str
    remedy: str
    href: str = ""
    where: str = ""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One number as a bar: places on the scale from 0 to 100, and the number with its interval in words.

    ``left`` and ``width`` are of the bar; ``low`` and ``high`` of its interval, equal where there is none.
    """

    label: str
    text: str
    interval: str
    left: float
    width: float
    low: float
    high: float
    sub: str = ""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Numbers as bars on one scale; ``mark`` is where something is expected by chance, in percent of the scale."""

    title: str
    bars: tuple[Bar, ...]
    head: str
    unit: str = ""
    mark: float | None = None
    mark_text: str = ""
    notes: tuple[str, ...] = ()
    folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Legible:
    """A table of texts; the first of each row is its head."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    folded: bool = False


@dataclass(frozen=True, kw_only=True)
class MapPicture:
    """A heat map as a PNG with one pixel per cell; ``rows`` are the texts beside it."""

    src: str
    alt: str
    rows: tuple[str, ...]
    columns: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class LayerMap:
    """A layer: its map in the order of classes, its map in the order of the net, and its numbers."""

    name: str
    facts: str
    pictures: tuple[MapPicture, ...]
    table: Legible
    notes: tuple[str, ...] = ()
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class LayerMaps:
    """The maps of all layers, one of which is shown at a time."""

    title: str
    question: str
    layers: tuple[LayerMap, ...]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Images side by side with one caption: each its data URI, its alternative text, and what it is."""

    images: tuple[tuple[str, str, str], ...]
    caption: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A gallery."""

    title: str
    pictures: tuple[Picture, ...]
    pixelated: bool
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Numbers with their intervals as a table, and its heading."""

    title: str
    table: ScoreTable


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Numbers over the strength of something, several series in one chart."""

    curve: Curve
    legends: tuple[Legend, ...]


Block = Bars | LayerMaps | Pictures | Legible | Lines | Matrix | Numbers
Named = tuple[str, Block]  # what the template does with it, and the block


@dataclass(frozen=True, kw_only=True)
class Section:
    """The answer of one part."""

    anchor: str
    title: str
    question: str
    words: tuple[Word, ...] = ()
    blocks: tuple[Named, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A line of what was asked."""

    key: str
    value: str


@dataclass(frozen=True, kw_only=True)
class DiagnosisPage:
    """Everything the page says."""

    title: str
    subtitle: str
    lead: str
    alarm: str
    words: tuple[Word, ...]
    good: tuple[Word, ...]
    facts: tuple[Fact, ...]
    sections: tuple[Section, ...]
    missing: tuple[tuple[str, str], ...]
    command: str
    environment: tuple[Fact, ...]
    version: str
