"""The few facts every method states about itself."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Card"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """One row of the method table in the docs and of ``hardy methods``.

    Attributes:
        name: Name in recipes and on the command line.
        summary: The idea in one or two sentences.
        paper: Authors, venue and year.
        url: Where to read it.
        kind: layer: works inside the net; input: changes the batch; loss: changes the objective.
        live: Whether it stays at test time.
        twin: For a live method: what stands in for it where attacks need a gradient, or why nothing has to.
        attaches: Which tensors of any CNN it takes.
        defaults_from: Where the default values come from.
        deviations: Where this code differs from the paper or its released code, and what was reconstructed.
        notes: Licences, patents, limits.
    """

    name: str
    summary: str
    paper: str
    url: str
    kind: Literal["layer", "input", "loss"]
    live: bool
    attaches: str
    defaults_from: str
    twin: str = ""
    deviations: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
