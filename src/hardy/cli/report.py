"""``hardy report``."""

from pathlib import Path
from typing import Annotated

import typer

from hardy.cli.common import Json, Quiet, console, guarded, print_json

__all__ = ["command"]


@guarded
def command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders or result.json files; the first is the baseline.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option("--title", help="Title of the page.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write one self-contained HTML page about one run, or comparing several.

    Examples:

        hardy report runs/lfm

        hardy report runs/plain runs/lfm runs/defective --out comparison.html
    """
    from hardy.reporting import report
    from hardy.safefile import check_writable

    check_writable(out)
    path = report(runs, out, title=title)
    if json:
        print_json({"out": str(path), "bytes": path.stat().st_size, "runs": [str(run) for run in runs]})
    if not quiet:
        console().print(f"-> {path}", highlight=False)
