"""The section of the page that compares the arms of a grid: numbers become text."""

from collections.abc import Mapping

from hardy.reporting.cells import SYMBOLS
from hardy.reporting.charts import swatch
from hardy.reporting.compare import DESCRIPTIONS, axis_title
from hardy.reporting.grid import AgainstBase, CellNumbers, Comparison, Cost, Gap, Mean
from hardy.reporting.grid_charts import charts
from hardy.reporting.grid_parts import BaseRow, GridColumn, GridPage, GridRow, GridTable
from hardy.reporting.numbers import (
    ABSENT,
    duration,
    gap,
    gap_interval,
    interval,
    join,
    number,
    p_value,
    percent,
    ratio,
)
from hardy.reporting.parts import Cell, Difference, Legend
from hardy.reporting.trust import named

__all__ = ["grid_page", "passes_text"]

WORDS = {"gain": "gain", "loss": "loss", "unclear": "no difference that counts", "description": "", "void": ""}
ANSWERS = {"gain": "yes", "loss": "no, it is worse", "unclear": "no difference that counts", "void": "not known"}
BUDGETS = {
    "epochs": "All arms train for the same number of epochs on the same images in the same order.",
    "passes": "Epochs of an arm are cut so that it spends at most the forward and backward passes of the baseline.",
}


def grid_page(made: Comparison, anchors: Mapping[str, str]) -> GridPage:
    """Write everything the section says.

    Args:
        made: The numbers.
        anchors: Where every axis is explained.
    """
    return GridPage(
        lead=_lead(made),
        tables=tuple(_table(made, net, i, anchors) for i, net in enumerate(made.nets)),
        notes=_notes(made),
        base_note=_base_note(made),
        missing=tuple((cell.name, cell.why or "it is not finished") for cell in made.missing),
    )


def passes_text(cost: Cost | None) -> tuple[str, str]:
    """Write forward and backward passes per training image, and their sum's parts."""
    if cost is None or cost.forward_passes is None or cost.backward_passes is None:
        return ABSENT, ""
    parts = [f"{value:,.0f}" for value in (cost.forward_passes, cost.backward_passes)]
    return f"{cost.forward_passes + cost.backward_passes:,.0f}", f"{parts[0]} forward, {parts[1]} backward"


def _seeds(made: Comparison) -> str:
    return f"{len(made.seeds)} {'seeds' if len(made.seeds) > 1 else 'seed'}"


def _lead(made: Comparison) -> str:
    """Say, arm by arm, what differs from the baseline beyond the spread of the seeds."""
    arms = [arm for arm in made.arms if arm != made.baseline]
    nets = f"{len(made.nets)} {'nets' if len(made.nets) > 1 else 'net'}"
    start = f"{len(made.arms)} arms on {nets}, {_seeds(made)} each."
    if len(made.seeds) == 1:
        return f"{start} With one seed there is no interval over seeds: nothing here is ranked or called a gain."
    if made.differences and all(g.verdict in ("few", "description") for g in made.differences):
        return f"{start} Fewer than 3 pairs of seeds are too few to judge: nothing here is called a gain or a loss."
    told = [text for arm in arms for net in made.nets if (text := _told(made, arm, net))]
    return " ".join([start, *told])


def _told(made: Comparison, arm: str, net: str) -> str:
    found = [g for g in made.differences if (g.arm, g.net) == (arm, net)]
    clear = {
        word: [f"{axis_title(g.axis)} ({gap(g.mean)} points)" for g in found if g.verdict == word]
        for word in ("gain", "loss")
    }
    where = f" on {net}" if len(made.nets) > 1 else ""
    parts = [
        f"{verb} {join(clear[word])}" for word, verb in (("gain", "gains on"), ("loss", "loses on")) if clear[word]
    ]
    if parts:
        return f"Against {made.baseline}, {arm}{where} {'; it '.join(parts)}."
    if any(g.verdict == "unclear" for g in found):
        return f"{arm}{where} shows no difference to {made.baseline} that counts."
    return f"{arm}{where} was run with too few seeds to judge." if any(g.verdict == "few" for g in found) else ""


