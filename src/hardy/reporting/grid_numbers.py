"""How the numbers of a grid come about: over seeds by Student's t, over images by the tests of every report."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from hardy.reporting.compare import DESCRIPTIONS, Paired, Topic, find_axis, holm, pair, topics
from hardy.reporting.grid import (
    Accuracy,
    AgainstBase,
    CellNumbers,
    Comparison,
    Cost,
    Front,
    Gap,
    GridCell,
    Mean,
    Verdict,
)
from hardy.reporting.grid_alike import Place, odd_ones
from hardy.reporting.runs import Run
from hardy.reporting.trust import WORST, bounded, caution, failed, warned
from hardy.stats import mean_interval

__all__ = ["compare_grid", "front", "over_seeds", "ranks"]

FEWEST = 3  # pairs of seeds below which a difference is not judged
ROUNDING = 1e-9  # of sums of shares


def compare_grid(
    cells: Sequence[GridCell],
    runs: Mapping[str, Run],
    *,
    arms: Mapping[str, tuple[str, ...]],
    baseline: str,
    budget: str,
) -> Comparison:
    """Compute everything the comparison says.

    Args:
        cells: All cells.
        runs: Those that are finished, by the name of the cell.
        arms: ``repr`` of the methods of every arm, by its name.
        baseline: The arm that the others are compared with.
        budget: What was equal.
    """
    nets, seeds = tuple(dict.fromkeys(c.net for c in cells)), tuple(sorted({c.seed for c in cells}))
    columns = [topic for topic in topics(list(runs.values())) if not topic.gray_box]
    robust = _robust(list(runs.values()))
    found = {(c.arm, c.net, c.seed): runs[c.name] for c in cells if c.name in runs}
    odd = odd_ones(found, columns, baseline)
    numbers = {(c.arm, c.net, c.seed): _numbers(c, runs[c.name], columns, odd) for c in cells if c.name in runs}
    against = _against_base(found, baseline, robust) if robust else {}
    numbers = {place: replace(cell, against_base=against.get(place)) for place, cell in numbers.items()}
    order = [baseline, *(arm for arm in arms if arm != baseline)]
    made = Comparison(
        baseline=baseline,
        budget=budget,
        arms={arm: arms[arm] for arm in order},
        nets=nets,
        seeds=seeds,
        axes=tuple(topic.axis for topic in columns),
        robust=robust,
        cells=tuple(numbers.values()),
        missing=tuple(cell for cell in cells if cell.name not in runs),
    )
    means = [m for net in nets for axis in made.axes for m in _means(made, net, axis)]
    gaps = [g for net in nets for arm in order[1:] for axis in made.axes if (g := _gap(made, arm, net, axis))]
    costs = [cost for net in nets for arm in order if (cost := _cost(made, arm, net))]
    made = replace(made, means=tuple(means), differences=tuple(gaps), costs=tuple(costs))
    return replace(made, fronts=tuple(f for net in nets for f in _fronts(made, net)))


def over_seeds(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Give the mean and its 95 % Student's t interval; no bounds for one value."""
    low, high = mean_interval(np.array(values, dtype=np.float64))
    return float(np.mean(values)), *((low, high) if math.isfinite(low) else (None, None))


def ranks(intervals: Mapping[str, tuple[float, float]]) -> dict[str, int]:
    """Rank by intervals: 1 plus the number of those that lie wholly above.

    Example:
        >>> ranks({"a": (0.1, 0.2), "b": (0.15, 0.3), "c": (0.25, 0.4)})
        {'a': 2, 'b': 1, 'c': 1}
    """
    return {name: 1 + sum(low > high for low, _ in intervals.values()) for name, (_, high) in intervals.items()}


