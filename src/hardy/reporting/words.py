"""The verdict in words, by rules from the numbers: where a method gains, what it costs, where it buys nothing."""

from collections.abc import Sequence

from hardy.reporting.compare import Paired, Score, axis_title, find_axis, pair, partner
from hardy.reporting.data import Statement
from hardy.reporting.numbers import gap, interval, join, level, percent, ratio, share, threat
from hardy.reporting.runs import Run

__all__ = ["seeds_label", "verdict"]

NEAR_ZERO = 0.05  # an accuracy that no one would call robust
COST = ("clean",)  # topics that are a price, not an aim


def verdict(table: Sequence[Sequence[Score]]) -> tuple[str, tuple[Statement, ...]]:
    """Say what the numbers say: one leading paragraph, and one statement per matter.

    Args:
        table: Scores of every run, the baseline first.
    """
    if not table[0]:
        return "None of these results holds a measurement.", ()
    broken = _white_box(table)
    if len(table) == 1:
        statements = [_control(table), _gray_box(table)]
        return _alone(table[0], broken), tuple(s for s in statements if s)
    statements = [
        *(_losses(table), _clean(table), _time(table), _small_budgets(table), _gray_box(table)),
        *(_nothing(table), _control(table), _unpaired(table)),
    ]
    return f"{_gains(table)} {broken}".strip(), tuple(s for s in statements if s)


def seeds_label(runs: Sequence[Run]) -> str:
    """Say how far the number of training seeds carries; the weakest arm counts."""
    seeds: dict[str, set[str]] = {}
    for run in runs:
        seeds.setdefault(run.arm, set()).add(run.seed)
    fewest = min(len(found) for found in seeds.values())
    if len(runs) == 1:
        return "One seed: an illustration, not evidence"
    if fewest == 1:
        return "One pair of seeds: an illustration, not evidence"
    if fewest == 2:
        return "2 seeds per arm: an illustration, not evidence"
    return f"{fewest} seeds per arm: enough to look, not to claim" if fewest < 5 else f"{fewest} seeds per arm"


def _alone(row: Sequence[Score], broken: str) -> str:
    run = row[0].run
    clean = next((s.point for s in row if s.topic.axis == "clean" and s.point), None)
    rest = [(s.point.accuracy, s.topic.title) for s in row if s.point and s.topic.axis not in ("clean", "white_box")]
    if clean is not None:
        text = f"{run.name} classifies {share(clean.accuracy)} of {clean.n} untouched images as labelled. {broken}"
    else:
        text = f"{run.name} was evaluated on {run.result.n} images; its clean accuracy was not measured. {broken}"
    if len(rest) > 1:
        (low, weakest), (high, strongest) = min(rest), max(rest)
        text += f" Otherwise it is weakest on {weakest} ({share(low)}) and strongest on {strongest} ({share(high)})."
    return text + " Whether any of this is a gain, only a paired run without the method can tell."


def _gains(table: Sequence[Sequence[Score]]) -> str:
    base = table[0][0].run
    gains, without = [], []
    for row in table[1:]:
        found = [s for s in _clear(row, "gain") if s.topic.axis not in COST]
        if found:
            gains.append(f"{row[0].run.name} gains on {join([_point(s) for s in found])}")
        elif any(isinstance(s.difference, Paired) and s.topic.axis not in COST for s in row):
            without.append(row[0].run.name)
    start = f"Compared with {base.name} on the same {base.result.n} images, "
    if not gains and not without:
        return f"Nothing here can be compared with {base.name} image by image; the reasons stand in the table."
    if not gains:
        return start + f"{join(without)} {'shows' if len(without) == 1 else 'show'} no clear gain anywhere."
    text = start + "; ".join(gains) + "."
    return text + (
        f" {join(without)} {'shows' if len(without) == 1 else 'show'} no clear gain anywhere." if without else ""
    )


def _losses(table: Sequence[Sequence[Score]]) -> Statement | None:
    losses = []
    for row in table[1:]:
        found = [_point(s) for s in _clear(row, "loss") if s.topic.axis not in COST]
        if found:
            losses.append(f"{row[0].run.name} loses on {join(found)}")
    return Statement(label="Losses", text="; ".join(losses) + ".") if losses else None


def _clean(table: Sequence[Sequence[Score]]) -> Statement | None:
    found: dict[str, list[str]] = {"loss": [], "gain": [], "unclear": []}
    for row in table[1:]:
        for score in row:
            if score.topic.axis == "clean" and isinstance(score.difference, Paired):
                figure = f" ({gap(score.difference.mean)} points)" if score.difference.verdict != "unclear" else ""
                found[score.difference.verdict].append(score.run.name + figure)
    words = {"loss": "falls for", "gain": "rises for", "unclear": "does not clearly change for"}
    parts = [f"{words[kind]} {join(names)}" for kind, names in found.items() if names]
    return Statement(label="Clean accuracy", text=f"It {'; it '.join(parts)}.") if parts else None


def _time(table: Sequence[Sequence[Score]]) -> Statement | None:
    base = table[0][0].run
    before = base.train_seconds
    if not before:
        return None
    times = [f"{ratio(after, before)} ({row[0].run.name})" for row in table[1:] if (after := row[0].run.train_seconds)]
    epochs = {len(row[0].run.metrics) for row in table if row[0].run.metrics}
    text = f"It took {join(times)} the time of {base.name}, as measured in these runs."
    text += " The numbers of epochs differ." if len(epochs) > 1 else ""
    return Statement(label="Training time", text=text) if times else None


