"""The engine: drives any ask / tell attack over a queue of jobs with a full batch at all times.

A job is (image, restart); restarts of targeted attacks are targets. Jobs wait in a queue, restart 0 of all images
first. A row that finishes or succeeds leaves the batch and the next job takes its place. A success is a claim: claims
wait until they fill one batch of fixed shape, in which the attacked model predicts them again (``verify``). Meanwhile
the other jobs of that image rest. If the claim holds they are cancelled, if not they go on. When the queue is empty,
the batch shrinks (:func:`hardy.attacks.passes.bucket`), so that the tail is cheap.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy import seeding
from hardy.attacks.goal import Goal
from hardy.attacks.norms import norm_of
from hardy.attacks.passes import Passes
from hardy.attacks.state import Attack, Ball, Progress, Query, Stop, concat, select
from hardy.attacks.verify import Verdict, inside, verify

__all__ = ["Engine", "Problem"]

log = logging.getLogger(__name__)
S = TypeVar("S")
FIRST = 1e6  # more than any distance: puts a success of "min_norm" first; float64 still tells 1e-9 apart

TINY = 1e-300  # float64: puts a success of margin 0 before a failure of margin 0


@dataclass(frozen=True)
class Problem:
    """The images to attack, in the box; one row per image.

    Attributes:
        x: Pixels in [0, 1], float32.
        y: True classes.
        targets: Class to hit, by image and restart, shape (n, restarts); equal to ``y`` for "away from the label".
        must_hit: Whether only the target counts as success.
        threat: Norm and budgets.
        key: One int64 per image.
        image: Row numbers in the caller's batch; the counts of passes use them.
    """

    x: Float[Tensor, "n c h w"]
    y: Int[Tensor, "n"]
    targets: Int[Tensor, "n r"]
    must_hit: Bool[Tensor, "n"]
    threat: Ball
    key: Int[Tensor, "n"]
    image: Int[Tensor, "n"]


@dataclass(frozen=True)
class _Rows(Generic[S]):
    index: Tensor  # which image of the problem
    goal: Goal
    state: S


@dataclass(frozen=True)
class _Parked(Generic[S]):
    rows: _Rows[S]
    x_adv: Tensor
    claimed: Tensor  # False: only resting while another job of the image has a claim
    finished: Tensor


class Engine(Generic[S]):
    """Run one attack on one problem; afterwards ``x_adv``, ``success`` and ``margin`` hold one row per image.

    Args:
        attack: The attack.
        problem: What to attack.
        search: Calls the nets that the search looks at.
        judge: Calls the attacked model, for verification.
        stop: When rows leave (:class:`hardy.attacks.state.Attack`).
        on_progress: Called after every verification.
    """

    def __init__(
        self,
        attack: Attack[S],
        problem: Problem,
        *,
        search: Passes,
        judge: Passes,
        stop: Stop,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        n = len(problem.x)
        self.attack, self.problem, self.search, self.judge = attack, problem, search, judge
        self.stop, self.on_progress = stop, on_progress
        self.x_adv = problem.x.clone()
        self.margin = torch.full((n,), torch.inf, device=problem.x.device)
        self._score = self.margin.double()
        self.success = torch.zeros(n, dtype=torch.bool, device=problem.x.device)
        self._resting = torch.zeros_like(self.success)  # images with a claim that waits for verification
        self._queue = torch.arange(n * problem.targets.shape[1], device=problem.x.device)  # job = restart * n + image
        self._active: _Rows[S] | None = None
        self._parked: list[_Parked[S]] = []

    def run(self) -> None:
        """Work until no job is left."""
        self._report()
        while True:
            starved = self._refill()
            if self._active is None:
                if not self._parked:
                    return
                self._flush()
                continue
            self._round(self._active)
            claims = sum(int(parked.claimed.sum()) for parked in self._parked)
            if claims >= self.judge.size or (claims and starved):
                self._flush()

    def _refill(self) -> bool:
        """Fill the batch from the queue; say whether it stays short only because jobs wait for a verification."""
        n, room = len(self.problem.x), self.search.size - self._count()
        if self.stop == "first_success":
            self._queue = self._queue[~self.success[self._queue % n]]
        if room <= 0 or len(self._queue) == 0:
            return False
        ready = ~self._resting[self._queue % n]
        taken = ready & (ready.cumsum(0) <= room)
        jobs, self._queue = self._queue[taken], self._queue[~taken]
        if len(jobs):
            self._active = _join(self._active, self._start(jobs % n, jobs // n))
        return len(self._queue) > 0 and len(jobs) < room

    def _start(self, index: Tensor, restart: Tensor) -> _Rows[S]:
        p = self.problem
        goal = Goal(label=p.y[index], target=p.targets[index, restart], must_hit=p.must_hit[index])
        key = seeding.fold(p.key[index], restart)
        key = torch.where(goal.target != goal.label, seeding.fold(key, goal.target), key)
        return _Rows(index, goal, self.attack.start(p.x[index], goal, select(p.threat, index), key))

    def _round(self, rows: _Rows[S]) -> None:
        """Ask, call the nets, tell, and park the rows that have something to claim."""
        query = self.attack.ask(rows.state)
        image, goal = self.problem.image[rows.index[query.row]], select(rows.goal, query.row)
        gradient = None
        if query.gradient:
            logits, gradient = self.search.gradient(query.x, image, goal, self.attack.loss)
        else:
            logits = self.search.logits(query.x, image)
        rows = _Rows(rows.index, rows.goal, self.attack.tell(rows.state, logits, gradient))
        finished = self.attack.finished(rows.state)
        x_adv, claimed, leaving = self.attack.result(rows.state), finished, finished
        if self.stop == "first_success":
            point, fooled = self._first_fooled(rows, query, goal.reached(logits))
            x_adv = torch.where(fooled[:, None, None, None], query.x[point], x_adv)
            claimed = finished | fooled
            self._resting[rows.index[fooled]] = True
            leaving = claimed | self._resting[rows.index]
        if leaving.any():
            self._parked.append(select(_Parked(rows, x_adv, claimed, finished), leaving))
            self._active = None if leaving.all() else select(rows, ~leaving)
        else:
            self._active = rows

    def _first_fooled(self, rows: _Rows[S], query: Query, reached: Tensor) -> tuple[Tensor, Tensor]:
        """Find each row's first point that reached its goal inside ball and box: its number, and if there is one."""
        point = reached.nonzero()[:, 0]  # few; ball and box of all of them would cost as much as Square's proposals
        found = reached.clone()
        if len(point):
            index = rows.index[query.row[point]]
            found[point] = inside(query.x[point], self.problem.x[index], select(self.problem.threat, index))
        return _first(query.row, found, len(rows.index))

    def _flush(self) -> None:
        """Verify all claims; successes end their image, the others record their margin, unfinished rows go on."""
        parked, p = concat(self._parked), self.problem
        self._parked = []
        claims = select(parked, parked.claimed)
        index = claims.rows.index
        verdict = verify(
            self.judge,
            claims.x_adv,
            x=p.x[index],
            goal=claims.rows.goal,
            threat=select(p.threat, index),
            image=p.image[index],
        )
        self._record(index, claims.x_adv, verdict)
        self._resting[:] = False
        back = ~parked.finished
        if self.stop == "first_success":
            back &= ~self.success[parked.rows.index]
        if back.any():
            self._active = _join(self._active, select(parked.rows, back))
        if self._active is not None and self.stop == "first_success":
            keep = ~self.success[self._active.index]
            self._active = select(self._active, keep) if keep.any() else None
        self._report()

    def _record(self, index: Tensor, x_adv: Tensor, verdict: Verdict) -> None:
        """Keep each image's best valid claim: successes first; the lowest margin, or, for "min_norm", the nearest."""
        margin = verdict.margin.double()
        score = torch.where(verdict.success, margin.clamp(max=-TINY), margin.clamp(min=0))  # a tie may be a success
        if self.stop == "min_norm":
            nearest = norm_of(x_adv - self.problem.x[index], norm=self.problem.threat.norm)
            score = torch.where(verdict.success, nearest.double() - FIRST, score)
        score = torch.where(verdict.inside, score, torch.inf)
        best = self._score.scatter_reduce(0, index, score, "amin")
        claim, better = _first(index, (score == best[index]) & (score < self._score[index]), len(self.margin))
        claim = claim[better]
        self._score[better], self.margin[better] = score[claim], verdict.margin[claim]
        self.success[better], self.x_adv[better] = verdict.success[claim], x_adv[claim]

    def _count(self) -> int:
        return 0 if self._active is None else len(self._active.index)

    def _report(self) -> None:
        if self.on_progress is not None:
            total = self.problem.targets.numel()
            n, waiting = len(self.success), self._queue
            if self.stop == "first_success":
                waiting = waiting[~self.success[waiting % n]]
            left = len(waiting) + self._count()
            self.on_progress(Progress(self.attack.name, total - left, total, int(self.success.sum())))


def _join(active: _Rows[S] | None, more: _Rows[S]) -> _Rows[S]:
    return more if active is None else concat([active, more])


def _first(group: Tensor, wanted: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Find, for each of ``n`` groups, the first wanted member (0 where there is none), and whether there is one."""
    m = len(group)
    position = torch.where(wanted, torch.arange(m, device=group.device), m)
    first = torch.full((n,), m, device=group.device).scatter_reduce(0, group, position, "amin")
    return torch.where(first < m, first, 0), first < m
