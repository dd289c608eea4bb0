"""The statements below the lead: losses, costs, small budgets, gray-box, and what was not gained."""

from collections.abc import Sequence

from hardy.reporting.claims import claims, is_merit, phrase, points, repeats, subject_of, verdict
from hardy.reporting.compare import Paired, Score, axis_title, find_axis, holm, pair, partner
from hardy.reporting.data import Statement
from hardy.reporting.numbers import gap, join, level, percent, ratio, share
from hardy.reporting.trust import WORST, caution, failed, is_control, void
from hardy.reporting.versus import against_base

__all__ = ["TOO_SHORT", "statements"]

TOO_SHORT = 60.0  # seconds of training below which start-up and other load hide the cost of a method

CURVES = ("noise", "eps_curve")  # where the headline is one level of many

Table = Sequence[Sequence[Score]]


def statements(table: Table) -> tuple[Statement, ...]:
    """Say one thing per matter, as far as the table knows of it.

    Args:
        table: Scores of every run, the baseline first.
    """
    if len(table) == 1:
        made = [against_base([table[0][0].run]), _control(table), _gray_box(table)]
    else:
        curve = "eps_curve" if any(find_axis(row[0].run.result, "eps_curve") for row in table) else "minimal_norm"
        made = [
            *(_losses(table), _clean(table), _time(table), _worst(table), against_base([row[0].run for row in table])),
            *(_along(table, curve, "eps"), *_queries(table)),
            *(_along(table, "noise", "sigma", "gaussian"), _gray_box(table)),
            *(_nothing(table), _control(table), _unpaired(table)),
        ]
    return tuple(statement for statement in made if statement)


def _losses(table: Table) -> Statement | None:
    base, losses = table[0][0].run, []
    for row in table[1:]:
        found = [phrase(base, s) for s in claims(row, "loss")]
        if found:
            losses.append(f"{row[0].run.name} loses on {join(found)}")
    return Statement(label="Losses", text="; ".join(losses) + ".") if losses else None


def _clean(table: Table) -> Statement | None:
    base = table[0][0].run
    found: dict[str, list[str]] = {"loss": [], "gain": [], "unclear": []}
    for row in table[1:]:
        for score in row:
            if score.topic.axis == "clean" and isinstance(score.difference, Paired):
                figure = points(base, score) if score.difference.verdict != "unclear" else ""
                found[score.difference.verdict].append(score.run.name + figure)
    words = {"loss": "falls for", "gain": "rises for", "unclear": "does not clearly change for"}
    parts = [f"{words[kind]} {join(names)}" for kind, names in found.items() if names]
    return Statement(label="Clean accuracy", text=f"It {'; it '.join(parts)}.") if parts else None


def _time(table: Table) -> Statement | None:
    base = table[0][0].run
    before = base.train_seconds
    if not before:
        return None
    if before < TOO_SHORT:
        text = "These trainings are too short to compare their times; step times are measured in benchmarks/speed."
        return Statement(label="Training time", text=text)
    times = [f"{ratio(after, before)} ({row[0].run.name})" for row in table[1:] if (after := row[0].run.train_seconds)]
    epochs = {len(row[0].run.metrics) for row in table if row[0].run.metrics}
    text = f"It took {join(times)} the time of {base.name}: wall time, with whatever else the machine did."
    text += " The numbers of epochs differ." if len(epochs) > 1 else ""
    return Statement(label="Training time", text=text) if times else None


def _worst(table: Table) -> Statement | None:
    """Say which gains against the suite are gone once everything that was tried counts."""
    gone = []
    for row in table[1:]:
        found = {score.topic.axis: score for score in row if not score.topic.gray_box}
        suite, worst = found.get("white_box"), found.get(WORST)
        if suite and worst and verdict(suite) == "gain" and verdict(worst) in ("unclear", "loss"):
            gone.append(row[0].run.name)
    return (
        Statement(label="Worst case", text=f"What {join(gone)} gained on white-box is not seen here.") if gone else None
    )


def _queries(table: Table) -> list[Statement | None]:
    axes = [axis for row in table if (axis := find_axis(row[0].run.result, "query"))]
    seen = dict.fromkeys(point.series for axis in axes for point in axis.points)
    return [_along(table, "query", "number of queries", series) for series in seen]