def _white_box(table: Sequence[Sequence[Score]]) -> str:
    """Say plainly what is left against an attacker who knows the net."""
    found = [
        (s.point, s.run)
        for row in table
        for s in row
        if s.topic.axis == "white_box" and not s.topic.gray_box and s.point
    ]
    if not found:
        return "What is left against an attacker who knows the net was not measured."
    best, run = max(found, key=lambda pair: pair[0].accuracy)
    threats = {threat(r.result.threat) for _, r in found}
    against = (
        f"At {threats.pop()}, an attacker who knows the net" if len(threats) == 1 else "An attacker who knows the net"
    )
    chance = 1 / max(r.result.num_classes for _, r in found)
    figure = f"{share(best.accuracy)} {interval(best.low, best.high)}"
    kept = f"the best, {run.name}, keeps {figure}" if len(found) > 1 else f"it keeps {figure}"
    if best.accuracy < NEAR_ZERO:
        return f"{against} breaks {'every one of them' if len(found) > 1 else 'it'}: {kept}."
    if best.low <= chance:
        return f"{against} leaves nothing clearly better than guessing ({share(chance)}): {kept}."
    if len(found) == 1:
        return f"{against} leaves it {figure}. Read the checks before you believe it."
    least = share(min(p.accuracy for p, _ in found))
    text = f"{against} leaves {run.name}, the best, {figure}, and the worst {least}."
    return f"{text} Read the checks before you believe it."


def _control(table: Sequence[Sequence[Score]]) -> Statement | None:
    """Say what random noise of the same size does, where it was measured."""
    controls = []
    for run in (row[0].run for row in table):
        axis = find_axis(run.result, "white_box")
        for point in axis.points if axis else ():
            words = point.series.replace("_", " ").split()
            if axis and point.label != axis.headline and {"noise", "random", "control"} & set(words):
                controls.append(point.accuracy)
    if not controls:
        return None
    low, high = min(controls), max(controls)
    span = share(low) if percent(low) == percent(high) else f"{percent(low)} to {share(high)}"
    return Statement(label="Control", text=f"Random noise as large as the white-box attack leaves {span}.")


def _small_budgets(table: Sequence[Sequence[Score]]) -> Statement | None:
    """Say at which budgets of the eps curve a run is clearly better or worse than the baseline."""
    runs = [row[0].run for row in table]
    base_axis = find_axis(runs[0].result, "eps_curve")
    parts, measured = [], False
    for run in runs[1:]:
        axis = find_axis(run.result, "eps_curve")
        clear: dict[str, list[str]] = {"gain": [], "loss": [], "unclear": []}
        for point in axis.points if axis else ():
            difference = pair(runs[0], run, "eps_curve", partner(base_axis, point), point)
            if axis and isinstance(difference, Paired):
                measured = True
                at = level(point.level, axis.level_name or "eps") or point.label
                clear[difference.verdict].append(f"{at} ({gap(difference.mean)} points)")
        words = [
            f"{word} at {join(clear[kind])}" for kind, word in (("gain", "gains"), ("loss", "loses")) if clear[kind]
        ]
        parts += [f"{run.name} {join(words)}"] if words else []
    if not measured:
        return None
    text = (
        f"{'; '.join(parts)}. Elsewhere on the curve nothing is clear." if parts else "No clear difference at any eps."
    )
    return Statement(label="Over eps", text=text)


def _gray_box(table: Sequence[Sequence[Score]]) -> Statement | None:
    """Say what is left, and which gains, against an attacker who trains the same method."""
    kept: list[str] = []
    fate: dict[bool, list[str]] = {True: [], False: []}
    for row in table:
        gray = next((s for s in row if s.topic.gray_box), None)
        if gray is None or gray.point is None:
            continue
        kept.append(share(gray.point.accuracy) + (f" ({gray.run.name})" if len(table) > 1 else ""))
        plain = next((s.difference for s in row if s.topic.axis == gray.topic.axis and not s.topic.gray_box), None)
        if isinstance(plain, Paired) and isinstance(gray.difference, Paired) and plain.verdict == "gain":
            fate[gray.difference.verdict == "gain"].append(gray.run.name)
    if not kept:
        return None
    text = f"Attacks made on the same method from another seed leave {join(kept)}."
    if fate[False]:
        text += f" What {join(fate[False])} gained on {axis_title('transfer')} is not seen here."
    if fate[True]:
        text += f" What {join(fate[True])} gained on {axis_title('transfer')} is seen here too."
    return Statement(label="Gray-box", text=text)


def _nothing(table: Sequence[Sequence[Score]]) -> Statement | None:
    """Name the topics on which no run is clearly better than the baseline."""
    dead = []
    for i, topic in enumerate(score.topic for score in table[0]):
        column = [row[i].difference for row in table[1:]]
        paired = [d for d in column if isinstance(d, Paired)]
        if topic.axis not in COST and paired and all(d.verdict != "gain" for d in paired):
            dead.append(topic.title)
    return Statement(label="No clear gain", text=f"On {join(dead)}, for any run.") if dead else None


def _unpaired(table: Sequence[Sequence[Score]]) -> Statement | None:
    found = []
    for row in table[1:]:
        reasons = dict.fromkeys(s.difference for s in row if isinstance(s.difference, str))
        if reasons and not any(isinstance(s.difference, Paired) for s in row):
            found.append(f"{row[0].run.name} ({join(list(reasons))})")
    return Statement(label="Not comparable", text=join(found) + ".") if found else None


def _clear(row: Sequence[Score], kind: str) -> list[Score]:
    return [score for score in row if isinstance(score.difference, Paired) and score.difference.verdict == kind]


def _point(score: Score) -> str:
    if not isinstance(score.difference, Paired):
        return score.topic.title
    return f"{score.topic.title} ({gap(score.difference.mean)} points)"