def _table(made: Comparison, net: str, number_: int, anchors: Mapping[str, str]) -> GridTable:
    arms = [arm for arm in made.arms if made.cost(arm, net) is not None]
    places = {arm: i for i, arm in enumerate(made.arms)}
    swatches = [swatch(places[arm], name=f"grid-key-{number_}-{places[arm]}") for arm in arms]
    return GridTable(
        net=net,
        columns=tuple(GridColumn(title=axis_title(axis), href=anchors.get(axis, "")) for axis in made.axes),
        rows=tuple(_row(made, arm, net, anchors) for arm in arms),
        charts=charts(made, net, name=f"grid-{number_}"),
        legends=tuple(
            Legend(name=arm, swatch=drawn, is_base=arm == made.baseline)
            for arm, drawn in zip(arms, swatches, strict=True)
        ),
        bases=tuple(_base(made, cell) for cell in made.cells if cell.net == net and cell.against_base is not None),
    )


def _row(made: Comparison, arm: str, net: str, anchors: Mapping[str, str]) -> GridRow:
    cost, before = made.cost(arm, net), made.cost(made.baseline, net)
    found = [cell for cell in made.cells if (cell.arm, cell.net) == (arm, net)]
    passes, parts = passes_text(cost)
    epochs = join([f"{count} epochs" for count in dict.fromkeys(cell.epochs for cell in found)])
    seconds = None if cost is None else cost.seconds
    compared = seconds is not None and before is not None and before.seconds and arm != made.baseline
    return GridRow(
        arm=arm,
        methods=" + ".join(method.partition("(")[0] for method in made.arms[arm]) or "no method",
        seeds=f"{len(found)} of {len(made.seeds)} seeds" if len(found) < len(made.seeds) else "",
        is_base=arm == made.baseline,
        cells=tuple(_cell(made, arm, net, axis, href=anchors.get(axis, "")) for axis in made.axes),
        passes=passes,
        passes_note=f"{parts}; {epochs}" if parts else epochs,
        seconds=ABSENT if seconds is None else duration(seconds),
        seconds_note=ratio(seconds, before.seconds) if compared and seconds and before and before.seconds else "",
    )


def _tied(made: Comparison, mean: Mean) -> bool:
    """Tell whether another arm has this rank."""
    same = [m for m in made.means if (m.net, m.axis, m.rank) == (mean.net, mean.axis, mean.rank)]
    return mean.rank is not None and len(same) > 1


def _cell(made: Comparison, arm: str, net: str, axis: str, *, href: str) -> Cell:
    mean, found = made.mean(arm, net, axis), made.difference(arm, net, axis)
    title, odd = axis_title(axis), _odd(made, arm, net, axis)
    if mean is None:
        return Cell(column=title, accuracy=ABSENT, measured=bool(odd), note=odd, void=bool(odd))
    drawn = None if found is None or found.verdict == "void" else _difference(found)
    notes = [_rank(made, mean), odd]
    if found is not None and found.verdict in ("gain", "loss"):
        notes.append(_caution(mean, made.mean(made.baseline, net, axis)))
    return Cell(
        column=title,
        accuracy=percent(mean.mean),
        measured=True,
        interval="" if mean.low is None or mean.high is None else interval(mean.low, mean.high),
        count=f"mean over {mean.seeds} {'seeds' if mean.seeds > 1 else 'seed'}",
        href=href,
        difference=drawn,
        note="; ".join(filter(None, notes)),
        void=bool(mean.void),
    )


def _rank(made: Comparison, mean: Mean) -> str:
    """Write the rank of an arm, or why it has none."""
    if mean.void:
        return f"void, not ranked: {named(mean.void)} failed"
    if mean.rank is not None:
        return f"rank {mean.rank}{', tied' if _tied(made, mean) else ''}"
    if not mean.missing or mean.axis in DESCRIPTIONS:
        return ""
    seeds = f"{'seed' if len(mean.missing) == 1 else 'seeds'} {join([str(seed) for seed in mean.missing])}"
    return f"not ranked: {seeds} missing"


def _odd(made: Comparison, arm: str, net: str, axis: str) -> str:
    """Say which nets of an arm answer another question than the others, and what differs."""
    cells = {cell.seed: cell.accuracy.get(axis) for cell in made.cells if (cell.arm, cell.net) == (arm, net)}
    return "; ".join(f"seed {seed} left out: {a.other}" for seed, a in cells.items() if a is not None and a.other)


