"""HopSkipJump: walks along the decision boundary knowing nothing but the predicted class.

Chen, Jordan, Wainwright. "HopSkipJumpAttack: a query-efficient decision-based attack".
IEEE Symposium on Security and Privacy 2020, https://arxiv.org/abs/1904.02144 (Algorithms 1 and 2).

Uniform noise that fools the net is blended towards the image. Then, again and again: halve the way to the boundary
(until theta = gamma / d^1.5 for l2, gamma / d^2 for linf); estimate the direction away from the label from the classes
at B_t = B_0 sqrt(t) points in a small sphere around the boundary point; step along it (its sign for linf) by the
distance / sqrt(t), halved until the point fools the net. Rows are in different phases, and the unit is the query: a row
asks one point where the next depends on the answer, up to 32 in an estimate.

Deviations: the budget is a number of queries, not of iterations. The nearest adversarial point met on the way is kept
(the boundary points of the published attack need not come ever nearer), but none that is within 1e-4 of its distance
from the boundary, so that it is still adversarial when predicted in another batch. A halving also ends where float32
cannot halve any more. An image for which nothing was found inside the ball comes back pulled to its border; one for
which no noise fools the net, unchanged.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy import seeding
from hardy.attacks._card import Card
from hardy.attacks._min_norm import pull_inside
from hardy.attacks.goal import Goal
from hardy.attacks.losses import Loss, cross_entropy
from hardy.attacks.norms import norm_of, steepest_step
from hardy.attacks.state import Ball, Query, Stop, select
from hardy.errors import ParameterError
from hardy.threats import Norm

__all__ = ["CARD", "HopSkipJump", "HopSkipJumpState"]

CARD = Card(
    name="hop_skip_jump",
    summary="Walks along the decision boundary; sees nothing but the predicted class.",
    paper="Chen et al., IEEE S&P 2020",
    url="https://arxiv.org/abs/1904.02144",
    deviations=("the budget is a number of queries", "the nearest adversarial point met is kept"),
)

NOISE, BLEND, BOUNDARY, ESTIMATE, STEP, LOST = range(6)  # phases; LOST: no noise fools the net
PROBES = 32  # points a row asks for at once in an estimate: bounds the memory, changes nothing else
BLENDED = 1e-3  # where the halving of the noise ends (authors' code)
CLOSE = 1e-4  # of the distance: points found by finer halving are too close to the boundary to be kept
FIRST_PROBE = 0.1  # radius of the first sphere (authors' code)


@dataclass(frozen=True)
class HopSkipJumpState:
    """Rows of the attack.

    Attributes:
        x: Images.
        goal: What each row wants.
        threat: Norm and budgets.
        key: Source of the noise and of the probes.
        phase: What the row is doing.
        queries: Points asked for so far.
        draw: Noise images that did not fool the net.
        iteration: Boundary points found so far; t of the paper.
        point: In NOISE, BLEND and BOUNDARY the far end of the halving, in ESTIMATE and STEP the boundary point.
        low: Largest share (linf: distance) from the image towards ``point`` known not to fool the net.
        high: Smallest known to fool it.
        reach: Distance of the far end of the last halving.
        probed: Probes of this iteration that were told.
        votes: Sum of their answers, 1 for adversarial, -1 otherwise.
        total: Sum of their directions.
        signed: Sum of answer times direction; in STEP the direction of the step.
        step_size: Length of the step to try.
        best: Nearest adversarial point so far.
        nearest: Its distance; inf for none.
    """

    x: Float[Tensor, "n c h w"]
    goal: Goal
    threat: Ball
    key: Int[Tensor, "n"]
    phase: Int[Tensor, "n"]
    queries: Int[Tensor, "n"]
    draw: Int[Tensor, "n"]
    iteration: Int[Tensor, "n"]
    point: Float[Tensor, "n c h w"]
    low: Float[Tensor, "n"]
    high: Float[Tensor, "n"]
    reach: Float[Tensor, "n"]
    probed: Int[Tensor, "n"]
    votes: Float[Tensor, "n"]
    total: Float[Tensor, "n c h w"]
    signed: Float[Tensor, "n c h w"]
    step_size: Float[Tensor, "n"]
    best: Float[Tensor, "n c h w"]
    nearest: Float[Tensor, "n"]


@dataclass(frozen=True, kw_only=True)
class HopSkipJump:
    """HopSkipJump and its defaults: those of the authors' code and Foolbox, but a budget of queries.

    A common budget is some thousand queries; the 40 iterations of the authors' code take about 18,000,
    the 64 of Foolbox about 36,000.

    Attributes:
        queries: Forward passes per image, at least 1.
        first_probes: B_0: points of the first estimate, at least 1; the t-th has sqrt(t) times as many.
        max_probes: Most points of one estimate, at least 1.
        gamma: Coarseness of halvings and probes, above 0. From the second estimate on, probes are gamma / d times the
            distance away from the boundary point; with 100,000 pixels that is near the precision of float32: take more.
        draws: Noise images to try before giving up, at least 1; as many as Foolbox. With targets, one of them must be
            of the target class.
        stop: When an image leaves; see :class:`hardy.attacks.state.Attack`.
    """

    queries: int = 5000
    first_probes: int = 100
    max_probes: int = 10000
    gamma: float = 1.0
    draws: int = 1000
    stop: Stop = "min_norm"

    name: ClassVar[str] = CARD.name
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    targeted: ClassVar[bool] = False
    hard_label: ClassVar[bool] = True
    restarts: ClassVar[int] = 1

    def __post_init__(self) -> None:
        counts = (self.queries, self.first_probes, self.max_probes, self.draws)
        if min(counts) < 1:
            raise ParameterError(
                f"HopSkipJump: queries, first_probes, max_probes and draws must be at least 1; got {counts}."
            )
        if not self.gamma > 0:
            raise ParameterError(f"HopSkipJump: gamma must be above 0; got {self.gamma}.")

    @property
    def loss(self) -> Loss:
        """Cross-entropy; never asked for."""
        return cross_entropy

    def start(self, x: Float[Tensor, "n c h w"], y: Goal, threat: Ball, key: Int[Tensor, "n"]) -> HopSkipJumpState:
        """Begin with noise."""
        none, flat, image = torch.zeros_like(key), torch.zeros_like(threat.eps), torch.zeros_like(x)
        return HopSkipJumpState(
            x=x,
            goal=y,
            threat=threat,
            key=key,
            phase=none + NOISE,
            queries=none,
            draw=none,
            iteration=none,
            point=x,
            low=flat,
            high=flat + 1,
            reach=flat,
            probed=none,
            votes=flat,
            total=image,
            signed=image,
            step_size=flat,
            best=x,
            nearest=flat + torch.inf,
        )

    def ask(self, state: HopSkipJumpState) -> Query:
        """Ask for one point of each row, or for its next probes where it estimates."""
        single, several = _split(state)
        x, row = _next_points(state)[single], single
        if len(several):
            asked = self._asked(state, several)
            x = torch.cat([x, self._probes(select(state, several))[0][asked]])
            row = torch.cat([row, several[asked.nonzero()[:, 0]]])
        return Query(x, row, gradient=False)

    def tell(
        self,
        state: HopSkipJumpState,
        logits: Float[Tensor, "m k"],
        gradient: Float[Tensor, "m c h w"] | None,  # noqa: ARG002  (the contract)
    ) -> HopSkipJumpState:
        """Move every row on in its phase."""
        single, several = _split(state)
        asked = self._asked(state, several)
        row = torch.cat([single, several[asked.nonzero()[:, 0]]])
        hits = select(state.goal, row).reached(logits)
        hit = torch.zeros_like(state.phase, dtype=torch.bool)
        hit[single] = hits[: len(single)]
        moved = self._search(state, hit)
        if len(several):
            directions = self._probes(select(state, several))[1]
            answers = torch.zeros_like(asked, dtype=state.x.dtype)
            answers[asked] = 2 * hits[len(single) :].to(answers.dtype) - 1
            moved = self._choose_step(_add(moved, several, directions, answers))
        return replace(moved, queries=state.queries.index_add(0, row, torch.ones_like(row)))

    def finished(self, state: HopSkipJumpState) -> Bool[Tensor, "n"]:
        """Say which rows have spent their queries or found no noise to begin with."""
        return (state.queries >= self.queries) | (state.phase == LOST)

    def result(self, state: HopSkipJumpState) -> Float[Tensor, "n c h w"]:
        """Give the nearest adversarial points, pulled into the ball where they are outside; else the image."""
        return pull_inside(state.best, state.x, state.threat)

    def _asked(self, state: HopSkipJumpState, several: Int[Tensor, "g"]) -> Bool[Tensor, "g p"]:
        """Say which of the next probes belong to the current estimate and to the budget."""
        ahead = torch.arange(PROBES, device=several.device)
        left = torch.minimum(self._wanted(state) - state.probed, self.queries - state.queries)
        return ahead < left[several][:, None]

    def _wanted(self, state: HopSkipJumpState) -> Int[Tensor, "n"]:
        """Give the number of probes of each row's current estimate."""
        return (self.first_probes * state.iteration.double().sqrt()).long().clamp(max=self.max_probes)

    def _probes(self, rows: HopSkipJumpState) -> tuple[Float[Tensor, "g p c h w"], Float[Tensor, "g p c h w"]]:
        """Draw each row's next probes: points in the box, and their directions as the box and rounding left them."""
        g, shape, centre = len(rows.x), rows.x.shape[1:], rows.point[:, None]
        number = rows.probed[:, None] + torch.arange(PROBES, device=rows.x.device)
        key = seeding.fold(rows.key, rows.iteration).repeat_interleave(PROBES)
        key = seeding.fold(key, number.flatten())
        drawn = 2 * seeding.uniform(key, 0, shape) - 1 if rows.threat.norm == "linf" else seeding.normal(key, 0, shape)
        unit = steepest_step(drawn.to(centre.dtype), norm="l2").reshape(g, PROBES, *shape)
        near = self.gamma / rows.x[0].numel() * rows.reach
        radius = torch.where(rows.iteration == 1, FIRST_PROBE, near)[:, None, None, None, None]
        points = (centre + radius * unit).clamp(0, 1)
        return points, (points - centre) / radius

    def _search(self, state: HopSkipJumpState, hit: Bool[Tensor, "n"]) -> HopSkipJumpState:
        """Answer the rows that asked for one point: noise, halvings and steps."""
        points, was, middle = _next_points(state), state.phase, (state.low + state.high) / 2
        length = norm_of(points - state.x, norm=state.threat.norm)
        halving = (was == BLEND) | (was == BOUNDARY)
        safe = ~halving | (state.high - state.low >= CLOSE * state.high)
        nearer = hit & safe & (length < state.nearest)
        draw = state.draw + ((was == NOISE) & ~hit)
        state = replace(
            state,
            draw=draw,
            phase=torch.where((was == NOISE) & (draw >= self.draws), LOST, was),
            low=torch.where(halving & ~hit, middle, state.low),
            high=torch.where(halving & hit, middle, state.high),
            step_size=torch.where((was == STEP) & ~hit, state.step_size / 2, state.step_size),
            best=torch.where(nearer[:, None, None, None], points, state.best),
            nearest=torch.where(nearer, length, state.nearest),
        )
        end, closed = _between(state, state.high), self._closed(state)
        state = _halve(state, (was == NOISE) & hit, points, BLEND)
        state = _halve(state, (was == BLEND) & closed, end, BOUNDARY)
        state = _halve(state, (was == STEP) & hit, points, BOUNDARY)
        return _begin_estimate(state, (was == BOUNDARY) & closed, end)

    def _closed(self, state: HopSkipJumpState) -> Bool[Tensor, "n"]:
        """Say which halvings are fine enough, or as fine as the numbers allow."""
        d = state.x[0].numel()
        fine = torch.full_like(state.high, self.gamma / d**1.5)
        if state.threat.norm == "linf":
            fine = self.gamma / d**2 * state.reach.clamp(max=1)
        middle = (state.low + state.high) / 2
        stuck = (middle <= state.low) | (middle >= state.high)
        return (state.high - state.low <= torch.where(state.phase == BLEND, BLENDED, fine)) | stuck

    def _choose_step(self, state: HopSkipJumpState) -> HopSkipJumpState:
        """Choose direction and first length of the step where all probes of an estimate have answered."""
        ready = (state.phase == ESTIMATE) & (state.probed >= self._wanted(state))
        mean = state.votes / state.probed.clamp(min=1)
        baseline = torch.where(mean.abs() < 1, mean, 0)[:, None, None, None]  # all equal: nothing to subtract
        direction = steepest_step(state.signed - baseline * state.total, norm=state.threat.norm)
        distance = norm_of(state.point - state.x, norm=state.threat.norm)
        length = distance / state.iteration.clamp(min=1).to(distance.dtype).sqrt()
        return replace(
            state,
            phase=torch.where(ready, STEP, state.phase),
            signed=torch.where(ready[:, None, None, None], direction, state.signed),
            step_size=torch.where(ready, length, state.step_size),
        )