def front(points: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """List the points that no other beats: is at least as high in both respects, and higher in one.

    Example:
        >>> front({"a": (0.9, 0.1), "b": (0.8, 0.3), "c": (0.7, 0.2)})
        ('a', 'b')
    """

    def beats(p: tuple[float, float], q: tuple[float, float]) -> bool:
        return p[0] >= q[0] and p[1] >= q[1] and p != q

    return tuple(name for name, q in points.items() if not any(beats(p, q) for p in points.values()))


def _robust(runs: Sequence[Run]) -> str:
    """Choose the axis that says what is left: the hardest that all runs have."""
    for axis in (WORST, "white_box", "clean"):
        if runs and all(find_axis(run.result, axis) for run in runs):
            return axis
    return ""


def _numbers(cell: GridCell, run: Run, columns: Sequence[Topic], odd: Mapping[tuple[Place, str], str]) -> CellNumbers:
    place = (cell.arm, cell.net, cell.seed)
    result = run.result
    found = {topic.axis: p for topic in columns if (p := topic.select(result)) is not None}
    accuracy = {
        axis: Accuracy(
            accuracy=p.accuracy,
            low=p.low,
            high=p.high,
            n=p.n,
            void=_void(run, axis),
            warned=warned(result, axis),
            other=odd.get((place, axis), ""),
        )
        for axis, p in found.items()
    }
    codes = tuple(dict.fromkeys(check.code for check in result.checks if check.status == "fail"))
    return CellNumbers(
        name=cell.name,
        arm=cell.arm,
        net=cell.net,
        seed=cell.seed,
        accuracy=accuracy,
        failed_checks=codes,
        epochs=len(run.metrics),
        forward_passes=_total(run, "forward_passes"),
        backward_passes=_total(run, "backward_passes"),
        train_seconds=run.train_seconds,
        evaluate_seconds=result.seconds,
    )


def _void(run: Run, axis: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*failed(run.result, axis), *bounded(run.result, axis)]))


def _total(run: Run, key: str) -> float | None:
    """Add up what every epoch tells."""
    found = [row[key] for row in run.metrics if key in row]
    return sum(found) if found and len(found) == len(run.metrics) else None


def _against_base(runs: Mapping[Place, Run], baseline: str, axis: str) -> dict[Place, AgainstBase]:
    """Compare every net with the baseline's of the same seed, image by image; corrected for the number of nets."""
    topic = Topic(axis=axis, title="")
    places = [place for place in runs if place[0] != baseline]
    made: list[Paired | str | None] = []
    for place in places:
        base, after = runs.get((baseline, *place[1:])), topic.select(runs[place].result)
        if base is None or after is None:
            made.append("the baseline's net of this seed is not there" if base is None else "it was not measured")
        else:
            made.append(pair(base, runs[place], axis, topic.select(base.result), after))
    told = {place: _told(axis, found) for place, found in zip(places, holm(made), strict=True)}
    return {
        place: replace(each, caution=caution(runs[baseline, *place[1:]].result, runs[place].result, axis))
        if each.difference is not None
        else each
        for place, each in told.items()
    }


def _told(axis: str, found: Paired | str | None) -> AgainstBase:
    if not isinstance(found, Paired):
        return AgainstBase(axis=axis, why=found or "")
    return AgainstBase(
        axis=axis, difference=found.mean, low=found.low, high=found.high, p=found.p, verdict=found.verdict
    )


def _of(made: Comparison, arm: str, net: str, axis: str) -> dict[int, Accuracy]:
    """Give the accuracies of an arm that answer the question of its column, by seed."""
    cells = [cell for cell in made.cells if (cell.arm, cell.net) == (arm, net) and axis in cell.accuracy]
    return {cell.seed: cell.accuracy[axis] for cell in cells if not cell.accuracy[axis].other}


