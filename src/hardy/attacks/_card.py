"""The few facts every attack states about itself."""

from dataclasses import dataclass

__all__ = ["Card"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """One row of ``hardy attacks`` and of the attack table in the docs."""

    name: str
    summary: str
    paper: str
    url: str
    deviations: tuple[str, ...] = ()