def _split(state: HopSkipJumpState) -> tuple[Int[Tensor, "s"], Int[Tensor, "g"]]:
    """Number the rows that ask for one point, and those that estimate."""
    estimates = state.phase == ESTIMATE
    return (~estimates).nonzero()[:, 0], estimates.nonzero()[:, 0]


def _next_points(state: HopSkipJumpState) -> Float[Tensor, "n c h w"]:
    """Give the point each row looks at next, in NOISE, BLEND, BOUNDARY and STEP."""
    phase = state.phase[:, None, None, None]
    points = _between(state, (state.low + state.high) / 2)
    stepped = state.point + state.step_size[:, None, None, None] * state.signed
    points = torch.where(phase == STEP, stepped.clamp(0, 1), points)
    noisy = (state.phase == NOISE).nonzero()[:, 0]
    if len(noisy):
        noise = seeding.uniform(seeding.fold(state.key[noisy], state.draw[noisy]), 0, state.x.shape[1:])
        points = points.index_copy(0, noisy, noise.to(points.dtype))
    return points


def _between(state: HopSkipJumpState, share: Float[Tensor, "n"]) -> Float[Tensor, "n c h w"]:
    """Go a share of the way to the far end; in linf to where no pixel differs from the image by more than it."""
    share = share[:, None, None, None]
    mixed = (1 - share) * state.x + share * state.point
    if state.threat.norm == "linf":
        cut = torch.minimum(torch.maximum(state.point, state.x - share), state.x + share)
        mixed = torch.where(state.phase[:, None, None, None] == BLEND, mixed, cut)
    return mixed.clamp(0, 1)


