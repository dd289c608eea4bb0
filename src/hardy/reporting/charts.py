"""Line charts as inline SVG. Text takes the colour of the page, runs take its CSS variables: light and dark both work.

Runs differ in marker and line style as well as in colour. No text of a user is set here but axis labels.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "GRID", "INK", "MARKERS", "MUTED", "SETTINGS", "Line", "color", "line_chart", "swatch", "to_svg"]

COLORS = 8  # number of --run-N variables in style.css
INK, MUTED, GRID = "#010101", "#010102", "#010103"  # stand-ins, replaced by what the page defines
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
STYLES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.6, 1.2, 1.6)))
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hardy",
    "font.size": 10.0,
    "font.family": "DejaVu Sans",
}  # matplotlib types its keys one by one
WIDE = 52  # letters of a label in one line
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True, kw_only=True)
class Line:
    """One run in a chart: ``index`` fixes its look; ``low`` and ``high`` are the bounds of a band, or empty."""

    index: int
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


def line_chart(
    lines: Sequence[Line],
    *,
    name: str,
    x_label: str,
    y_label: str,
    ticks: Sequence[tuple[float, str]] = (),
    chance: float | None = None,
    mark: float | None = None,
    percent: bool = False,
    diagonal: bool = False,
) -> Markup:
    """Draw lines over a common axis.

    Args:
        lines: What to draw, in order.
        name: Prefix of all ids inside, unique on the page.
        x_label: What x is, with its unit.
        y_label: What y is, with its unit.
        ticks: Positions and texts on the x axis; empty for whole numbers chosen to fit.
        chance: Where guessing would be, in the unit of y.
        mark: Where on the x axis the threat is.
        percent: y runs from 0 to 100.
        diagonal: Draw where y in percent is x as a share.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the page's fonts draw the text, not matplotlib's
        figure = Figure(figsize=(5.0, 3.1), layout="constrained")
        axes = figure.add_subplot()
        _frame(axes, x_label, y_label)
        if percent:
            axes.set_ylim(-2, 102)
            axes.set_yticks([0, 25, 50, 75, 100])
        _x_axis(axes, ticks)
        if chance is not None:
            _chance(axes, chance)
        if diagonal:
            axes.plot([0, 1], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        if mark is not None:
            _threat(axes, mark)
        for line in lines:
            _draw(axes, line)
        return to_svg(figure, name)


def swatch(index: int, *, name: str) -> Markup:
    """Draw how run ``index`` looks, for a legend."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(0.5, 0.2))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        figure.patch.set_visible(False)
        axes.set_ylim(-1, 1)
        _draw(axes, Line(index=index, x=(0.0, 1.0, 2.0), y=(0.0, 0.0, 0.0)), markevery=[1])
        return to_svg(figure, name)


def color(index: int) -> str:
    """Give the stand-in for the colour of run ``index``."""
    return f"#0301{index % COLORS:02x}"


def _frame(axes: "Axes", x_label: str, y_label: str) -> None:
    axes.set_xlabel(textwrap.fill(x_label, WIDE), color=INK, parse_math=False)
    axes.set_ylabel(y_label, color=INK, parse_math=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=INK, length=0)
    axes.tick_params(axis="x", length=3, color=MUTED)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)


def _chance(axes: "Axes", level: float) -> None:
    axes.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    axes.annotate(
        "chance", (1, level), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
        ha="right", va="bottom", color=MUTED, fontsize=9,
    )  # fmt: skip


def _threat(axes: "Axes", level: float) -> None:
    axes.axvline(level, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    axes.annotate(
        "threat", (level, 1), xycoords=("data", "axes fraction"), xytext=(4, -1), textcoords="offset points",
        ha="left", va="top", color=MUTED, fontsize=9,
    )  # fmt: skip


def _x_axis(axes: "Axes", ticks: Sequence[tuple[float, str]]) -> None:
    if not ticks:
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        return
    places = [place for place, _ in ticks]
    positive = [place for place in places if place > 0]
    if min(places) >= 0 and len(positive) > 2 and max(positive) / min(positive) >= 8:
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.6)
    axes.set_xlim(min(places), max(places) if len(set(places)) > 1 else min(places) + 1)
    axes.margins(x=0.03)
    axes.set_xticks([], minor=True)
    kept = _apart(axes, ticks)
    axes.set_xticks([place for place, _ in kept], [text for _, text in kept])
    axes.set_xlim(auto=True)


def _apart(axes: "Axes", ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Leave out texts that would touch the one before; the last one always stays."""
    at = {place: axes.transAxes.inverted().transform(axes.transData.transform((place, 0)))[0] for place, _ in ticks}
    kept: list[tuple[float, str]] = []
    for tick in reversed(ticks):
        if not kept or at[kept[-1][0]] - at[tick[0]] > 0.014 * (len(tick[1]) + len(kept[-1][1])) / 2 + 0.03:
            kept.append(tick)
    return kept[::-1]


def _draw(axes: "Axes", line: Line, markevery: list[int] | None = None) -> None:
    ink = color(line.index)
    if line.low:
        axes.fill_between(line.x, line.low, line.high, color=ink, alpha=0.11, linewidth=0, zorder=2)
    axes.plot(
        line.x, line.y, color=ink, linewidth=1.8, linestyle=STYLES[line.index % len(STYLES)],
        marker=MARKERS[line.index % len(MARKERS)], markersize=5 if len(line.x) <= 25 else 0, markevery=markevery,
        markeredgewidth=0, clip_on=False, zorder=3 + 1 / (1 + line.index),
    )  # fmt: skip


def to_svg(figure: "Figure", name: str) -> Markup:
    """Write a figure as SVG for the page: its colours, its fonts, and ids of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")  # inline in HTML they are implied
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', text))
    text = re.sub(r' id="([\w.-]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="|url\()#([\w-]+)', rf"\g<1>#{name}-\2", text)
    text = re.sub(r"#0301([0-9a-f]{2})", lambda m: f"var(--run-{int(m[1], 16)})", text)
    text = text.replace(INK, "currentColor").replace(MUTED, "var(--muted)").replace(GRID, "var(--line)")
    return Markup(text.strip())  # noqa: S704  (drawn here; matplotlib escapes the labels)
