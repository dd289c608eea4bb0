"""The robustness profile: the number that stands for every axis, run beside run, or a run beside its own base."""

from collections.abc import Sequence
from dataclasses import dataclass

from hardy.reporting.cells import cell
from hardy.reporting.charts import swatch
from hardy.reporting.compare import Difference as Compared
from hardy.reporting.compare import Paired, axis_names, axis_title, find_axis, headline, holm, pair
from hardy.reporting.data import Cell, Chart, Legend, Profile, ProfileRow
from hardy.reporting.dots import Dot, dot_chart
from hardy.reporting.numbers import join
from hardy.reporting.refusals import per_image
from hardy.reporting.runs import Run
from hardy.reporting.score_tables import BETTER, compare_scores, score_cell
from hardy.reporting.trust import WORST, caution, named, void
from hardy.reporting.versus import apart, voided
from hardy.results import Point, Result, Score, Versus
from hardy.stats import mean_interval, wilson

__all__ = ["profile"]

FEWEST = 3  # axes that make a profile
ORDER = (
    *("clean", "per_class", "corruptions", "noise", "occlusion", "texture", "weights", "certified"),
    *("transfer", "query", "frequency", "eps_curve", "minimal_norm", "white_box", WORST, "calibration", "ood"),
)


@dataclass(frozen=True)
class _Side:
    """One net in the profile: its number on every axis that has one, as a point or a score, and the differences."""

    name: str
    index: int
    numbers: dict[str, Point | Score]
    voids: dict[str, str]


def profile(runs: Sequence[Run], anchors: dict[str, str]) -> Profile | None:
    """Show all axes side by side; None where there are too few for a profile.

    Args:
        runs: The runs, the baseline first; one run is shown beside the base that it was measured with, if any.
        anchors: Where every axis is explained.
    """
    names = [name for name in axis_names(runs) if any(_number(run.result, name) for run in runs)]
    names.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    if len(names) < FEWEST:
        return None
    alone = len(runs) == 1
    of_base = _base(runs[0].result) if alone else None
    sides = [_side(run, i + (of_base is not None), names) for i, run in enumerate(runs)]
    sides = [of_base, *sides] if of_base is not None else sides
    rows = _against_base(runs[0], sides, names, anchors) if alone else _side_by_side(runs, sides, names, anchors)
    swatches = [swatch(side.index, name=f"profile-key-{side.index}") for side in sides]
    legends = tuple(
        Legend(name=side.name, swatch=drawn, is_base=i == 0)
        for i, (side, drawn) in enumerate(zip(sides, swatches, strict=True))
    )
    return Profile(
        chart=_chart(sides, names),
        legends=legends if len(sides) > 1 else (),
        names=tuple(side.name for side in sides),
        rows=rows,
        notes=_notes(alone=alone, compared=of_base is not None),
    )


def _number(result: Result, name: str) -> Point | Score | None:
    """Give what stands for an axis."""
    axis = find_axis(result, name)
    if axis is None:
        return None
    return next((s for s in axis.scores if s.label == axis.headline), None) or headline(axis)


def _side(run: Run, index: int, names: Sequence[str]) -> _Side:
    found = {name: made for name in names if (made := _number(run.result, name)) is not None}
    voids = {name: text for name in names if (text := void(run.result, name))}
    return _Side(run.name, index, found, voids)


def _base(result: Result) -> _Side | None:
    """Put together what the evaluation found of the base."""
    if not result.versus:
        return None
    numbers: dict[str, Point | Score] = {v.axis: _of_base(result, v) for v in result.versus}
    return _Side(result.versus[0].base, 0, numbers, {})


def _of_base(result: Result, v: Versus) -> Score:
    kept = per_image(result, f"base/{v.axis}", v.base_accuracy)
    bounds: tuple[float, float] | None = None
    if kept is not None and kept.dtype.kind == "b":
        bounds = wilson(int(kept.sum()), len(kept))
    elif kept is not None and len(kept) > 1:
        bounds = mean_interval(kept)
    low, high = bounds or (None, None)
    axis = find_axis(result, v.axis)
    label = v.label or (axis.headline if axis else v.axis)
    return Score(label=label, value=v.base_accuracy, kind=v.kind, n=result.n, low=low, high=high)


def _side_by_side(
    runs: Sequence[Run], sides: Sequence[_Side], names: Sequence[str], anchors: dict[str, str]
) -> tuple[ProfileRow, ...]:
    grid: list[Compared] = []
    for name in names:
        grid += [_compared(runs[0], run, name) for run in runs]
    compared = holm(grid)
    width = len(runs)
    rows = []
    for i, name in enumerate(names):
        found = compared[width * i : width * (i + 1)]
        cells = [
            _cell(side, name, difference, caution(runs[0].result, run.result, name))
            for run, side, difference in zip(runs, sides, found, strict=True)
        ]
        rows.append(_row(name, sides, tuple(cells), anchors))
    return tuple(rows)