def _means(made: Comparison, net: str, axis: str) -> list[Mean]:
    """Average every arm over its seeds, and rank those that can be."""
    of_arms = {arm: of_seeds for arm in made.arms if (of_seeds := _of(made, arm, net, axis))}
    found = [_mean(arm, net, axis, of_seeds) for arm, of_seeds in of_arms.items()]
    seeds = {seed for m in found if not m.void for seed in of_arms[m.arm]}
    found = [replace(m, missing=tuple(sorted(seeds - set(of_arms[m.arm])))) for m in found]
    able = [] if axis in DESCRIPTIONS else [m for m in found if not m.void and not m.missing]
    near = {m.arm: 0.5 / min(a.n for a in of_arms[m.arm].values()) + ROUNDING for m in able}  # half an image
    bounds = {
        m.arm: (m.low - near[m.arm], m.high + near[m.arm]) for m in able if m.low is not None and m.high is not None
    }
    ranked = ranks(bounds) if len(bounds) > 1 else {}
    return [replace(m, rank=ranked.get(m.arm)) for m in found]


def _mean(arm: str, net: str, axis: str, of_seeds: Mapping[int, Accuracy]) -> Mean:
    mean, low, high = over_seeds([a.accuracy for a in of_seeds.values()])
    return Mean(
        arm=arm,
        net=net,
        axis=axis,
        seeds=len(of_seeds),
        mean=mean,
        low=None if low is None else max(0.0, low),
        high=None if high is None else min(1.0, high),
        void=tuple(dict.fromkeys(code for a in of_seeds.values() for code in a.void)),
        warned=tuple(dict.fromkeys(code for a in of_seeds.values() for code in a.warned)),
    )


def _gap(made: Comparison, arm: str, net: str, axis: str) -> Gap | None:
    ours, theirs = _of(made, arm, net, axis), _of(made, made.baseline, net, axis)
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    mean, low, high = over_seeds([ours[seed].accuracy - theirs[seed].accuracy for seed in seeds])
    low, high = (None if bound is None else min(1.0, max(-1.0, bound)) for bound in (low, high))
    image = 1 / min(a.n for seed in seeds for a in (ours[seed], theirs[seed])) + ROUNDING
    verdict: Verdict = "unclear"
    if any(a.void for a in [*ours.values(), *theirs.values()]):
        verdict = "void"
    elif axis in DESCRIPTIONS:
        verdict = "description"
    elif len(seeds) < FEWEST or low is None or high is None:
        verdict = "few"
    elif low > image or high < -image:
        verdict = "gain" if mean > 0 else "loss"
    return Gap(arm=arm, net=net, axis=axis, pairs=len(seeds), mean=mean, low=low, high=high, verdict=verdict)


def _cost(made: Comparison, arm: str, net: str) -> Cost | None:
    cells = [cell for cell in made.cells if (cell.arm, cell.net) == (arm, net)]

    def mean(read: Callable[[CellNumbers], float | None]) -> float | None:
        values = [value for cell in cells if (value := read(cell)) is not None]
        return sum(values) / len(values) if values and len(values) == len(cells) else None

    if not cells:
        return None
    return Cost(
        arm=arm,
        net=net,
        forward_passes=mean(lambda cell: cell.forward_passes),
        backward_passes=mean(lambda cell: cell.backward_passes),
        seconds=mean(lambda cell: cell.train_seconds),
    )


def _fronts(made: Comparison, net: str) -> list[Front]:
    """Find both fronts of a net among the arms whose numbers are evidence and lack no seed."""
    if made.robust in ("", "clean"):
        return []
    able = [m for m in made.means if m.net == net and not m.void and not m.missing]
    robust = {m.arm: m.mean for m in able if m.axis == made.robust}
    clean = {m.arm: m.mean for m in able if m.axis == "clean"}
    costs = {
        c.arm: c.forward_passes + c.backward_passes
        for c in made.costs
        if c.net == net and c.forward_passes is not None and c.backward_passes is not None
    }
    points = {arm: (clean[arm], value) for arm, value in robust.items() if arm in clean}
    cheap = {arm: (-costs[arm], value) for arm, value in robust.items() if arm in costs}
    found = [Front(net=net, against="clean", arms=front(points)), Front(net=net, against="passes", arms=front(cheap))]
    alone = [len(places) < 2 for places in (points, cheap)]  # such an arm would be on any front
    return [each for each, few in zip(found, alone, strict=True) if not few]
