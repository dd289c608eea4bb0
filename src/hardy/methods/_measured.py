"""What our own benchmarks say of each method; ``benchmarks/record.py`` copies it from the results folders."""

import json
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["measured"]


@cache
def _figures() -> dict[str, Any]:
    text = resources.files("hardy.methods").joinpath("measured.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def measured(name: str) -> tuple[str, ...]:
    """Say in sentences what a method cost and bought in our own runs, each with its results folder.

    Args:
        name: Name in ``METHODS``.

    Returns:
        One sentence a benchmark; none where it was not run.
    """
    return tuple(
        f"{part['what']}: {part['methods'][name]} ({part['folder']})."
        for part in _figures().values()
        if name in part["methods"]
    )
