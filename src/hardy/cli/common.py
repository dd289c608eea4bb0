"""What the verbs share: options, error handling, and where output goes.

People read stderr (tables, progress), programs read stdout (``--json``: one document).
"""

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

from hardy.cli.launch import rank, report
from hardy.cli.stops import settle, signals, stopping
from hardy.errors import ConfigError, HardyError

__all__ = [
    "BatchSize",
    "Data",
    "Device",
    "Download",
    "Json",
    "Limit",
    "Out",
    "Quiet",
    "Seed",
    "Size",
    "SkipBad",
    "Split",
    "Weights",
    "answer",
    "batch_size_of",
    "console",
    "device_of",
    "guarded",
    "in_box",
    "parse_list",
    "print_json",
]

if TYPE_CHECKING:
    from hardy.threats import Threat

WIDE = 200  # columns where nobody watches, so that names stay whole

P = ParamSpec("P")
R = TypeVar("R")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no tables.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
BatchSize = Annotated[str, typer.Option("--batch-size", help="Images at a time, or auto.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Where to write.")]
Data = Annotated[
    str | None, typer.Option("--data", help="digits, npz:FILE, folder:DIR, imagenet:DIR, cifar10:DIR, svhn:DIR, ...")
]
Split = Annotated[str, typer.Option("--split", help="train, val or test.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Number of images, chosen by the seed, classes in balance.")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="Of a named net: pretrained (published ones), or a weights file.")
]
Download = Annotated[
    bool, typer.Option("--download", help="Let torchvision fetch or unpack published data that are not there.")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out images of a folder that cannot be read.")]

Size = Annotated[int | None, typer.Option("--size", help="Height and width to which images of a folder are resized.")]


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn Hardy's errors into one line and exit code 2, Ctrl-C into 130 and SIGTERM into 143.

    HARDY_DEBUG=1 or --debug shows the traceback of an error.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with signals():
            try:
                return command(*args, **kwargs)
            except BaseException as error:
                settle(error)
                if stopping() or isinstance(error, KeyboardInterrupt):
                    number = stopping() or signal.SIGINT
                    said = "stopped." if number == signal.SIGINT else "stopped by SIGTERM."
                    if rank() == 0:
                        console().print(said, highlight=False)
                    raise typer.Exit(128 + number) from None
                if not isinstance(error, HardyError) or os.environ.get("HARDY_DEBUG"):
                    raise
                report(error)
                if rank() == 0:  # torchrun's summary shows what another process met alone
                    console().print(f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True, highlight=False)
                raise typer.Exit(2) from None

    return run


@functools.cache
def console() -> Any:
    """Give the console for people, on stderr."""
    from rich.console import Console

    return Console(stderr=True, width=None if sys.stderr.isatty() else WIDE)


@functools.cache
def answer() -> Any:
    """Give the console for what a listing verb was asked for, on stdout, so that it can be piped."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE)


def in_box(threat: "Threat") -> "Threat":
    """Refuse a budget on the scale of 0 to 255.

    Raises:
        ConfigError: a Linf budget above 1, where pixels are in [0, 1].
    """
    if threat.norm == "linf" and threat.eps > 1:
        raise ConfigError(
            f"--eps: pixels are in [0, 1], so a linf budget is at most 1; got {threat.eps:g}. "
            f"Did you mean {threat.eps:g}/255?"
        )
    return threat


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def print_json(data: Any) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")


def device_of(device: str) -> str:
    """Resolve "auto" and refuse what is not there.

    Raises:
        ConfigError: an unknown device, or CUDA where there is none.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.partition(":")[0]
    if kind not in {"cpu", "cuda"}:
        raise ConfigError(f"--device: must be auto, cpu or cuda; got {device!r}.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device: CUDA is not available here. Use --device cpu.")
    return device


def batch_size_of(text: str, *, shape: tuple[int, int, int]) -> int:
    """Read ``--batch-size``; "auto" takes about a million input values, between 16 and 512 images.

    Raises:
        ConfigError: neither a positive number nor "auto".
    """
    if text == "auto":
        values = shape[0] * shape[1] * shape[2]
        fit = max(1, 1_000_000 // values).bit_length() - 1
        return int(max(16, min(512, 2**fit)))
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--batch-size: must be a positive number or auto; got {text!r}.")
    return int(text)


def parse_list(text: str | None) -> tuple[str, ...] | None:
    """Split a comma-separated option."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())
