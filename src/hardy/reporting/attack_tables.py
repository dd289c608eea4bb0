"""Which attack broke what, and the worst case per image: who broke how many, and how many nobody else did."""

import re
from collections.abc import Sequence

from hardy.reporting.compare import axis_title, find_axis
from hardy.reporting.data import AttackGroup, AttackRow, Heat, Matrix, MatrixRow
from hardy.reporting.numbers import ABSENT, count, interval, percent
from hardy.reporting.runs import Run
from hardy.reporting.trust import WORST, bounded, is_control, named, subject, void
from hardy.results import Axis, Point

__all__ = ["attack_groups", "heat", "settings", "stages", "worst_case"]

KINDS = {"forward": "forward", "backward": "backward"}


def attack_groups(runs: Sequence[Run]) -> tuple[AttackGroup, ...]:
    """List the attacks of every run in order, each with what it was given, what it broke, and what is left after it."""
    found = []
    for run in runs:
        axis = find_axis(run.result, "white_box")
        if axis is not None and stages(axis):
            found.append(AttackGroup(run=run.name, note=void(run.result, "white_box"), rows=_rows(run, axis)))
    return tuple(found)


def stages(axis: Axis) -> list[Point]:
    """List the points of an axis that are attacks of a suite, one after the other."""
    return [p for p in axis.points if p.series == "suite" and isinstance(p.details.get("attacked"), int)]


def worst_case(runs: Sequence[Run]) -> Matrix | None:
    """Show per axis and run what is left, how many images it broke, and how many no other axis did."""
    axes = {run.name: axis for run in runs if (axis := find_axis(run.result, WORST))}
    if not axes:
        return None
    shown = [run for run in runs if run.name in axes]
    labels = dict.fromkeys(p.label for axis in axes.values() for p in axis.points if p.label != axis.headline)
    rows = [
        MatrixRow(
            head=axis_title(label),
            sub="",
            cells=tuple(_part(run, _named(axes[run.name], label)) for run in shown),
        )
        for label in labels
    ]
    whole = tuple(_whole(run, axes[run.name]) for run in shown)
    rows.append(MatrixRow(head="all together", sub="the worst case", cells=whole, total=True))
    return Matrix(
        title="Worst case per image",
        corner="Axis",
        heads=tuple((run.name, "") for run in shown),
        rows=tuple(rows),
        question=next(axis.question for axis in axes.values()),
        notes=(
            "An image counts as right if nothing within the threat fooled the net; beside white-box, single steps and "
            "random draws count too. Alone: images that no other axis broke.",
        ),
    )


def heat(
    point: Point | None, *, mark: str = "", notes: tuple[str, ...] = (), void: bool = False, missing: str = ""
) -> Heat:
    """Write an accuracy as a tinted cell; ``missing`` is what stands where there is none."""
    if point is None or percent(point.accuracy) == ABSENT:
        return Heat(text="", tint=0, mark=missing)
    text, bounds = percent(point.accuracy), interval(point.low, point.high)
    tint = 0 if void else round(10 * point.accuracy)
    return Heat(text=text, tint=tint, interval=bounds, mark=mark, notes=notes, void=void)


def settings(attack: object) -> str:
    """Say in words how hard an attack of Hardy's tries, from its description; empty for others.

    Example:
        >>> settings("APGD(steps=100, restarts=9, objective='dlr', targeted=True, eot=1)")
        '100 steps, 9 targets, loss dlr'
        >>> settings("Square(queries=5000, restarts=1)")
        '5,000 queries'
    """
    kept = dict(re.findall(r"(\w+)=([^,()]+)", attack)) if isinstance(attack, str) else {}
    targeted = kept.get("targeted") == "True" or str(attack).startswith("FAB(")
    words = {"steps": "steps", "queries": "queries", "restarts": "targets" if targeted else "restarts"}
    parts = [
        f"{int(kept[key]):,} {word}" for key, word in words.items() if kept.get(key, "").isdigit() and kept[key] != "1"
    ]
    parts += [f"loss {kept['objective'][1:-1]}"] if "objective" in kept else []
    if kept.get("eot", "1").isdigit() and kept.get("eot", "1") != "1":
        parts.append(f"{kept['eot']} draws per gradient")
    return ", ".join(parts)


def _rows(run: Run, axis: Axis) -> tuple[AttackRow, ...]:
    made, is_void = stages(axis), bool(void(run.result, "white_box"))
    plain = find_axis(run.result, "clean")
    rows = [_row("no attack", plain.points[0], "plain")] if plain and plain.points else []
    rows += [_row(p.label, p, "attack", is_void=is_void) for p in made]
    whole = next((p for p in axis.points if p.label == axis.headline and p not in made), None)
    if whole is not None and len(made) > 1:
        rows.append(_sum(whole, made, is_void=is_void))
    rows += [_row("random noise", p, "control") for p in axis.points if is_control(p)]
    return tuple(rows)


def _row(name: str, point: Point, kind: str, *, is_void: bool = False) -> AttackRow:
    details = point.details
    words = settings(details.get("attack"))
    if kind == "control":
        draws = details.get("draws")
        words = f"control, {draws} {'draw' if draws == 1 else 'draws'}" if draws else "control"
    return AttackRow(
        name=name, settings=words, attacked=count(details.get("attacked")), broke=count(details.get("broke")),
        left=heat(point, void=is_void), forward=count(point.passes.get("forward")),
        backward=count(point.passes.get("backward")), kind=kind,  # type: ignore[arg-type]  # literals of the callers
    )  # fmt: skip


def _sum(whole: Point, made: Sequence[Point], *, is_void: bool) -> AttackRow:
    broke = [p.details.get("broke") for p in made]
    spent = {kind: sum(p.passes.get(kind, 0) for p in made) for kind in KINDS}
    return AttackRow(
        name=f"{whole.label} suite", settings="all of them", attacked=count(made[0].details.get("attacked")),
        broke=count(sum(b for b in broke if isinstance(b, int))), left=heat(whole, void=is_void),
        forward=count(spent["forward"]), backward=count(spent["backward"]), kind="whole",
    )  # fmt: skip


def _named(axis: Axis, label: str) -> Point | None:
    return next((p for p in axis.points if p.label == label and p.label != axis.headline), None)


def _part(run: Run, point: Point | None) -> Heat:
    if point is None:
        return heat(None)
    broke, alone = count(point.details.get("broke")), count(point.details.get("broke_alone"))
    notes = (f"broke {broke}, {alone} alone",) if broke and alone else ()
    return heat(point, notes=notes, void=bool(void(run.result, subject(WORST, point))))


def _whole(run: Run, axis: Axis) -> Heat:
    point = next((p for p in axis.points if p.label == axis.headline), None)
    codes, why = bounded(run.result, WORST), void(run.result, WORST)
    notes = (why,) if why else (f"at most: {named(codes)} failed",) if codes else ()
    return heat(point, notes=notes, void=bool(why))
