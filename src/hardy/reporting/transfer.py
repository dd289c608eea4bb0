"""Transfer as a heat map: which net stands images that were made on which other."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hardy.reporting.attack_tables import heat
from hardy.reporting.compare import find_axis
from hardy.reporting.data import Heat, Matrix, MatrixRow
from hardy.reporting.numbers import count, level, percent
from hardy.reporting.refusals import GRAY_BOX, own_weights, source_weights
from hardy.reporting.runs import Run
from hardy.reporting.trust import REMOVED, void
from hardy.results import Point

__all__ = ["transfer_matrix"]

SERIES = {
    "independent": "other training",
    "ensemble": "other trainings, averaged",
    "gray-box": "same method, other seed",
    "sibling": "same method, other seed",
    "base": "before hardening",
}
Key = tuple[str, str]
OWN = ("own twin", "own twins together", "own ensemble")  # columns of another net for every run, named in the cell


@dataclass
class _Source:
    """A column: its name, what kind of net it is for whom, and the point of every run that has one."""

    name: str
    kinds: dict[str, None] = field(default_factory=dict)
    points: dict[str, Point] = field(default_factory=dict)


def transfer_matrix(runs: Sequence[Run]) -> Matrix | None:
    """Show the accuracy of every run on images made on every source, at the budget of its headline.

    Sources of the same weights are one column, whatever they were called. A net that only one run was attacked from,
    such as its twin of another seed, shares a column with what is the same to the others.
    """
    found = {run.name: _points(run) for run in runs}
    if not any(found.values()):
        return None
    shown = [run for run in runs if found[run.name]]
    columns = _columns(runs, shown, found)
    levels = {p.level for points in found.values() for p in points}
    at = level(levels.pop(), "eps") if len(levels) == 1 else "different eps"
    rows = [
        MatrixRow(
            head=run.name,
            sub=void(run.result, "transfer"),
            cells=tuple(_cell(run, key, source) for key, source in columns.items()),
        )
        for run in shown
    ]
    return Matrix(
        title="Transfer",
        corner="Attacked net",
        heads=tuple((source.name, ", ".join(source.kinds)) for source in columns.values()),
        rows=tuple(rows),
        question=f"A column is the net that the images were made on, a row the net that they were shown to; eps {at}.",
        notes=(
            "Accuracy over all images. Below it the conditional rate: of the images that both nets get right before "
            "and that fool the source, the share still right. Every pair of nets has other "
            "such images, so compare accuracies.",
        ),
    )


def _points(run: Run) -> list[Point]:
    axis = find_axis(run.result, "transfer")
    if axis is None:
        return []
    headline = next((p for p in axis.points if p.label == axis.headline), None)
    return [p for p in axis.points if headline is None or p.level == headline.level]


def _columns(runs: Sequence[Run], shown: Sequence[Run], found: dict[str, list[Point]]) -> dict[Key, _Source]:
    """Collect the sources: the runs themselves first, in their order, so that a diagonal shows."""
    names = {weights: run.name for run in reversed(runs) if (weights := own_weights(run.result))}
    times = Counter(w for run in shown for w in {source_weights(p) for p in found[run.name] if p.label != REMOVED})
    columns: dict[Key, _Source] = {}
    for run in shown:
        nth: Counter[str] = Counter()
        for p in found[run.name]:
            weights = source_weights(p)
            key = _key(p, shared=weights in names or times[weights] > 1, nth=nth)
            source = columns.setdefault(key, _Source(names.get(weights, "") if key[0] == "weights" else ""))
            source.name = source.name or _name(p, key)
            source.kinds["itself, without them" if p.label == REMOVED else SERIES.get(p.series, p.series)] = None
            source.points.setdefault(run.name, p)
    order = [("weights", weights) for weights in dict.fromkeys(own_weights(run.result) for run in runs)]
    first = [key for key in order if key in columns]
    return {key: columns[key] for key in (*first, *(key for key in columns if key not in first))}


def _key(p: Point, *, shared: bool, nth: Counter[str]) -> Key:
    weights = source_weights(p)
    if p.label == REMOVED:
        return "removed", ""
    if weights and shared:
        return "weights", weights
    if "+" not in weights and p.series not in GRAY_BOX:
        return ("weights", weights) if weights else ("label", p.label)
    kind = OWN[2] if p.series not in GRAY_BOX else OWN[1] if "+" in weights else OWN[0]
    nth[kind] += 1
    return kind, str(nth[kind])


def _name(p: Point, key: Key) -> str:
    if key[0] not in OWN:
        return p.label
    return key[0] if key[1] == "1" else f"{key[0]} {key[1]}"


def _cell(run: Run, key: Key, source: _Source) -> Heat:
    point = source.points.get(run.name)
    itself = key[0] == "weights" and key[1] == own_weights(run.result)
    if point is None:
        return heat(None, missing="itself" if itself else "")
    rate, n = point.details.get("conditional_accuracy"), count(point.details.get("conditional_n"))
    notes = []
    if isinstance(rate, float) and n:
        notes.append(f"{percent(rate)} % of {n}")
    if key[0] in OWN:
        notes.append(point.label)
    return heat(point, mark="itself" if itself else "", notes=tuple(notes), void=bool(void(run.result, "transfer")))
