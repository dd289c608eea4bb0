"""What ``hardy evaluate`` says and writes of a result besides the result itself."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hardy.cli.common import console

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hardy.results import Axis, Result, Score, Versus

__all__ = ["hold", "show", "without_images", "write_record"]

MOST = 16  # conditions of an axis that are printed one by one


def show(result: "Result") -> None:
    """Print every accuracy, the verdict against the base and the checks that fired."""
    from rich.table import Table

    table = Table(title=f"{result.model} on {result.data}, {result.n} images, {result.threat}", title_justify="left")
    for name in ("axis", "condition", "accuracy", "95 % interval"):
        table.add_column(name, justify="right" if name in {"accuracy", "95 % interval"} else "left")
    for axis in result.axes:
        for i, row in enumerate(_rows(axis)):
            table.add_row("" if i else axis.name, *row)
    console().print(table)
    for v in result.versus:
        console().print(f"{v.axis}: {_compared(result, v)}", highlight=False)
    for check in result.checks:
        if check.status in {"warn", "fail"}:
            colour = "red" if check.status == "fail" else "yellow"
            console().print(f"[{colour}]{check.status}[/] {check.code}: {check.evidence}. {check.remedy}")
    passed = sum(check.status == "pass" for check in result.checks)
    console().print(f"{passed} of {len(result.checks)} checks passed", highlight=False)
    missing: dict[str, list[str]] = {}
    for check in result.checks:
        if check.status == "not_run":
            missing.setdefault(f"{check.evidence}. {check.remedy}", []).append(check.code)
    for why, codes in missing.items():
        console().print(f"not run: {', '.join(codes)}: {why}", highlight=False, style="dim")


def _compared(result: "Result", v: "Versus") -> str:
    """Say how the model differs from its base; nothing is claimed where a failed check forbids it."""
    from hardy.reporting.trust import named
    from hardy.reporting.versus import voided

    if codes := voided(result, v.axis):
        return f"void against {v.base}: {named(codes)} failed"
    scale, form, unit = (100, "+.1f", " points") if v.kind in ("accuracy", "description") else (1, "+.3f", "")
    bounds = (
        "" if v.low is None or v.high is None else f" [{format(scale * v.low, form)}, {format(scale * v.high, form)}]"
    )
    test = "" if v.p is None else f", p = {v.p:.2g}: {v.verdict}"
    return f"{format(scale * v.difference, form)}{unit}{bounds} against {v.base}{test}"


def _rows(axis: "Axis") -> "Iterator[tuple[str, str, str]]":
    """Write the numbers of an axis; of many conditions only the one that stands for it, and the means."""
    few = len(axis.points) <= MOST
    for point in axis.points:
        if few or point.label == axis.headline:
            follows = "attacked" in point.details and point is not axis.points[0] and point.series == "suite"
            label = f"then {point.label}" if follows else point.label
            yield label, f"{point.accuracy:.1%}", f"{point.low:.1%} .. {point.high:.1%}"
    for score in axis.scores:
        if score.level is None and score.series != "class":
            yield score.label, *_written(score)
    if not few:
        yield f"({len(axis.points)} conditions in the report and the file)", "", ""


def _written(score: "Score") -> tuple[str, str]:
    """Write a score and its interval: an accuracy in percent, another number as it is."""
    form = "{:.1%}" if score.kind == "accuracy" else "{:.3f}"
    bounds = "" if score.low is None or score.high is None else f"{form} .. {form}".format(score.low, score.high)
    return f"{form.format(score.value)} {score.unit}".strip(), bounds


def hold(result: "Result", floors: dict[str, float]) -> None:
    """Exit with 1 if an accuracy is below its floor, or a failed check says that it is no evidence."""
    from hardy.reporting.trust import failed, named

    measured = {axis.name for axis in result.axes}
    for axis in [axis for axis in floors if axis not in measured]:
        console().print(f"[red]{axis}: was not measured, so --fail-under does not hold[/]")
        raise typer.Exit(1)
    low = {axis: result.accuracy(axis) for axis, floor in floors.items() if result.accuracy(axis) < floor}
    void = {axis: codes for axis in floors if (codes := failed(result, axis))}
    for axis, codes in void.items():
        console().print(f"[red]{axis}: {named(codes)} failed, so its accuracy is no evidence for --fail-under[/]")
    for axis, accuracy in low.items():
        console().print(f"[red]{axis}: accuracy {accuracy:.3f} is below --fail-under {floors[axis]:g}[/]")
    if low or void:
        raise typer.Exit(1)


def write_record(result: "Result", path: Path) -> None:
    """Write the record with the fields of RobustBench."""
    from hardy.evaluation.robustbench import robustbench_record
    from hardy.safefile import write_json

    write_json(path, robustbench_record(result))


def without_images(result: "Result", path: Path | None) -> "Result":
    """Write the adversarial images to a file of their own, if asked to, and take them out of the record."""
    if path is None:
        return result
    import dataclasses

    import numpy as np

    from hardy.safefile import write_atomic

    names = {"x_adv": "adversarial/x_adv", "y": "labels"}
    names |= {name: f"white_box/{name}" for name in ("broken_by", "margin")}
    kept = {short: result.arrays[name] for short, name in names.items()}
    kept["attacks"] = np.array([p.label for p in result.axis("white_box").points if "attacked" in p.details])
    write_atomic(path, lambda file: np.savez_compressed(file, **kept))  # type: ignore[arg-type]  # savez takes names
    return dataclasses.replace(result, arrays={k: v for k, v in result.arrays.items() if k != names["x_adv"]})
