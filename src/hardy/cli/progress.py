"""Live progress for people, on stderr; silent where nobody watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hardy.cli.common import console
from hardy.evaluation import AxisProgress
from hardy.training import Progress as TrainingProgress

__all__ = ["bars", "evaluation_progress", "training_progress"]


def bars(*, quiet: bool) -> Progress:
    """Make the progress display; nothing is shown when quiet or when stderr is not a terminal."""
    return Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
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

        def show(p: AxisProgress) -> None:
            note = ""
            if p.attack is not None:
                note = f"{p.attack.attack}: {p.attack.broken} of {p.attack.total} jobs broke their image"
            display.update(task, description=f"{name} {p.axis}".strip(), total=p.total, completed=p.done, note=note)

        yield show
