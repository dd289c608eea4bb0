"""Auto-PGD: gradient ascent with momentum whose step size follows its own progress; nothing is left to tune.

Croce, Hein. "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks".
ICML 2020, https://arxiv.org/abs/2003.01690 (Sec. 3, Alg. 1). For l1: Croce, Hein. "Mind the box: l1-APGD for sparse
adversarial attacks on image classifiers". ICML 2021, https://arxiv.org/abs/2103.01208 (Sec. 4, Alg. 1).

linf, l2: the first step is ``2 * eps`` long. At checkpoints, which come ever faster, the step size is halved where at
most ``rho`` of the steps since the last one raised the loss, or where neither step size nor best loss have changed
since then; the search then goes on from its best point. l1: a step moves the largest gradient values, a share that
follows how many values the best point changes. Where that number falls, the step size is reset and the search goes on
from its best point; elsewhere it is divided by 1.5. Balls of 3 and 2 times the budget come first.

AutoAttack's code is the definition where the papers leave room: the first step counts as a rise if its loss is above
0, the first point is on the border of the ball, and a checkpoint of l1 comes after 4 % of the steps of its ball.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy import seeding
from hardy.attacks._card import Card
from hardy.attacks.goal import Goal
from hardy.attacks.losses import Loss, cross_entropy, difference_of_logits_ratio, logit_margin
from hardy.attacks.norms import on_sphere, project, steepest_step
from hardy.attacks.state import Ball, Query, Stop, select
from hardy.errors import ParameterError, did_you_mean
from hardy.threats import Norm

__all__ = ["APGD", "CARD", "APGDState"]

CARD = Card(
    name="apgd",
    summary="Gradient ascent that adapts its step size by itself; the first two of AutoAttack's four attacks.",
    paper="Croce and Hein, ICML 2020 and 2021",
    url="https://arxiv.org/abs/2003.01690",
    deviations=(
        "an image leaves at the first adversarial point of its path",
        "with eot above 1 the loss is averaged like the gradient; AutoAttack takes that of the last sample",
        "the l1 projection does not leave the ball by rounding",
    ),
)

LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dlr": difference_of_logits_ratio, "margin": logit_margin}
MOMENTUM = 0.25  # weight of the last change; 1 - alpha of the paper
LAST = 2  # number of the last ball; ball b has 3 - b times the budget
FIRST_SHARE = 0.2  # l1: of the values move before the first checkpoint, if there is one ball
FALL = 0.95  # l1: the number of changed values has fallen if it is below this share of the last one
DIVISOR = 1.5  # l1: of the step size, and of the share of changed values
SMALLEST = 0.1  # l1: step size in units of the radius


@dataclass(frozen=True)
class APGDState:
    """Rows of Auto-PGD.

    Attributes:
        x: Images.
        goal: What each row wants.
        threat: Norm and budgets.
        x_adv: Points to look at.
        x_prev: Where the last step began (linf, l2).
        x_best: Points of highest loss in the present ball.
        g_best: Their gradients.
        loss_best: Their losses.
        x_fooled: Among the points that reached the goal within the budget, those of highest loss.
        loss_fooled: Their losses.
        fooled: Whether there is one.
        ball: Number of the present ball, 0 to 2; 2 has the budget itself.
        step: How many points of this ball were looked at.
        step_size: Length of the next step, in the norm of the threat.
        window: Steps from the last checkpoint to the next.
        since: Steps since the last checkpoint.
        rises: How many of these raised the loss (linf, l2).
        loss_prev: Loss at the last point (linf, l2).
        loss_check: Best loss at the last checkpoint (linf, l2).
        halved: Whether the last checkpoint halved the step size (linf, l2).
        share: Of the values that move in a step (l1).
        support: How many values the best point of the last checkpoint changed (l1).
    """

    x: Float[Tensor, "n c h w"]
    goal: Goal
    threat: Ball
    x_adv: Float[Tensor, "n c h w"]
    x_prev: Float[Tensor, "n c h w"]
    x_best: Float[Tensor, "n c h w"]
    g_best: Float[Tensor, "n c h w"]
    loss_best: Float[Tensor, "n"]
    x_fooled: Float[Tensor, "n c h w"]
    loss_fooled: Float[Tensor, "n"]
    fooled: Bool[Tensor, "n"]
    ball: Int[Tensor, "n"]
    step: Int[Tensor, "n"]
    step_size: Float[Tensor, "n"]
    window: Int[Tensor, "n"]
    since: Int[Tensor, "n"]
    rises: Int[Tensor, "n"]
    loss_prev: Float[Tensor, "n"]
    loss_check: Float[Tensor, "n"]
    halved: Bool[Tensor, "n"]
    share: Float[Tensor, "n"]
    support: Float[Tensor, "n"]


@dataclass(frozen=True, kw_only=True)
class APGD:
    """Auto-PGD and its defaults, those of AutoAttack-standard.

    Attributes:
        steps: Gradient steps per restart, at least 1; one more gradient is taken at the first point.
        restarts: Runs per image, from different first points; with ``targeted`` from different classes. AutoAttack has
            9 with ``targeted`` (5 for l1), otherwise 1 (5 for l1).
        objective: What rises: "ce", cross-entropy; "dlr", difference of logits ratio, blind to the scale of the logits,
            for at least 3 classes (4 with targets); "margin", difference of logits.
        targeted: Restart r aims at the r-th most likely wrong class. AutoAttack does so with "dlr".
        rho: Share of steps, in (0, 1), that must raise the loss for the step size to stay (linf, l2).
        eot: Gradients averaged per step, at least 1, for nets that are random.
        larger_balls: For l1, spend 30 % of the steps in a ball of 3 times the budget and 30 % in one of 2 times
            (both rounded up) to find where to begin. With fewer than 5 steps there is one ball. Nothing to linf and l2.
        stop: When an image leaves; see :class:`hardy.attacks.state.Attack`.
    """

    steps: int = 100
    restarts: int = 1
    objective: Literal["ce", "dlr", "margin"] = "ce"
    targeted: bool = False
    rho: float = 0.75
    eot: int = 1
    larger_balls: bool = True
    stop: Stop = "first_success"

    name: ClassVar[str] = CARD.name
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    hard_label: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for field in ("steps", "restarts", "eot"):
            if getattr(self, field) < 1:
                raise ParameterError(f"APGD: {field} must be at least 1; got {getattr(self, field)}.")
        if not 0 < self.rho < 1:
            raise ParameterError(f"APGD: rho must be in (0, 1), a share of steps; got {self.rho}.")
        if self.objective not in LOSSES:
            raise ParameterError(f"APGD: unknown objective {self.objective!r}; {did_you_mean(self.objective, LOSSES)}")

    @property
    def loss(self) -> Loss:
        """The objective."""
        return LOSSES[self.objective]

    def start(self, x: Float[Tensor, "n c h w"], y: Goal, threat: Ball, key: Int[Tensor, "n"]) -> APGDState:
        """Begin at a random point on the border of the first ball (for l1, the projection of a normal vector)."""
        several = self._several(threat.norm)
        ball = torch.full_like(key, 0 if several else LAST)
        radius = _radius(threat, ball)
        x_adv = _first_point(x, radius, key, norm=threat.norm)
        zero, none, size = torch.zeros_like(ball), torch.zeros_like(threat.eps), float(x[0].numel())
        changed = _changed(x_adv, x) if several else torch.full_like(none, size)
        return APGDState(
            x=x,
            goal=y,
            threat=threat,
            x_adv=x_adv,
            x_prev=x_adv,
            x_best=x_adv,
            g_best=torch.zeros_like(x),
            loss_best=none,
            x_fooled=x_adv,
            loss_fooled=none - torch.inf,
            fooled=torch.zeros_like(ball, dtype=torch.bool),
            ball=ball,
            step=zero,
            step_size=radius if threat.norm == "l1" else 2 * radius,
            window=self._window(threat.norm, ball),
            since=zero,
            rises=zero,
            loss_prev=none,
            loss_check=none,
            halved=torch.ones_like(ball, dtype=torch.bool),
            share=changed / size / DIVISOR if several else torch.full_like(none, FIRST_SHARE),
            support=changed,
        )

    def ask(self, state: APGDState) -> Query:
        """Ask for the gradient at each current point, ``eot`` times."""
        row = torch.arange(len(state.x), device=state.x.device).repeat(self.eot)
        x = state.x_adv if self.eot == 1 else state.x_adv.repeat(self.eot, 1, 1, 1)
        return Query(x, row, gradient=True)

    def tell(
        self, state: APGDState, logits: Float[Tensor, "m k"], gradient: Float[Tensor, "m c h w"] | None
    ) -> APGDState:
        """Keep the best, adapt at a checkpoint, and step."""
        assert gradient is not None  # noqa: S101  (asked for)
        row = torch.arange(len(state.x), device=logits.device).repeat(self.eot)
        loss = self._mean(self.loss(logits, select(state.goal, row)))
        loss = loss.nan_to_num(-torch.inf, torch.inf, -torch.inf)
        fooled = state.goal.reached(self._mean(logits))
        gradient = self._mean(gradient)
        state = _keep(state, loss, gradient, fooled)
        if state.threat.norm == "l1":
            return self._step_l1(*_sparsify(state, gradient))
        return _step(*self._halve(state, loss, gradient))

    def finished(self, state: APGDState) -> Bool[Tensor, "n"]:
        """Say which rows have done all steps in the last ball."""
        return (state.ball == LAST) & (state.step > self._lengths(state.threat.norm)[1])

    def result(self, state: APGDState) -> Float[Tensor, "n c h w"]:
        """Give the points of highest loss: of those that reached the goal if there are any, otherwise of all."""
        best = torch.where(_wide(state.ball == LAST), state.x_best, state.x)
        return torch.where(_wide(state.fooled), state.x_fooled, best)

    def _mean(self, values: Float[Tensor, "m ..."]) -> Float[Tensor, "n ..."]:
        """Average what was told of the same point."""
        return values if self.eot == 1 else values.view(self.eot, -1, *values.shape[1:]).mean(dim=0)

    def _several(self, norm: Norm) -> bool:
        return norm == "l1" and self.larger_balls and self.steps >= 5

    def _lengths(self, norm: Norm) -> tuple[int, int]:
        """Give how many steps there are in each larger ball and in the last one, which takes what they leave."""
        larger = ceil(0.3 * self.steps) if self._several(norm) else 0
        return larger, self.steps - 2 * larger

    def _window(self, norm: Norm, ball: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """Give how many steps there are before the first checkpoint (for l1, between any two)."""
        if norm != "l1":
            return torch.full_like(ball, max(int(0.22 * self.steps), 1))
        larger, last = (max(int(0.04 * length), 1) for length in self._lengths(norm))
        return torch.where(ball < LAST, larger, last)

    def _halve(
        self, state: APGDState, loss: Float[Tensor, "n"], gradient: Float[Tensor, "n c h w"]
    ) -> tuple[APGDState, Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
        """Where a checkpoint of linf or l2 finds no progress, halve the step size and go back to the best point.

        Returns:
            The state, where the next step begins, and the gradient there.
        """
        moved = (state.step > 0).long()  # the first point of all is no step
        since, rises = state.since + moved, state.rises + moved * (loss > state.loss_prev)
        check = since == state.window
        stalled = (rises <= self.rho * state.window) | (~state.halved & (state.loss_check >= state.loss_best))
        halve = check & stalled
        faster = (state.window - max(int(0.03 * self.steps), 1)).clamp(min=max(int(0.06 * self.steps), 1))
        state = replace(
            state,
            step_size=torch.where(halve, state.step_size / 2, state.step_size),
            window=torch.where(check, faster, state.window),
            since=torch.where(check, 0, since),
            rises=torch.where(check, 0, rises),
            loss_prev=torch.where(moved > 0, loss, 0.0),
            loss_check=torch.where(check | (moved == 0), state.loss_best, state.loss_check),
            halved=torch.where(check, stalled, state.halved),
        )
        return state, *_go_back(state, gradient, halve)

    def _step_l1(
        self, state: APGDState, begin: Float[Tensor, "n c h w"], rising: Float[Tensor, "n c h w"]
    ) -> APGDState:
        """Step from ``begin``; at the end of a larger ball, carry its best point over to the next."""
        ends = (state.ball < LAST) & (state.step == self._lengths("l1")[0])
        ball = state.ball + ends
        radius = _radius(state.threat, ball)
        moved = begin + _wide(state.step_size) * steepest_step(rising, norm="l1", share=state.share)
        x_adv = project(torch.where(_wide(ends), state.x_best, moved), x=state.x, eps=radius, norm="l1")
        changed = _changed(x_adv, state.x)
        return replace(
            state,
            x_adv=x_adv,
            x_best=torch.where(_wide(ends), x_adv, state.x_best),
            ball=ball,
            step=torch.where(ends, 0, state.step + 1),
            step_size=torch.where(ends, radius, state.step_size),
            window=self._window("l1", ball),
            since=torch.where(ends, 0, state.since),
            share=torch.where(ends, changed / state.x[0].numel() / DIVISOR, state.share),
            support=torch.where(ends, changed, state.support),
        )


def _keep(
    state: APGDState, loss: Float[Tensor, "n"], gradient: Float[Tensor, "n c h w"], fooled: Bool[Tensor, "n"]
) -> APGDState:
    """Keep the current point where its loss is the highest of this ball, and of those that fooled."""
    better = (state.step == 0) | (loss > state.loss_best)
    fooled = fooled & (state.ball == LAST)
    worse = fooled & (loss >= state.loss_fooled)
    return replace(
        state,
        x_best=torch.where(_wide(better), state.x_adv, state.x_best),
        g_best=torch.where(_wide(better), gradient, state.g_best),
        loss_best=torch.where(better, loss, state.loss_best),
        x_fooled=torch.where(_wide(worse), state.x_adv, state.x_fooled),
        loss_fooled=torch.where(worse, loss, state.loss_fooled),
        fooled=state.fooled | fooled,
    )


def _sparsify(
    state: APGDState, gradient: Float[Tensor, "n c h w"]
) -> tuple[APGDState, Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
    """At a checkpoint of l1, let the share of moving values follow the best point; where it got sparser, go back to it.

    Returns:
        The state, where the next step begins, and the gradient there.
    """
    since = state.since + (state.step > 0)
    check = since == state.window
    changed, radius = _changed(state.x_best, state.x), _radius(state.threat, state.ball)
    sparser = changed / state.support < FALL  # 0 / 0 is none
    size = torch.where(sparser, radius, torch.maximum(state.step_size / DIVISOR, SMALLEST * radius))
    state = replace(
        state,
        step_size=torch.where(check, size, state.step_size),
        since=torch.where(check, 0, since),
        share=torch.where(check, changed / state.x[0].numel() / DIVISOR, state.share),
        support=torch.where(check, changed, state.support),
    )
    return state, *_go_back(state, gradient, check & sparser)


def _go_back(
    state: APGDState, gradient: Float[Tensor, "n c h w"], back: Bool[Tensor, "n"]
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
    """Give the point where the next step begins and its gradient: the best one for rows that go back."""
    where = _wide(back)
    return torch.where(where, state.x_best, state.x_adv), torch.where(where, state.g_best, gradient)


def _step(state: APGDState, begin: Float[Tensor, "n c h w"], rising: Float[Tensor, "n c h w"]) -> APGDState:
    """Step from ``begin`` in linf or l2, and add some of the last change (Eq. 1)."""
    ball = state.threat
    z = begin + _wide(state.step_size) * steepest_step(rising, norm=ball.norm)
    z = project(z, x=state.x, eps=ball.eps, norm=ball.norm)
    weight = _wide(torch.where(state.step == 0, 0.0, MOMENTUM))
    z = begin + (1 - weight) * (z - begin) + weight * (begin - state.x_prev)
    x_adv = project(z, x=state.x, eps=ball.eps, norm=ball.norm)
    return replace(state, x_adv=x_adv, x_prev=begin, step=state.step + 1)


def _first_point(
    x: Float[Tensor, "n c h w"], radius: Float[Tensor, "n"], key: Int[Tensor, "n"], *, norm: Norm
) -> Float[Tensor, "n c h w"]:
    shape = x.shape[1:]
    if norm == "linf":
        delta = 2 * seeding.uniform(key, 0, shape) - 1
        delta = delta / _wide(delta.flatten(1).abs().amax(dim=1)) * _wide(radius)
    elif norm == "l2":
        delta = on_sphere(key, 0, shape, eps=radius)
    else:
        delta = seeding.normal(key, 0, shape)
    return project(x + delta, x=x, eps=radius, norm=norm)


def _radius(threat: Ball, ball: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    return threat.eps * (LAST + 1 - ball)


def _changed(x_adv: Float[Tensor, "n c h w"], x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n"]:
    """Count the values that differ."""
    return (x_adv != x).flatten(1).sum(dim=1).to(x.dtype)


def _wide(values: Tensor) -> Tensor:
    """Give one value per row the shape of an image, to be broadcast."""
    return values[:, None, None, None]
