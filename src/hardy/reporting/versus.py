"""Does a defence beat its own base, attacked alike? The comparison that the evaluation made, in words."""

from collections.abc import Sequence
from typing import Literal

from hardy.reporting.cells import SYMBOLS
from hardy.reporting.compare import axis_title
from hardy.reporting.data import Difference, Statement, VersusRow
from hardy.reporting.numbers import gap, gap_interval, number, p_value, percent, share
from hardy.reporting.runs import Run
from hardy.reporting.trust import WORST, bounded, failed, named, warned
from hardy.results import Result, Versus

__all__ = ["against_base", "answer", "apart", "decisive", "versus_rows", "voided"]

WHERE = {WORST: "in the worst case", "white_box": "on white-box", "clean": "on plain images"}
VERDICTS: dict[str, Literal["gain", "loss", "unclear", "description"]] = {
    "better": "gain",
    "worse": "loss",
    "unclear": "unclear",
    "description": "description",
}
WORDS = {"better": "is better than", "worse": "is worse than", "unclear": "is neither clearly better nor worse than"}


def against_base(runs: Sequence[Run]) -> Statement | None:
    """Say for every run that was compared with its base whether it beats it, and where nothing can be said."""
    compared = [run for run in runs if run.result.versus]
    if not compared:
        return None
    told = [text for run in compared if (text := _told(run, alone=len(runs) == 1))]
    note = "Both nets faced the same attacks and images; p is of one comparison."
    return Statement(label="Against its base", text=" ".join([*told, note]))


def answer(run: Run) -> str:
    """Answer in one sentence whether a run beats its base, by the hardest comparison; empty where there is none."""
    found = decisive(run.result)
    if found is None:
        return ""
    if codes := voided(run.result, found.axis):
        return f"Whether it beats {_base(found)} is not known: {named(codes)} failed."
    figures = f"{share(found.accuracy)} against {share(found.base_accuracy)} {WHERE[found.axis]}"
    words = {"better": "it beats", "worse": "it falls behind", "unclear": "it does not clearly beat"}[found.verdict]
    return f"Attacked alike, {words} {_base(found)}: {figures}."


def decisive(result: Result) -> Versus | None:
    """Give the comparison that counts: the worst case, else white-box."""
    found = {v.axis: v for v in result.versus}
    return found.get(WORST) or found.get("white_box")


def versus_rows(runs: Sequence[Run]) -> tuple[VersusRow, ...]:
    """List every comparison of a run with its base, with its figures."""
    return tuple(_row(run, v) for run in runs for v in _in_order(run.result))


def _row(run: Run, v: Versus) -> VersusRow:
    codes, care = voided(run.result, v.axis), warned(run.result, v.axis)
    made = apart(v)
    return VersusRow(
        run=run.name,
        base=v.base,
        where=axis_title(v.axis),
        own=percent(v.accuracy),
        base_own=percent(v.base_accuracy),
        difference=None if codes else made,
        p="" if codes or v.p is None else p_value(v.p),
        note=f"void: {named(codes)} failed" if codes else f"{named(care)} warned" if care else "",
    )


def apart(v: Versus) -> Difference:
    """Write the difference to the base."""
    verdict = VERDICTS[v.verdict]
    if v.kind not in ("accuracy", "description"):
        bounds = [f"{'+' if x > 0 else ''}{number(x)}" for x in (v.low, v.high) if x is not None]
        text = f"{'+' if v.difference > 0 else ''}{number(v.difference)}"
        interval = f"[{', '.join(bounds)}]" if len(bounds) == 2 else ""
    else:
        text = gap(v.difference)
        interval = "" if v.low is None or v.high is None else gap_interval(v.low, v.high)
    tested = v.p is not None and verdict != "description"
    return Difference(
        text=text, interval=interval, verdict=verdict, symbol=SYMBOLS[verdict] if tested else "",
        word=v.verdict if tested else "",
    )  # fmt: skip


def _in_order(result: Result) -> list[Versus]:
    """List the comparisons that the suite decides; the others stand in the profile."""
    found = {v.axis: v for v in result.versus}
    return [found[axis] for axis in WHERE if axis in found]


def _told(run: Run, *, alone: bool) -> str:
    """Tell the comparison that counts; of a single run all of them."""
    shown, first = _in_order(run.result), decisive(run.result)
    if first is None or not alone:
        shown = [first or shown[0]] if shown else []
    elif any(v.axis == "white_box" and _same(v, first) for v in shown if v is not first):
        shown = [v for v in shown if v.axis != "white_box"]
    return " ".join(_line(run, v, alone=alone, first=i == 0) for i, v in enumerate(shown))


def _same(a: Versus, b: Versus) -> bool:
    return (a.accuracy, a.base_accuracy) == (b.accuracy, b.base_accuracy)


def _line(run: Run, v: Versus, *, alone: bool, first: bool) -> str:
    """Write one comparison; of a single run the later ones go on from the first."""
    where, who = WHERE[v.axis], "it" if alone else run.name
    if codes := voided(run.result, v.axis):
        return f"Whether {who} beats {_base(v)} {where} is not known: the verdict is void, {named(codes)} failed."
    codes = warned(run.result, v.axis)
    care = f"; {named(codes)} warned" if codes else ""
    both = f"{share(v.accuracy)} against {share(v.base_accuracy)}"
    bounds = f" {gap_interval(v.low, v.high)}" if v.low is not None and v.high is not None else ""
    test = f", {p_value(v.p)}" if v.p is not None else ""
    figures = f"{both} ({gap(v.difference)} points{bounds}{test}{care})"
    if alone and not first:
        return f"{where[0].upper()}{where[1:]}: {v.verdict}, {figures}."
    return f"{'It' if alone else who} {WORDS[v.verdict]} {_base(v)} {where}: {figures}."


def voided(result: Result, axis: str) -> tuple[str, ...]:
    """Name the failed checks by which a comparison means nothing: a gain over a sound net would be masked gradients."""
    return failed(result, axis) or bounded(result, axis)


def _base(v: Versus) -> str:
    return "its base" if v.base == "base" else f"its base {v.base}"
