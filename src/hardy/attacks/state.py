"""The contract between an attack and the engine: ask / tell over rows.

An attack never sees the model. The engine starts it on rows, asks it for points, tells it what the model said there,
until its rows are finished. All a row knows is in its state: a dataclass of tensors whose first dimension is the row.
Every scalar of a published algorithm (step size, counter, best loss) is an (n,) tensor, so rows may leave and enter at
any time. Fields that are neither tensors nor dataclasses (the norm) are constants that all rows share.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy.attacks.goal import Goal
from hardy.attacks.losses import Loss
from hardy.threats import Norm

__all__ = ["AnyAttack", "Attack", "Ball", "ForeignAttack", "Progress", "Query", "Stop", "concat", "select"]

S = TypeVar("S")
Stop = Literal["first_success", "min_norm", "never"]
ForeignAttack = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Ball:
    """A threat with one budget per row: ``norm``, and ``eps`` in units of pixels in [0, 1]."""

    norm: Norm
    eps: Float[Tensor, "n"]


@dataclass(frozen=True)
class Query:
    """Points whose logits an attack wants to know.

    Attributes:
        x: The points; a row may ask for several.
        row: Which row of the state each point belongs to.
        gradient: Whether the gradient of the attack's loss with respect to each point is wanted too.
    """

    x: Float[Tensor, "m c h w"]
    row: Int[Tensor, "m"]
    gradient: bool


@dataclass(frozen=True)
class Progress:
    """What ``on_progress`` is called with: jobs finished or cancelled, of how many; images broken so far."""

    attack: str
    done: int
    total: int
    broken: int


@runtime_checkable
class Attack(Protocol[S]):
    """A way to search inside a threat.

    Attributes:
        name: Name in the ATTACKS table; part of the key of its random draws.
        norms: Norms it is defined for.
        targeted: True if every job aims at a wrong class of its own: restart r at the r-th most likely one. Any attack
            aims when the caller gives targets.
        hard_label: True if it reads nothing but the predicted class.
        stop: "first_success": a broken image leaves at once; "min_norm": whole budget, smallest perturbation;
            "never": whole budget, final point.
        restarts: Jobs per image.
        loss: What the gradient is of, one number per point, to be increased.
    """

    @property
    def name(self) -> str: ...  # noqa: D102  (above)
    @property
    def norms(self) -> tuple[Norm, ...]: ...  # noqa: D102  (above)
    @property
    def targeted(self) -> bool: ...  # noqa: D102  (above)
    @property
    def hard_label(self) -> bool: ...  # noqa: D102  (above)
    @property
    def stop(self) -> Stop: ...  # noqa: D102  (above)
    @property
    def restarts(self) -> int: ...  # noqa: D102  (above)
    @property
    def loss(self) -> Loss: ...  # noqa: D102  (above)

    def start(self, x: Tensor, y: Goal, threat: Ball, key: Tensor) -> S:
        """Begin one job per row: images (n, c, h, w) in [0, 1], goals, budgets and int64 keys of the same n rows."""
        ...

    def ask(self, state: S) -> Query:
        """Name the points to look at; at least one for every unfinished row."""
        ...

    def tell(self, state: S, logits: Tensor, gradient: Tensor | None) -> S:
        """Move on, given logits (m, k) and, if asked for, gradients (m, c, h, w) of the points of the last query."""
        ...

    def finished(self, state: S) -> Tensor:
        """Say which rows have spent their budget, bool (n,)."""
        ...

    def result(self, state: S) -> Tensor:
        """Give each row's image so far (n, c, h, w); the final image where finished."""
        ...


AnyAttack = Attack[Any]  # the engine hands states back and never looks into them


def select(rows: S, index: Tensor) -> S:
    """Take rows of a dataclass of tensors (nested dataclasses too) by an int index or a bool mask."""
    return cast("S", _rebuild([rows], lambda values: values[0][index]))


def concat(parts: Sequence[S]) -> S:
    """Join rows of dataclasses of the same kind; their constants are taken from the first."""
    return cast("S", _rebuild(parts, torch.cat))


def _rebuild(parts: Sequence[object], join: Callable[[list[Tensor]], Tensor]) -> object:
    first = parts[0]
    if isinstance(first, Tensor):
        return join([part for part in parts if isinstance(part, Tensor)])
    if not dataclasses.is_dataclass(first) or isinstance(first, type):
        return first
    names = [f.name for f in dataclasses.fields(first)]
    return type(first)(**{name: _rebuild([getattr(part, name) for part in parts], join) for name in names})
