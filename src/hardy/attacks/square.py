"""Square: random search over square patches, with the logits alone.

Andriushchenko, Croce, Flammarion, Hein. "Square Attack: a query-efficient black-box adversarial attack via random
search". ECCV 2020, https://arxiv.org/abs/1912.00049 (Alg. 1 to 3); l1 and the schedule as in AutoAttack-standard.

linf: a square of every channel jumps to a random side of the ball. l2 and l1: the budget of one window moves to
another, where a pattern is added to what is there. A proposal stays if the loss falls. Squares shrink on a schedule.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy import seeding
from hardy.attacks._card import Card
from hardy.attacks._patches import constant, pattern_table, sides, stage, tile_grid, tiles, window
from hardy.attacks.goal import Goal
from hardy.attacks.losses import Loss, cross_entropy
from hardy.attacks.norms import norm_of, project
from hardy.attacks.state import Ball, Query, Stop
from hardy.errors import ParameterError
from hardy.threats import Norm

__all__ = ["CARD", "Square", "SquareState"]

CARD = Card(
    name="square",
    summary="Random search over square patches; needs no gradients.",
    paper="Andriushchenko et al., ECCV 2020",
    url="https://arxiv.org/abs/1912.00049",
    deviations=(
        "every image draws its own windows; the authors' code gives one window per step to the whole batch",
        "windows may lie anywhere, as in the paper; the authors' code never reaches the last row and column",
    ),
)
TINY = 1e-12  # added to lengths before dividing


@dataclass(frozen=True)
class SquareState:
    """Rows of Square.

    Attributes:
        x: The images.
        x_adv: The best points so far; ``x`` before the first answer.
        proposal: What is looked at next.
        loss: At ``x_adv``, to be lowered.
        margin: At ``x_adv``; at most 0 is taken for a success, whatever the loss.
        goal: What success is.
        threat: Norm and budgets.
        key: Sources of randomness.
        query: Answers had.
    """

    x: Float[Tensor, "n c h w"]
    x_adv: Float[Tensor, "n c h w"]
    proposal: Float[Tensor, "n c h w"]
    loss: Float[Tensor, "n"]
    margin: Float[Tensor, "n"]
    goal: Goal
    threat: Ball
    key: Int[Tensor, "n"]
    query: Int[Tensor, "n"]


@dataclass(frozen=True, kw_only=True)
class Square:
    """Square and its defaults, those of AutoAttack-standard.

    Attributes:
        queries: Proposals per restart, one forward pass each, at least 1; the starting point takes one more.
        p_init: Share of the image that the first squares cover, (0, 1]; the paper's p.
        rescale: Stretch the schedule of sizes, made for 10000 queries, to the number of queries. AutoAttack-standard
            does not, so that its squares stay larger.
        restarts: Runs per image, from different starting points.
        stop: When an image leaves; see :class:`hardy.attacks.state.Attack`.
    """

    queries: int = 5000
    p_init: float = 0.8
    rescale: bool = False
    restarts: int = 1
    stop: Stop = "first_success"

    name: ClassVar[str] = CARD.name
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    targeted: ClassVar[bool] = False
    hard_label: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.queries < 1 or self.restarts < 1:
            raise ParameterError(
                f"Square: queries and restarts must be at least 1; got {self.queries} and {self.restarts}."
            )
        if not 0 < self.p_init <= 1:
            raise ParameterError(f"Square: p_init must be above 0 and at most 1; got {self.p_init}.")

    @property
    def loss(self) -> Loss:
        """Cross-entropy; its gradient is never asked for."""
        return cross_entropy

    def start(self, x: Float[Tensor, "n c h w"], y: Goal, threat: Ball, key: Int[Tensor, "n"]) -> SquareState:
        """Propose vertical stripes (linf), or a grid of patterns."""
        far = torch.full_like(threat.eps, torch.inf)
        return SquareState(x, x, _first(x, threat, key), far, far, y, threat, key, torch.zeros_like(key))

    def ask(self, state: SquareState) -> Query:
        """Ask about the proposals."""
        return Query(state.proposal, torch.arange(len(state.x), device=state.x.device), gradient=False)

    def tell(
        self,
        state: SquareState,
        logits: Float[Tensor, "n k"],
        gradient: Float[Tensor, "n c h w"] | None,  # noqa: ARG002  (the contract)
    ) -> SquareState:
        """Keep proposals that lower the loss (or are the first success), and make the next ones.

        The loss is the margin; the cross-entropy of the target where one must be hit.
        """
        goal = state.goal
        margin = goal.margin(logits)
        loss = torch.where(goal.must_hit, -cross_entropy(logits, goal), margin)
        better = (loss < state.loss) | ((margin <= 0) & (state.margin > 0))
        state = replace(
            state,
            x_adv=torch.lerp(state.x_adv, state.proposal, better.to(state.x.dtype)[:, None, None, None]),
            loss=torch.where(better, loss, state.loss),
            margin=torch.where(better, margin, state.margin),
            query=state.query + 1,
        )
        return replace(state, proposal=self._propose(state))

    def finished(self, state: SquareState) -> Bool[Tensor, "n"]:
        """Say which rows have had an answer to the starting point and to all proposals."""
        return state.query > self.queries

    def result(self, state: SquareState) -> Float[Tensor, "n c h w"]:
        """Give the best points."""
        return state.x_adv

    def _propose(self, state: SquareState) -> Float[Tensor, "n c h w"]:
        """Change a square of each row's best point; a function of its key and how many answers it had."""
        channels, height, width = state.x.shape[1:]
        norm, step = state.threat.norm, state.query - 1
        sizes = sides(height, width, p_init=self.p_init, norm=norm)
        level = stage(step * 10000 // self.queries if self.rescale else step)
        side = constant(sizes, step.device)[level]
        u = seeding.uniform(seeding.fold(state.key, state.query), 0, (5 + channels,))
        down, right = window(u[:, 0], side, height), window(u[:, 1], side, width)
        inside = _box(down, right, side)
        sign = torch.where(u[:, 5:] < 0.5, -1.0, 1.0)[:, :, None, None]
        if norm == "linf":
            moved = (state.x + sign * state.threat.eps[:, None, None, None]).clamp(0, 1)
            return torch.lerp(state.x_adv, moved, inside[:, None])  # exact for 0 and 1; where() takes ten times as long
        emptied = _box(window(u[:, 2], side, height), window(u[:, 3], side, width), side)
        table = pattern_table(sizes, norm, step.device)
        chosen = (level * 2 + (u[:, 4] > 0.5))[:, None, None]
        down, right = (axis.clamp(min=0, max=table.shape[-1] - 1) for axis in (down, right))
        pattern = table.flatten(0, 1)[chosen, down[:, :, None], right[:, None, :]]
        return _move_budget(state, inside[:, None], emptied[:, None], pattern[:, None] * sign)


def _first(x: Tensor, threat: Ball, key: Tensor) -> Tensor:
    """Give the starting points, on the border of the ball as far as the box allows."""
    channels, height, width = x.shape[1:]
    key, eps = seeding.fold(key, 0), threat.eps[:, None, None, None]
    if threat.norm == "linf":
        stripe = torch.where(seeding.uniform(key, 0, (channels, 1, width)) < 0.5, -eps, eps)
        return (x + stripe).clamp(0, 1)
    _, _, rows, columns = tile_grid(height, width)
    delta = tiles(seeding.uniform(key, 0, (rows * columns, 1 + channels)), (channels, height, width), threat.norm)
    return _stretch(x, delta, threat)


def _box(down: Tensor, right: Tensor, side: Tensor) -> Float[Tensor, "n h w"]:
    """Give 1 inside the window and 0 outside."""
    rows, columns = ((axis >= 0) & (axis < side[:, None]) for axis in (down, right))
    return (rows[:, :, None] & columns[:, None, :]).float()


def _move_budget(state: SquareState, inside: Tensor, emptied: Tensor, pattern: Tensor) -> Tensor:
    """Add the pattern to the window and give it the budget of both windows and what is left over (Alg. 3)."""
    delta, channels = state.x_adv - state.x, state.x.shape[1]
    power = 2 if state.threat.norm == "l2" else 1
    size, union = _powers(delta, power), torch.maximum(inside, emptied)
    free = (state.threat.eps[:, None, None, None] ** power - size.sum(dim=(1, 2, 3), keepdim=True)).clamp(min=0)
    before, used = (_sum(size * mask) for mask in (inside, union))
    budget = free / channels + used if power == 2 else free + used * channels  # as the authors' code has them
    new = inside * (pattern + delta / (TINY + before ** (1 / power)))
    new = new * (budget ** (1 / power) / (TINY + _sum(_powers(new, power)) ** (1 / power)))
    return _stretch(state.x, new + delta * (1 - union), state.threat)


def _powers(delta: Tensor, power: int) -> Tensor:
    return delta.square() if power == 2 else delta.abs()


def _sum(size: Tensor) -> Float[Tensor, "n c 1 1"]:
    return size.sum(dim=(2, 3), keepdim=True)


def _stretch(x: Tensor, delta: Tensor, threat: Ball) -> Tensor:
    """Give perturbations the length of the budget and clamp to the box (l2), or project onto ball and box (l1)."""
    if threat.norm == "l1":
        return project(x + delta, x=x, eps=threat.eps, norm="l1")
    length = norm_of(delta, norm="l2")
    return (x + delta * (threat.eps / (TINY + length))[:, None, None, None]).clamp(0, 1)