def _caution(own: Mean, base: Mean | None) -> str:
    """Name the checks that warned of any net behind a difference, as beside any gain or loss of a report."""
    others = () if base is None else tuple(code for code in base.warned if code not in own.warned)
    parts = [f"{named(own.warned)} warned"] if own.warned else []
    return join([*parts, f"{named(others)} of the baseline warned"] if others else parts)


def _difference(found: Gap) -> Difference:
    few = "one seed" if found.pairs == 1 else f"{found.pairs} seeds: too few to judge"
    verdict = found.verdict if found.verdict in ("gain", "loss", "description") else "unclear"
    return Difference(
        text=gap(found.mean),
        interval="" if found.low is None or found.high is None else gap_interval(found.low, found.high),
        verdict=verdict,
        symbol="" if found.verdict == "few" else SYMBOLS[verdict],
        word=few if found.verdict == "few" else WORDS[found.verdict],
    )


def _base(made: Comparison, cell: CellNumbers) -> BaseRow:
    """Answer for one net whether it beats its own base."""
    found = cell.against_base or AgainstBase(axis=made.robust)
    twin = next((c for c in made.cells if (c.arm, c.net, c.seed) == (made.baseline, cell.net, cell.seed)), None)
    own, base = (
        percent(c.accuracy[found.axis].accuracy) if c is not None and found.axis in c.accuracy else ABSENT
        for c in (cell, twin)
    )
    drawn = None
    if found.difference is not None and found.low is not None and found.high is not None:
        verdict = found.verdict if found.verdict in ("gain", "loss") else "unclear"
        drawn = Difference(
            text=gap(found.difference), interval=gap_interval(found.low, found.high), verdict=verdict,
            symbol=SYMBOLS[verdict], word="",
        )  # fmt: skip
    failed = f"{named(cell.failed_checks)} failed" if cell.failed_checks else ""
    why = f"not compared: {found.why}" if found.why else ""
    return BaseRow(
        cell=f"{cell.arm}, seed {cell.seed}",
        own=own,
        base=base,
        difference=drawn,
        p="" if found.p is None else p_value(found.p),
        answer=ANSWERS.get(found.verdict, ""),
        note="; ".join(filter(None, (why, failed, found.caution))),
    )


def _base_note(made: Comparison) -> str:
    if not any(cell.against_base is not None for cell in made.cells):
        return ""
    return (
        f"Each net beside the {made.baseline} net of the same seed on the same images, on {axis_title(made.robust)}. "
        "The interval is a paired bootstrap over images and speaks of these two nets; p is the exact sign test. Yes or "
        "no only where the interval excludes 0 and the test agrees after Holm's correction for all rows."
    )


def _notes(made: Comparison) -> tuple[str, ...]:
    """Say how every number of the table comes about."""
    notes = [BUDGETS[made.budget]]
    several = len(made.seeds) > 1
    spread = ", with the 95 % interval over seeds (Student's t)" if several else "; one seed has no interval over seeds"
    notes.append(f"Accuracy in %, mean over {_seeds(made)}{spread}.")
    if several:
        notes.append(
            f"Below it the difference to {made.baseline} in points, paired by seed, with its interval over seeds: "
            "a gain or a loss where that excludes 0 by more than one image, and with at least 3 pairs of seeds."
        )
        notes.append(
            "Rank: 1 plus the number of arms whose whole interval lies higher, by more than one image, so overlapping "
            "intervals may tie; arms with a failed check, or that lack a seed another arm has, are neither ranked nor "
            "on a Pareto front."
        )
        judged = sum(g.verdict in ("gain", "loss", "unclear") for g in made.differences)
        if judged >= 10:
            notes.append(
                f"{judged} differences are judged, each by itself: by chance alone about {number(0.05 * judged)} of "
                "them would look like a gain or a loss."
            )
    if any(a.other for cell in made.cells for a in cell.accuracy.values()):
        notes.append(
            "Numbers that answer another question than most of their column (other images, threat, attacks or sources) "
            "are left out of means and differences."
        )
    notes.append("Passes: forward and backward passes per training image, over the whole training.")
    if several and 1 < len(made.seeds) < 5:
        notes.append("3 seeds are enough to look, 5 to claim.")
    return tuple(notes)
