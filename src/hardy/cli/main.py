"""``hardy``: the verbs. Torch is imported inside commands, so that ``--help`` is instant."""

import os
from typing import Annotated

import typer

from hardy import __version__
from hardy.allocator import keep_freed_memory
from hardy.cli import attack, attacks, compare, demo, diagnose, evaluate, layers, methods, models, report, train, treat

__all__ = ["app", "main"]

app = typer.Typer(
    name="hardy",
    help="Robust CNNs without adversarial training: train, evaluate honestly, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Robust CNNs without adversarial training: train, evaluate honestly, report."""
    if version:
        typer.echo(f"hardy {__version__}")
        raise typer.Exit
    if debug:
        os.environ["HARDY_DEBUG"] = "1"


for verb in (demo, train, evaluate, diagnose, treat, compare, attack, report, methods, attacks, models, layers):
    app.command(verb.__name__.rpartition(".")[2])(verb.command)


def main() -> None:
    """Run the command line."""
    keep_freed_memory()
    app()
