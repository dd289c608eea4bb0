"""Live progress for people, on stderr; silent where nobody watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from hardy.cli.common import console
from hardy.evaluation import AxisProgress
from hardy.training import Progress as TrainingProgress

__all__ = ["bars", "evaluation_progress", "training_progress"]


def bars(*, quiet: bool) -> Progress:
    """Make the progress display; nothing is shown when quiet or when stderr is not a terminal."""
    return Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(bar_width=16),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("left  {task.fields[note]}"),
        console=console(),
        disable=quiet or not console().is_terminal,
        transient=True,
    )


@contextmanager
def training_progress(*, quiet: bool, name: str = "training") -> Iterator[Callable[[TrainingProgress], None]]:
    """Show the steps of one training, and one line an epoch where stderr is a log."""
    with bars(quiet=quiet) as display:
        task = display.add_task(name, total=None, note="")

        def show(p: TrainingProgress) -> None:
            loss = sum(p.losses.values())
            display.update(task, total=p.steps, completed=p.step, note=f"epoch {p.epoch}/{p.epochs}  loss {loss:.3f}")
            if p.row is not None and not quiet:
                facts = "  ".join(f"{k} {v:.4g}" for k, v in p.row.items() if k not in {"epoch", "step"})
                display.console.print(f"epoch {p.epoch}/{p.epochs}  {facts}", highlight=False)

        yield show


@contextmanager
def evaluation_progress(*, quiet: bool, name: str = "") -> Iterator[Callable[[AxisProgress], None]]:
    """Show which axis is measured and how far it is."""
    with bars(quiet=quiet) as display:
        task = display.add_task(name or "evaluating", total=None, note="")

        furthest = 0.0  # an axis may run several attacks, each from its own zero

        def show(p: AxisProgress) -> None:
            nonlocal furthest
            share, note = 0.0, ""
            if p.attack is not None and p.attack.total:
                share = p.attack.done / p.attack.total
                note = f"{p.attack.attack}: {p.attack.done} of {p.attack.total} done"
                note += f", {p.attack.broken} broken" if p.robust is None else f", {p.robust:.1%} right so far"
            furthest = max(furthest, p.done + share * 0.9)
            display.update(task, description=f"{name} {p.axis}".strip(), total=p.total, completed=furthest, note=note)

        yield show