def _along(table: Table, name: str, unit: str, series: str | None = None) -> Statement | None:
    """Say at which levels of a curve, or of one series of it, a run is clearly better or worse than the baseline."""
    base = table[0][0].run
    base_axis = find_axis(base.result, name)
    found = [
        (row[0].run, axis, point)
        for row in table[1:]
        if (axis := find_axis(row[0].run.result, name))
        for point in axis.points
        if point.level != 0 and (series is None or point.series == series)  # nothing was done at level 0
    ]
    made = holm([pair(base, run, axis.name, partner(base_axis, point), point) for run, axis, point in found])
    clear: dict[str, dict[str, list[str]]] = {}
    for (run, axis, point), difference in zip(found, made, strict=True):
        if isinstance(difference, Paired) and difference.verdict in ("gain", "loss"):
            at = level(point.level, axis.level_name or unit) or point.label
            word = "gains" if difference.verdict == "gain" else "loses"
            clear.setdefault(run.name, {}).setdefault(word, []).append(f"{at} ({gap(difference.mean)} points)")
    warnings = {run.name: caution(base.result, run.result, axis.name) for run, axis, _ in found}
    parts = []
    for who, words in clear.items():
        told = join([f"{word} at {join(words[word])}" for word in ("gains", "loses") if word in words])
        parts.append(f"{who} {told}{f', but {warnings[who]}' if warnings[who] else ''}")
    voids = {run.name: void(run.result, axis.name) for run, axis, _ in found}
    return _over(parts, voids, unit, series) if any(isinstance(d, Paired) for d in made) else None


def _over(parts: list[str], voids: dict[str, str], unit: str, series: str | None) -> Statement:
    nothing = f"No clear difference at any {unit}."
    text = f"{'; '.join(parts)}. Elsewhere on the curve nothing is clear." if parts else nothing
    text += "".join(f" {name} is {why}." for name, why in voids.items() if why)
    return Statement(label=f"Queries ({series})" if series and unit != "sigma" else f"Over {unit}", text=text)


def _gray_box(table: Table) -> Statement | None:
    """Say what is left, and which gains, against an attacker who trains the same method."""
    base, kept = table[0][0].run, []
    fate: dict[bool, list[str]] = {True: [], False: []}
    for row in table:
        gray = next((s for s in row if s.topic.gray_box), None)
        if gray is None or gray.point is None or failed(gray.run.result, gray.topic.axis):
            continue
        kept.append(share(gray.point.accuracy) + (f" ({gray.run.name})" if len(table) > 1 else ""))
        plain = next((s.difference for s in row if s.topic.axis == gray.topic.axis and not s.topic.gray_box), None)
        if isinstance(plain, Paired) and isinstance(gray.difference, Paired) and plain.verdict == "gain":
            warning = caution(base.result, gray.run.result, gray.topic.axis)
            fate[gray.difference.verdict == "gain"].append(gray.run.name + (f" ({warning})" if warning else ""))
    if not kept:
        return None
    text = f"Attacks made on the same method from another seed leave {join(kept)}."
    for seen, words in ((False, "is not seen here"), (True, "is seen here too")):
        if fate[seen]:
            text += f" What {join(fate[seen])} gained on {axis_title('transfer')} {words}."
    return Statement(label="Gray-box", text=text)


def _nothing(table: Table) -> Statement | None:
    """Name the topics on which no run is clearly better than the baseline."""
    dead, gaps = [], False
    for i, topic in enumerate(score.topic for score in table[0]):
        column = [row[i] for row in table[1:]]
        rows = [(row, row[i]) for row in table[1:] if isinstance(row[i].difference, Paired)]
        if not is_merit(topic) or not rows or all(repeats(row, score) for row, score in rows):
            continue
        if all(isinstance(s.difference, Paired) and s.difference.verdict != "gain" for _, s in rows):
            labels = {score.point.label for _, score in rows if score.point and score.point.level is not None}
            at = f" at {labels.pop()}" if len(labels) == 1 and topic.axis in CURVES else ""
            dead.append(subject_of(topic) + at)
            gaps |= len(rows) < len(column)
    which = "any run that can be compared" if gaps else "any run"
    return Statement(label="No clear gain", text=f"On {join(dead)}, for {which}.") if dead else None


def _control(table: Table) -> Statement | None:
    """Say what random noise of the size of the attack does, where it was measured."""
    runs = [row[0].run for row in table if not failed(row[0].run.result, "clean")]
    axes = [axis for run in runs if (axis := find_axis(run.result, "white_box"))]
    controls = [p for axis in axes for p in axis.points if p.label != axis.headline and is_control(p)]
    if not controls:
        return None
    low, high = min(p.accuracy for p in controls), max(p.accuracy for p in controls)
    once = all(p.details.get("draws") == 1 for p in controls)
    noise = "One random draw" if once else "Random noise"
    span = share(low) if percent(low) == percent(high) else f"{percent(low)} to {share(high)}"
    return Statement(label="Control", text=f"{noise} as large as the white-box attack leaves {span}.")


def _unpaired(table: Table) -> Statement | None:
    found = []
    for row in table[1:]:
        reasons = dict.fromkeys(s.difference for s in row if isinstance(s.difference, str))
        if reasons and not any(isinstance(s.difference, Paired) for s in row):
            found.append(f"{row[0].run.name} ({join(list(reasons))})")
    return Statement(label="Not comparable", text=join(found) + ".") if found else None
