"""The dot plot of a profile as inline SVG: one row per axis, one mark with its interval per net."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from hardy.reporting.charts import GRID, INK, MARKERS, MUTED, SETTINGS, color, to_svg

__all__ = ["Dot", "dot_chart"]

ROW, TOP = 0.34, 0.6  # inches per row, and for the scale


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A number and the bounds of its interval, in the unit of the chart; hollow where it is ``void``."""

    value: float
    low: float
    high: float
    void: bool = False


def dot_chart(
    rows: Sequence[str], nets: Sequence[tuple[int, Sequence[Dot | None]]], *, name: str, x_label: str
) -> Markup:
    """Draw dots from 0 to 100.

    Args:
        rows: Texts of the rows, from the top.
        nets: For every net how it looks, and its dot in every row, or None.
        name: Prefix of all ids inside, unique on the page.
        x_label: Unit of the scale.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(7.4, TOP + ROW * len(rows) * max(1.0, 0.34 * len(nets))), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlim(-1.5, 101.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), list(rows), parse_math=False)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.set_xlabel(x_label, color=INK, parse_math=False)
        axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
        axes.tick_params(colors=INK, length=0)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        for border in range(1, len(rows)):
            axes.axhline(border - 0.5, color=GRID, linewidth=0.5, zorder=1)
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        spread = min(0.22, 0.7 / max(1, len(nets)))
        for place, (index, dots) in enumerate(nets):
            shift = (place - (len(nets) - 1) / 2) * spread
            for row, dot in enumerate(dots):
                if dot is not None:
                    ink = MUTED if dot.void else color(index)
                    axes.plot([dot.low, dot.high], [row + shift] * 2, color=ink, linewidth=1.6, alpha=0.6, zorder=3)
                    axes.plot(
                        [dot.value], [row + shift], color=ink, marker=MARKERS[index % len(MARKERS)], markersize=6,
                        markerfacecolor="none" if dot.void else ink, clip_on=False, zorder=4,
                    )  # fmt: skip
        return to_svg(figure, name)