def _compared(base: Run, run: Run, name: str) -> Compared:
    before, after = _number(base.result, name), _number(run.result, name)
    if run is base or after is None:
        return None
    if isinstance(after, Score):
        return compare_scores(base, run, name, before if isinstance(before, Score) else None, after)
    return pair(base, run, name, before if isinstance(before, Point) else None, after)


def _against_base(
    run: Run, sides: Sequence[_Side], names: Sequence[str], anchors: dict[str, str]
) -> tuple[ProfileRow, ...]:
    """Write the differences to the base as the evaluation found them."""
    versus = {v.axis: v for v in run.result.versus}
    rows = []
    for name in names:
        cells = [_cell(side, name, None, "") for side in sides]
        v = versus.get(name)
        if v is not None:
            cells[-1] = _beside(cells[-1], v, voided(run.result, name))
        rows.append(_row(name, sides, tuple(cells), anchors))
    return tuple(rows)


def _beside(made: Cell, v: Versus, codes: tuple[str, ...]) -> Cell:
    """Add the difference to the base, or the failed checks by which there is none."""
    if made.void or codes:
        return Cell(**{**vars(made), "note": made.note or f"not compared: {named(codes)} failed"})
    return Cell(**{**vars(made), "difference": apart(v)})


def _cell(side: _Side, name: str, compared: Compared, warning: str) -> Cell:
    made, why = side.numbers.get(name), side.voids.get(name, "")
    if isinstance(made, Point):
        return cell(side.name, made, compared, void=why, warning=warning)
    told = score_cell(side.name, made, compared if isinstance(compared, Paired) else None, void=why)
    if why or not told.measured:
        return told
    clear = isinstance(compared, Paired) and compared.verdict in ("gain", "loss")
    note = f"not compared: {compared}" if isinstance(compared, str) else warning if clear else ""
    return Cell(**{**vars(told), "note": note})


def _row(name: str, sides: Sequence[_Side], cells: tuple[Cell, ...], anchors: dict[str, str]) -> ProfileRow:
    found = [side.numbers[name] for side in reversed(sides) if name in side.numbers]
    labels = {made.label for made in found}
    kinds = {made.kind for made in found if isinstance(made, Score)}
    return ProfileRow(
        title=axis_title(name),
        href=anchors.get(name, ""),
        condition=found[0].label if len(labels) == 1 else "conditions differ",
        better=BETTER[kinds.pop()] if len(kinds) == 1 else BETTER["description"] if name == "texture" else "",
        cells=cells,
    )


def _chart(sides: Sequence[_Side], names: Sequence[str]) -> Chart:
    drawn = [name for name in names if any(_dot(side, name) for side in sides)]
    dots = [(side.index, [_dot(side, name) for name in drawn]) for side in sides]
    texts = [axis_title(name) + (" (lower is better)" if _is_error(sides, name) else "") for name in drawn]
    svg = dot_chart(texts, dots, name="profile", x_label="%")
    alt = f"The number that stands for every axis, with its 95 % interval, for {join([s.name for s in sides])}."
    return Chart(title="Profile", svg=svg, alt=alt + " The numbers stand in the table below.")


def _dot(side: _Side, name: str) -> Dot | None:
    """Place a number on the common scale from 0 to 100 %; others have no place on it."""
    made = side.numbers.get(name)
    if made is None:
        return None
    value = made.accuracy if isinstance(made, Point) else made.value
    if (isinstance(made, Score) and made.unit) or not 0 <= value <= 1:
        return None
    low, high = (value if bound is None else bound for bound in (made.low, made.high))
    return Dot(value=100 * value, low=100 * max(0.0, low), high=100 * min(1.0, high), void=name in side.voids)


def _is_error(sides: Sequence[_Side], name: str) -> bool:
    return any(isinstance(made := side.numbers.get(name), Score) and made.kind == "error" for side in sides)


def _notes(*, alone: bool, compared: bool) -> tuple[str, ...]:
    notes = ["One number stands for each axis; its bar is the 95 % interval over images."]
    if compared:
        notes.append(
            "The base is the net before hardening, measured alike on the same images; differences are paired over "
            "images and not corrected for their number."
        )
    elif not alone:
        notes.append("Differences are paired over images, and corrected for the number of them in this table (Holm).")
    return tuple(notes)