def _halve(
    state: HopSkipJumpState, rows: Bool[Tensor, "n"], far: Float[Tensor, "n c h w"], phase: int
) -> HopSkipJumpState:
    """Let these rows begin to halve the way from the image to an adversarial point."""
    reach = norm_of(far - state.x, norm=state.threat.norm)
    whole = reach if state.threat.norm == "linf" and phase == BOUNDARY else torch.ones_like(reach)
    return replace(
        state,
        phase=torch.where(rows, phase, state.phase),
        point=torch.where(rows[:, None, None, None], far, state.point),
        low=torch.where(rows, 0, state.low),
        high=torch.where(rows, whole, state.high),
        reach=torch.where(rows, reach, state.reach),
    )


def _begin_estimate(
    state: HopSkipJumpState, rows: Bool[Tensor, "n"], edge: Float[Tensor, "n c h w"]
) -> HopSkipJumpState:
    """Let these rows begin an estimate at their new boundary point."""
    image = rows[:, None, None, None]
    return replace(
        state,
        phase=torch.where(rows, ESTIMATE, state.phase),
        iteration=state.iteration + rows,
        point=torch.where(image, edge, state.point),
        probed=torch.where(rows, 0, state.probed),
        votes=torch.where(rows, 0, state.votes),
        total=torch.where(image, 0, state.total),
        signed=torch.where(image, 0, state.signed),
    )


def _add(
    state: HopSkipJumpState,
    index: Int[Tensor, "g"],
    directions: Float[Tensor, "g p c h w"],
    answers: Float[Tensor, "g p"],
) -> HopSkipJumpState:
    """Add the answers (1, -1, or 0 for not asked) and directions of these rows' probes to their sums."""
    weight = answers[:, :, None, None, None]
    return replace(
        state,
        probed=state.probed.index_add(0, index, (answers != 0).sum(dim=1)),
        votes=state.votes.index_add(0, index, answers.sum(dim=1)),
        total=state.total.index_add(0, index, (weight.abs() * directions).sum(dim=1)),
        signed=state.signed.index_add(0, index, (weight * directions).sum(dim=1)),
    )
