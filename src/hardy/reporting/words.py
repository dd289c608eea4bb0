"""The verdict in words, by rules from the numbers: where a method gains, what it costs, where it buys nothing."""

from collections.abc import Sequence

from hardy.reporting.claims import claims, is_merit, phrase, subject_of
from hardy.reporting.compare import DESCRIPTIONS, Paired, Score, Topic
from hardy.reporting.data import Statement
from hardy.reporting.numbers import interval, join, share, threat
from hardy.reporting.refusals import same_images
from hardy.reporting.runs import Run
from hardy.reporting.statements import statements
from hardy.reporting.trust import WORST, bounded, failed, named, warned
from hardy.reporting.versus import answer
from hardy.results import Point

__all__ = ["seeds_label", "verdict"]

NEAR_ZERO = 0.05  # an accuracy that no one would call robust
NOTHING_LEFT = ("White-box accuracy is near zero.", "Accuracy in the worst case is near zero.")
SUITES = ("standard", "quick", "full", "custom")
STRONG = ("standard", "full")  # suites after which no other attack is owed
FEW_CLASSES = 0.1  # chance above which worse than guessing is not near zero


def verdict(table: Sequence[Sequence[Score]]) -> tuple[str, tuple[Statement, ...]]:
    """Say what the numbers say: one leading paragraph, and one statement per matter.

    Args:
        table: Scores of every run, the baseline first.
    """
    if not table[0]:
        return "None of these results holds a measurement.", ()
    if len(table) == 1:
        return _alone(table[0]), statements(table)
    known, gains, voids = _white_box(table), _gains(table), [*map(_void, table)]
    first = known.startswith(NOTHING_LEFT)  # what undoes the rest is said before it
    return _sentences(*([known, gains, *voids] if first else [gains, *voids, known])), statements(table)


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


def _alone(row: Sequence[Score]) -> str:
    run = row[0].run
    clean = next((s.point for s in row if s.topic.axis == "clean" and s.point), None)
    if clean is None:
        text = f"{run.name} was evaluated on {run.result.n} images; its clean accuracy was not measured."
    elif failed(run.result, "clean"):
        text = f"{run.name} was evaluated on {run.result.n} images."
    else:
        text = f"{run.name} classifies {share(clean.accuracy)} of {clean.n} untouched images as labelled."
    rest = [
        (s.point.accuracy, s.topic.title)
        for s in row
        if s.point
        and s.topic.axis not in ("clean", "white_box", WORST, *DESCRIPTIONS)
        and not failed(run.result, s.topic.axis)
    ]
    span = ""
    if len(rest) > 1:
        (low, weakest), (high, strongest) = min(rest), max(rest)
        span = f"Otherwise it is weakest on {weakest} ({share(low)}) and strongest on {strongest} ({share(high)})."
    close = answer(run) or "Whether any of this is a gain, only a paired run without the method can tell."
    return _sentences(text, _void(row), _white_box([row]), span, close)


def _gains(table: Sequence[Sequence[Score]]) -> str:
    base = table[0][0].run
    gains, without, only_losses, compared = [], [], [], []
    for row in table[1:]:
        if any(isinstance(s.difference, Paired) for s in row):
            compared.append(row[0].run)
        found = claims(row, "gain")
        if found:
            gains.append(f"{row[0].run.name} gains on {join([phrase(base, s) for s in found])}")
        elif lost := claims(row, "loss"):
            phrases = join([phrase(base, s) for s in lost])
            only_losses.append(f"{row[0].run.name} gains nothing clearly, and loses on {phrases}")
        elif any(isinstance(s.difference, Paired) and is_merit(s.topic) for s in row):
            without.append(row[0].run.name)
    if not compared:
        return f"Nothing here can be compared with {base.name} image by image; the reasons stand in the table."
    verified = all(same_images(base.result, run.result) for run in compared)
    images = f"the same {base.result.n} images" if verified else f"{base.result.n} images with equal labels"
    start = f"Compared with {base.name} on {images}, "
    gains += only_losses
    if not gains and not without:
        return f"{start}no axis of robustness can be judged."
    nothing = f"{join(without)} {'shows' if len(without) == 1 else 'show'} no clear gain anywhere." if without else ""
    return _sentences(f"{start}{'; '.join(gains)}.", nothing) if gains else start + nothing


