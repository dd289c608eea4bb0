"""FAB: walk to the decision boundary with the smallest perturbation, one targeted run per likely wrong class.

Croce, Hein. "Minimally distorted adversarial examples with a fast adaptive boundary attack". ICML 2020,
https://arxiv.org/abs/1907.02044 (Alg. 1), in the targeted form of AutoAttack-standard (arXiv 2003.01690).

Every step puts a hyperplane where target and label would tie if the net were linear, and goes a little beyond it: from
the current point, with some pull towards the nearest point as seen from the image. A point that fools the net is
kept if it is the nearest so far; the walk goes back a part of the way to the image and continues.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy import seeding
from hardy.attacks._card import Card
from hardy.attacks._hyperplane import to_hyperplane
from hardy.attacks.goal import Goal
from hardy.attacks.losses import Loss
from hardy.attacks.norms import norm_of, project
from hardy.attacks.state import Ball, Query, Stop, select
from hardy.errors import ParameterError
from hardy.threats import Norm

__all__ = ["CARD", "FAB", "FABState", "target_lead"]

CARD = Card(
    name="fab",
    summary="Targeted walks along the decision boundary to the smallest perturbation.",
    paper="Croce & Hein, ICML 2020",
    url="https://arxiv.org/abs/1907.02044",
    deviations=(
        "AutoAttack's targeted form: one run per likely wrong class, from the image, without the paper's final search",
        "an image leaves at the first adversarial point inside the threat; for the nearest one use stop='min_norm'",
        "the point that a walk goes back to is kept too if it still fools the net (AutoAttack's does not look)",
        "if the caller names the target, runs start at random points (equal otherwise) and aim at the border of that "
        "class, not at where it ties with the label",
    ),
)
TINY = 1e-8  # smallest length of a step, so that two zero steps have a ratio


def target_lead(logits: Float[Tensor, "m k"], goal: Goal) -> Float[Tensor, "m"]:
    """Measure the logit aimed at minus that of the label (minus the best other where the target must be hit).

    Where the row aims at no class, the best other than the label is aimed at.
    """
    rival = torch.where(goal.must_hit, goal.target, goal.label)[:, None]
    best_other = logits.scatter(1, rival, -torch.inf).amax(dim=1)
    label, target = (logits.gather(1, index[:, None])[:, 0] for index in (goal.label, goal.target))
    aimed = torch.where(goal.target != goal.label, target, best_other)
    return aimed - torch.where(goal.must_hit, best_other, label)


@dataclass(frozen=True)
class FABState:
    """Rows of FAB.

    Attributes:
        x: The images.
        x_adv: Where the walks are.
        best: The nearest points that fooled the net, so far; ``x`` where there is none.
        distance: How far these are; inf where there is none.
        goal: What fooling is.
        threat: Norm and budgets.
        step: Steps done.
        tested: Whether the net has been asked for its prediction at ``x_adv``, or need not be.
    """

    x: Float[Tensor, "n c h w"]
    x_adv: Float[Tensor, "n c h w"]
    best: Float[Tensor, "n c h w"]
    distance: Float[Tensor, "n"]
    goal: Goal
    threat: Ball
    step: Int[Tensor, "n"]
    tested: Bool[Tensor, "n"]


@dataclass(frozen=True, kw_only=True)
class FAB:
    """Targeted FAB and its defaults, those of AutoAttack-standard.

    Attributes:
        steps: Steps per target, at least 1; each takes a gradient and a forward pass.
        restarts: Targets per image, the most likely wrong classes first; at least 1.
        alpha_max: Largest pull towards the image, [0, 1]; the paper's alpha_max.
        eta: How far to go beyond the hyperplane, as a multiple of the way to it, at least 1.
        beta: What remains of the perturbation when the walk goes back after fooling the net, (0, 1).
        stop: When an image leaves; see :class:`hardy.attacks.state.Attack`. "min_norm" looks for the smallest
            perturbation; no budget limits the walk, so choose one that does not matter, such as linf 1.
    """

    steps: int = 100
    restarts: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    stop: Stop = "first_success"

    name: ClassVar[str] = CARD.name
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    targeted: ClassVar[bool] = True
    hard_label: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ParameterError(f"FAB: steps and restarts must be at least 1; got {self.steps} and {self.restarts}.")
        if not (0 <= self.alpha_max <= 1 and self.eta >= 1 and 0 < self.beta < 1):
            raise ParameterError(
                "FAB: alpha_max must be in [0, 1], eta at least 1 and beta in (0, 1); "
                f"got {self.alpha_max}, {self.eta} and {self.beta}."
            )

    @property
    def loss(self) -> Loss:
        """How far the target leads the label."""
        return target_lead

    def start(self, x: Float[Tensor, "n c h w"], y: Goal, threat: Ball, key: Int[Tensor, "n"]) -> FABState:
        """Begin at the image; where the target is the caller's, at half the budget from it in a random direction."""
        away = torch.where(y.must_hit[:, None, None, None], (x + _half_way(x, threat, key)).clamp(0, 1), x)
        distance = torch.full_like(threat.eps, torch.inf)
        return FABState(x, away, x, distance, y, threat, torch.zeros_like(key), torch.ones_like(y.must_hit))

    def ask(self, state: FABState) -> Query:
        """Ask for predictions as long as a walk has made a step untested, else for gradients.

        So all walks in a batch take their steps together; a job that joins may wait for one round.
        """
        gradient = bool(state.tested.all())
        return Query(state.x_adv, torch.arange(len(state.x), device=state.x.device), gradient=gradient)

    def tell(
        self, state: FABState, logits: Float[Tensor, "n k"], gradient: Float[Tensor, "n c h w"] | None
    ) -> FABState:
        """Keep what fools the net and is nearest; go back from it, or take a step."""
        fooled = state.goal.reached(logits)
        state = _keep_nearest(state, fooled)
        if gradient is None:
            back = state.x + self.beta * (state.x_adv - state.x)
            returns = (fooled & ~state.tested)[:, None, None, None]
            return replace(state, x_adv=torch.where(returns, back, state.x_adv), tested=torch.ones_like(state.tested))
        going = state.step < self.steps
        moved = self._step(state, target_lead(logits, state.goal), gradient)
        x_adv = torch.where(going[:, None, None, None], moved, state.x_adv)
        return replace(state, x_adv=x_adv, step=state.step + going, tested=~going)

    def finished(self, state: FABState) -> Bool[Tensor, "n"]:
        """Say which rows have done all steps and tested the last."""
        return (state.step >= self.steps) & state.tested

    def result(self, state: FABState) -> Float[Tensor, "n c h w"]:
        """Give the nearest point that fooled the net, if it is inside the ball; else what the ball has of a walk."""
        found = state.distance <= state.threat.eps
        out = torch.where(found[:, None, None, None], state.best, state.x)
        lost = (self.finished(state) & ~found).nonzero()[:, 0]
        if len(lost):  # not before: a projection at every step would cost more than the step
            rows = select(state, lost)
            end = torch.where(rows.distance.isinf()[:, None, None, None], rows.x_adv, rows.best)
            out[lost] = project(end, x=rows.x, eps=rows.threat.eps, norm=rows.threat.norm)
        return out

    def _step(self, state: FABState, lead: Tensor, gradient: Tensor) -> Tensor:
        """Go beyond the hyperplane, from the current point and from the image, and mix the two (Alg. 1, line 9)."""
        x, x_adv, norm = state.x, state.x_adv, state.threat.norm
        lead = torch.nan_to_num(lead, nan=0.0, posinf=0.0, neginf=0.0)
        at_image = lead + (gradient * (x - x_adv)).flatten(1).sum(dim=1)
        here, there = to_hyperplane(
            torch.cat([x_adv, x]), normal=torch.cat([gradient] * 2), value=torch.cat([lead, at_image]), norm=norm
        ).chunk(2)
        near, far = (norm_of(way, norm=norm).clamp(min=TINY) for way in (here, there))
        alpha = (near / (near + far)).clamp(max=self.alpha_max)[:, None, None, None]
        return ((x_adv + self.eta * here) * (1 - alpha) + (x + self.eta * there) * alpha).clamp(0, 1)


def _keep_nearest(state: FABState, fooled: Tensor) -> FABState:
    length = norm_of(state.x_adv - state.x, norm=state.threat.norm)
    nearer = fooled & (length < state.distance)
    best = torch.where(nearer[:, None, None, None], state.x_adv, state.best)
    return replace(state, best=best, distance=torch.where(nearer, length, state.distance))


def _half_way(x: Tensor, threat: Ball, key: Tensor) -> Tensor:
    """Draw a random direction (linf: uniform values, else normal) and give it half the budget as its length."""
    shape = x.shape[1:]
    way = 2 * seeding.uniform(key, 0, shape) - 1 if threat.norm == "linf" else seeding.normal(key, 0, shape)
    length = norm_of(way, norm=threat.norm).clamp(min=TINY)
    return way * (threat.eps / 2 / length)[:, None, None, None]
