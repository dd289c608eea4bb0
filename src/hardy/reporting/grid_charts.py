"""The two plots of a grid: clean against robust accuracy, and what the training costs against robust accuracy."""

from collections.abc import Mapping
from typing import Literal

from hardy.reporting.compare import axis_title
from hardy.reporting.grid import Comparison, Mean
from hardy.reporting.numbers import join, percent
from hardy.reporting.parts import Chart
from hardy.reporting.scatter import Spot, scatter_chart

__all__ = ["charts"]


def charts(made: Comparison, net: str, *, name: str) -> tuple[tuple[Chart, str], ...]:
    """Draw both plots of a net, each with what it says; none where there is nothing to plot.

    Args:
        made: The numbers.
        net: Which net.
        name: Prefix of all ids inside, unique on the page.
    """
    robust = {m.arm: m for m in made.means if (m.net, m.axis) == (net, made.robust) and not m.void}
    if made.robust in ("", "clean"):
        return ()
    where = axis_title(made.robust)
    clean = {m.arm: _bounds(m) for m in made.means if (m.net, m.axis) == (net, "clean") and not m.void}
    passes = {
        c.arm: (total, total, total)
        for c in made.costs
        if c.net == net and c.forward_passes is not None and c.backward_passes is not None
        if (total := c.forward_passes + c.backward_passes) > 0
    }
    found = [
        _chart(made, net, "clean", clean, robust, name=f"{name}-a", title=f"Clean against {where} accuracy",
               x_label="clean accuracy in %"),
        _chart(made, net, "passes", passes, robust, name=f"{name}-b", title=f"Cost against {where} accuracy",
               x_label="forward and backward passes per training image"),
    ]  # fmt: skip
    return tuple(each for each in found if each is not None)


def _chart(
    made: Comparison,
    net: str,
    against: Literal["clean", "passes"],
    across: Mapping[str, tuple[float, float, float]],
    robust: Mapping[str, Mean],
    *,
    name: str,
    title: str,
    x_label: str,
) -> tuple[Chart, str] | None:
    front = next((f.arms for f in made.fronts if (f.net, f.against) == (net, against)), ())
    spots, said = [], []
    for index, arm in enumerate(made.arms):
        if arm in across and arm in robust:
            (x, x_low, x_high), (y, y_low, y_high) = across[arm], _bounds(robust[arm])
            place = {"x": x, "x_low": x_low, "x_high": x_high, "y": y, "y_low": y_low, "y_high": y_high}
            spots.append(Spot(index=index, **place, front=arm in front))
            said.append(f"{arm} {x:.1f}, {percent(y / 100)}")
    if len(spots) < 2:
        return None
    where = axis_title(made.robust)
    svg = scatter_chart(
        spots, name=name, x_label=x_label, y_label=f"{where} accuracy in %", fewer_is_better=against == "passes"
    )
    notes = [
        f"On the Pareto front (filled): {join(front)}. No other arm is as good in both respects and better in one."
    ]
    drawn = [list(made.arms)[spot.index] for spot in spots]
    lacking = {m.arm for m in made.means if m.net == net and m.missing and m.axis in (made.robust, "clean")}
    if left := [arm for arm in drawn if arm in lacking]:
        notes.append(f"Not judged, as seeds are missing: {join(left)}.")
    return Chart(title=title, svg=svg, alt=f"{title}: {'; '.join(said)}"), " ".join(notes if front else notes[1:])


def _bounds(mean: Mean) -> tuple[float, float, float]:
    """Give a mean and its interval in percent."""
    low, high = (mean.mean if bound is None else bound for bound in (mean.low, mean.high))
    return 100 * mean.mean, 100 * low, 100 * high