def _void(row: Sequence[Score]) -> str:
    """Say which numbers of a run are no evidence, and by which check."""
    run = row[0].run
    guards = failed(run.result, "clean")  # a check that speaks of clean accuracy speaks of everything
    if guards:
        return f"No number of {run.name} is evidence: its {named(guards)} failed."
    shown: dict[tuple[str, ...], list[str]] = {}
    for score in row:
        codes = failed(run.result, score.topic.axis)
        if codes and score.point and (score.topic.axis != "eps_curve" or codes not in shown):
            shown.setdefault(codes, []).append(f"{share(score.point.accuracy)} on {subject_of(score.topic)}")
    return _sentences(
        *(
            f"{run.name} shows {join(found)}, but its {named(codes)} failed: no evidence."
            for codes, found in shown.items()
        )
    )


def _white_box(table: Sequence[Sequence[Score]]) -> str:
    """Say plainly what is left against an attacker who knows the net, as far as the checks let the numbers speak."""
    axis, measured = _hardest(table)
    if not measured:
        return "What is left against an attacker who knows the net was not measured."
    found = [(p, r) for p, r in measured if not failed(r.result, axis) and not bounded(r.result, axis)]
    if not found:
        return f"What is left against an attacker who knows the net is not known{_at_most(axis, measured)}."
    best, run = max(found, key=lambda pair: pair[0].accuracy)
    threats = {threat(r.result.threat) for _, r in found}
    suite = _suite([r for _, r in found], axis)
    who = f"an attacker who knows the net{f' ({suite})' if suite else ''}"
    against = f"At {threats.pop()}, {who}" if len(threats) == 1 else who[0].upper() + who[1:]
    chance = 1 / max(r.result.num_classes for _, r in found)
    figure = f"{share(best.accuracy)} {interval(best.low, best.high)}"
    others = "all the others" if len(found) < len(measured) else "every one of them"
    whom = others if len(found) > 1 else run.name if len(measured) > 1 else "it"
    kept = f"the best, {run.name}, keeps {figure}" if len(found) > 1 else f"it keeps {figure}"
    near_zero = max(NEAR_ZERO, min(chance, FEW_CLASSES))
    if best.accuracy < near_zero:
        suites = [p for _, r in found if (p := _headline(r, "white_box"))]
        return f"{NOTHING_LEFT[max(p.accuracy for p in suites) >= near_zero]} {against} breaks {whom}: {kept}."
    if best.low <= chance:
        return f"{against} leaves nothing clearly better than guessing ({share(chance)}): {kept}."
    least = f", the best, {figure}, and {_worst(found)}"
    text = f"{against} leaves {run.name}{least}." if len(found) > 1 else f"{against} leaves {whom} {figure}."
    return f"{text} {_care(run, axis, alone=len(table) == 1)}"


def _hardest(table: Sequence[Sequence[Score]]) -> tuple[str, list[tuple[Point, Run]]]:
    """Give the axis that says what is left, and its number for every run that was attacked by who knows it.

    The worst case, where every such run has one; else white-box.
    """
    runs = [row[0].run for row in table if row and _headline(row[0].run, "white_box")]
    axis = WORST if runs and all(_headline(run, WORST) for run in runs) else "white_box"
    return axis, [(point, run) for run in runs if (point := _headline(run, axis))]


def _headline(run: Run, axis: str) -> Point | None:
    return Topic(axis=axis, title="").select(run.result)


def _at_most(axis: str, measured: Sequence[tuple[Point, Run]]) -> str:
    """Bound what is left of a single run by its worst case, unless a guard failed."""
    point, run = measured[0]
    if axis != WORST or len(measured) > 1 or failed(run.result, "clean"):
        return ""
    return f", at most {share(point.accuracy)} (the worst case of all that was tried)"


def _suite(runs: Sequence[Run], axis: str) -> str:
    """Name the attacks behind a number; empty where the runs differ."""
    labels = {point.label for run in runs if (point := _headline(run, "white_box"))}
    parts = [_suite_name(labels.pop())] if len(labels) == 1 else []
    return ", ".join([*parts, *(["worst case"] if axis == WORST else [])])


def _suite_name(label: str) -> str:
    return f"{label} suite" if label in SUITES else f"{label} alone"


def _care(run: Run, axis: str, *, alone: bool) -> str:
    """Say how to read what is left."""
    codes = warned(run.result, axis)
    own = "" if alone else f" of {run.name}"
    care = f"But {named(codes)}{own} warned: read it with care." if codes else "Read the checks before you believe it."
    attacked = _headline(run, "white_box")
    return care if attacked and attacked.label in STRONG else f"{care} Confirm it with the standard suite."


def _worst(found: Sequence[tuple[Point, Run]]) -> str:
    point, run = min(found, key=lambda pair: pair[0].accuracy)
    return f"{run.name}, the worst, {share(point.accuracy)}"


def _sentences(*parts: str) -> str:
    return " ".join(part for part in parts if part)
