"""The verdict in words, by rules from the numbers: where a method gains, what it costs, where it buys nothing."""

from collections.abc import Sequence

from hardy.reporting.claims import claims, is_merit, phrase
from hardy.reporting.compare import DESCRIPTIONS, Paired, Score
from hardy.reporting.data import Statement
from hardy.reporting.numbers import interval, join, share, threat
from hardy.reporting.refusals import same_images
from hardy.reporting.runs import Run
from hardy.reporting.statements import statements
from hardy.reporting.trust import failed, named, warned
from hardy.results import Point

__all__ = ["seeds_label", "verdict"]

NEAR_ZERO = 0.05  # an accuracy that no one would call robust
NOTHING_LEFT = "White-box accuracy is near zero."
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
        and s.topic.axis not in ("clean", "white_box", *DESCRIPTIONS)
        and not failed(run.result, s.topic.axis)
    ]
    span = ""
    if len(rest) > 1:
        (low, weakest), (high, strongest) = min(rest), max(rest)
        span = f"Otherwise it is weakest on {weakest} ({share(low)}) and strongest on {strongest} ({share(high)})."
    close = "Whether any of this is a gain, only a paired run without the method can tell."
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
            shown.setdefault(codes, []).append(f"{share(score.point.accuracy)} on {score.topic.title}")
    return _sentences(
        *(
            f"{run.name} shows {join(found)}, but its {named(codes)} failed: no evidence."
            for codes, found in shown.items()
        )
    )


def _white_box(table: Sequence[Sequence[Score]]) -> str:
    """Say plainly what is left against an attacker who knows the net, as far as the checks let the numbers speak."""
    measured = [s for row in table for s in row if s.topic.axis == "white_box" and not s.topic.gray_box and s.point]
    if not measured:
        return "What is left against an attacker who knows the net was not measured."
    found = [(s.point, s.run) for s in measured if s.point and not failed(s.run.result, "white_box")]
    if not found:
        return "What is left against an attacker who knows the net is not known."
    best, run = max(found, key=lambda pair: pair[0].accuracy)
    threats = {threat(r.result.threat) for _, r in found}
    against = (
        f"At {threats.pop()}, an attacker who knows the net" if len(threats) == 1 else "An attacker who knows the net"
    )
    chance = 1 / max(r.result.num_classes for _, r in found)
    figure = f"{share(best.accuracy)} {interval(best.low, best.high)}"
    others = "all the others" if len(found) < len(measured) else "every one of them"
    whom = others if len(found) > 1 else run.name if len(measured) > 1 else "it"
    kept = f"the best, {run.name}, keeps {figure}" if len(found) > 1 else f"it keeps {figure}"
    if best.accuracy < max(NEAR_ZERO, min(chance, FEW_CLASSES)):
        return f"{NOTHING_LEFT} {against} breaks {whom}: {kept}."
    if best.low <= chance:
        return f"{against} leaves nothing clearly better than guessing ({share(chance)}): {kept}."
    least = f", the best, {figure}, and {_worst(found)}"
    text = f"{against} leaves {run.name}{least}." if len(found) > 1 else f"{against} leaves {whom} {figure}."
    codes = warned(run.result, "white_box")
    own = f" of {run.name}" if len(table) > 1 else ""
    care = f"But {named(codes)}{own} warned: read it with care." if codes else "Read the checks before you believe it."
    return f"{text} {care}"


def _worst(found: Sequence[tuple[Point, Run]]) -> str:
    point, run = min(found, key=lambda pair: pair[0].accuracy)
    return f"{run.name}, the worst, {share(point.accuracy)}"


def _sentences(*parts: str) -> str:
    return " ".join(part for part in parts if part)
