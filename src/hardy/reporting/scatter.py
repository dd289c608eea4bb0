"""Scatter plots of arms as inline SVG: a mark with its intervals as a cross, and the Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from hardy.reporting.charts import GRID, INK, MARKERS, MUTED, SETTINGS, color, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Spot", "scatter_chart"]


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One arm: ``index`` fixes its look; bounds equal to the value where there is no interval.

    On the front it is filled, else hollow.
    """

    index: int
    x: float
    y: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    front: bool


def scatter_chart(
    spots: Sequence[Spot], *, name: str, x_label: str, y_label: str, fewer_is_better: bool = False
) -> Markup:
    """Draw arms by two numbers; higher is better, but for x where ``fewer_is_better``.

    Args:
        spots: The arms.
        name: Prefix of all ids inside, unique on the page.
        x_label: What x is, with its unit.
        y_label: What y is, with its unit.
        fewer_is_better: Of x less is better; its axis then begins at 0.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(5.0, 3.4), layout="constrained")
        axes = figure.add_subplot()
        _frame(axes, x_label, y_label)
        _front(axes, [spot for spot in spots if spot.front], fewer_is_better=fewer_is_better)
        for spot in spots:
            ink = color(spot.index)
            axes.plot([spot.x_low, spot.x_high], [spot.y] * 2, color=ink, linewidth=1.4, alpha=0.6, zorder=3)
            axes.plot([spot.x] * 2, [spot.y_low, spot.y_high], color=ink, linewidth=1.4, alpha=0.6, zorder=3)
            axes.plot(
                [spot.x], [spot.y], color=ink, marker=MARKERS[spot.index % len(MARKERS)], markersize=8,
                markerfacecolor=ink if spot.front else "none", linestyle="none", clip_on=False, zorder=4,
            )  # fmt: skip
        axes.margins(0.08)
        if fewer_is_better:
            axes.set_xlim(left=0)
        return to_svg(figure, name)


def _front(axes: "Axes", spots: Sequence[Spot], *, fewer_is_better: bool) -> None:
    """Join the front by steps: what lies beyond them, no arm reaches."""
    if len(spots) > 1:
        found = sorted(spots, key=lambda spot: spot.x)
        axes.step(
            [spot.x for spot in found], [spot.y for spot in found], where="post" if fewer_is_better else "pre",
            color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=2,
        )  # fmt: skip


def _frame(axes: "Axes", x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, color=INK, parse_math=False)
    axes.set_ylabel(y_label, color=INK, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=INK, length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)
