r"""Carlini and Wagner's l2 attack: Adam on distance plus c times margin, in tanh space, with a search over c.

Carlini, Wagner. "Towards evaluating the robustness of neural networks".
IEEE Symposium on Security and Privacy 2017, https://arxiv.org/abs/1608.04644 (Sec. V-D, VI-A).

With :math:`x' = (\tanh w + 1) / 2`, which is in the box for every w, each search lets Adam minimise
:math:`\|x' - x\|_2^2 + c \max(m(x') + \kappa, 0)`, where m is the margin: correct logit minus best other. A c that
found an adversarial image becomes the upper end of an interval, one that did not the lower end; the next c is the
middle, or ten times as much while there is no upper end.

Deviations: 1,000 steps per search instead of the 10,000 of the authors' code (both abort early). Whether progress has
stalled is asked of each image, not of the sum over a batch, as the authors' code does for a batch of one. c stays below
1e10. A point counts with a margin of 1e-5 of the largest logit, so that it is still adversarial when predicted in
another batch. An image for which nothing was found inside the ball comes back pulled to the ball's border.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy.attacks._card import Card
from hardy.attacks._min_norm import pull_inside, surely_reached
from hardy.attacks.goal import Goal
from hardy.attacks.losses import Loss, logit_margin
from hardy.attacks.norms import norm_of
from hardy.attacks.state import Ball, Query, Stop
from hardy.errors import ParameterError
from hardy.threats import Norm

__all__ = ["CARD", "CW", "CWState"]

CARD = Card(
    name="cw",
    summary="Minimises the l2 distance plus c times the margin with Adam, in tanh space; searches for c.",
    paper="Carlini and Wagner, IEEE S&P 2017",
    url="https://arxiv.org/abs/1608.04644",
    deviations=(
        "1,000 steps per search instead of 10,000",
        "every image aborts a stalled search by itself, not with its batch",
        "c stays below 1e10",
    ),
)

INSIDE = 0.999999  # pixels move this far towards gray, so that 0 and 1 have a finite w (authors' code)
CHECKS, PROGRESS = 10, 0.9999  # a search ends where a tenth of its steps lowered the loss by less than 0.01 %
GROWTH, LARGEST_C, LAST_AT_TOP = 10.0, 1e10, 10  # from 10 searches on, the last one repeats the smallest c that worked
BETA1, BETA2, TINY = 0.9, 0.999, 1e-8  # Adam


@dataclass(frozen=True)
class CWState:
    """Rows of the attack.

    Attributes:
        x: Images.
        w: Current points in tanh space.
        mean: Adam's running mean of gradients.
        square: Adam's running mean of squared gradients.
        goal: What each row wants.
        threat: Budgets.
        c: Weight of the margin in the current search.
        low: Largest c that failed.
        high: Smallest c that worked; inf for none.
        step: Steps done in this search.
        search: Searches done.
        fooled: Whether this search found an adversarial point.
        checked: Loss at the last check of progress.
        best: Nearest adversarial point so far.
        nearest: Its distance; inf for none.
    """

    x: Float[Tensor, "n c h w"]
    w: Float[Tensor, "n c h w"]
    mean: Float[Tensor, "n c h w"]
    square: Float[Tensor, "n c h w"]
    goal: Goal
    threat: Ball
    c: Float[Tensor, "n"]
    low: Float[Tensor, "n"]
    high: Float[Tensor, "n"]
    step: Int[Tensor, "n"]
    search: Int[Tensor, "n"]
    fooled: Bool[Tensor, "n"]
    checked: Float[Tensor, "n"]
    best: Float[Tensor, "n c h w"]
    nearest: Float[Tensor, "n"]


@dataclass(frozen=True, kw_only=True)
class CW:
    """CW and its defaults: those of the authors' code, but 1,000 steps.

    The random-mask defence (ICML 2020) was evaluated with ``steps=1000, searches=30, step_size=5e-4`` and
    ``confidence=40`` (20 where the source is a ResNet-18).

    Attributes:
        steps: Adam steps per search, at least 1.
        searches: Values of c tried one after the other, at least 1.
        step_size: Adam's learning rate in tanh space, above 0.
        confidence: kappa, in logits, at least 0: only points whose margin is at most minus this count for the search;
            large values transfer better and are farther away.
        first_c: The first weight of the margin, above 0.
        abort_early: End a search whose loss has stalled for a tenth of its steps.
        stop: When an image leaves; see :class:`hardy.attacks.state.Attack`.
    """

    steps: int = 1000
    searches: int = 9
    step_size: float = 0.01
    confidence: float = 0.0
    first_c: float = 1e-3
    abort_early: bool = True
    stop: Stop = "min_norm"

    name: ClassVar[str] = CARD.name
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    targeted: ClassVar[bool] = False
    hard_label: ClassVar[bool] = False
    restarts: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.searches < 1:
            raise ParameterError(f"CW: steps and searches must be at least 1; got {self.steps} and {self.searches}.")
        if not (self.step_size > 0 and self.first_c > 0):
            raise ParameterError(f"CW: step_size and first_c must be above 0; got {self.step_size} and {self.first_c}.")
        if not self.confidence >= 0:
            raise ParameterError(f"CW: confidence must be at least 0 logits; got {self.confidence}.")

    @property
    def loss(self) -> Loss:
        """Minus the margin; weight, hinge, distance and tanh are added in :meth:`tell`."""
        return logit_margin

    def start(
        self,
        x: Float[Tensor, "n c h w"],
        y: Goal,
        threat: Ball,
        key: Int[Tensor, "n"],
    ) -> CWState:
        """Begin at the image, in tanh space, with the first c."""
        flat, zero, never = torch.zeros_like(threat.eps), torch.zeros_like(key), torch.full_like(threat.eps, torch.inf)
        return CWState(
            x=x,
            w=_origin(x),
            mean=torch.zeros_like(x),
            square=torch.zeros_like(x),
            goal=y,
            threat=threat,
            c=torch.full_like(flat, self.first_c),
            low=flat,
            high=never,
            step=zero,
            search=zero,
            fooled=torch.zeros_like(key, dtype=torch.bool),
            checked=never,
            best=x,
            nearest=never,
        )

    def ask(self, state: CWState) -> Query:
        """Ask for the gradient of the margin at each current point."""
        return Query(_image(state.w), torch.arange(len(state.x), device=state.x.device), gradient=True)

    def tell(self, state: CWState, logits: Float[Tensor, "n k"], gradient: Float[Tensor, "n c h w"] | None) -> CWState:
        """Keep the point if it is the nearest adversarial one, take an Adam step, and end searches that are over."""
        assert gradient is not None  # noqa: S101  (asked for)
        point, margin = _image(state.w), state.goal.margin(logits)
        delta = point - (0.5 + INSIDE * (state.x - 0.5))
        fooled = surely_reached(state.goal, logits) & (margin <= -self.confidence)
        length = norm_of(point - state.x, norm="l2")
        nearer = fooled & (length < state.nearest)
        hinge = (margin + self.confidence).clamp(min=0)
        weight = torch.where(hinge > 0, state.c, 0)[:, None, None, None]
        slope = (2 * delta - weight * gradient) * (1 - state.w.tanh() ** 2) / 2  # dx'/dw
        loss = delta.flatten(1).square().sum(dim=1) + state.c * hinge
        check = (state.step % max(1, self.steps // CHECKS) == 0) & self.abort_early
        stalled = check & (loss > PROGRESS * state.checked)
        state = replace(
            _adam(state, slope, self.step_size),
            fooled=state.fooled | fooled,
            best=torch.where(nearer[:, None, None, None], point, state.best),
            nearest=torch.where(nearer, length, state.nearest),
            checked=torch.where(check, loss, state.checked),
        )
        return self._next(state, over=stalled | (state.step >= self.steps))

    def finished(self, state: CWState) -> Bool[Tensor, "n"]:
        """Say which rows have done all searches."""
        return state.search >= self.searches

    def result(self, state: CWState) -> Float[Tensor, "n c h w"]:
        """Give the nearest adversarial points, else the current ones; pulled into the ball where they are outside."""
        found = (state.nearest < torch.inf)[:, None, None, None]
        return pull_inside(torch.where(found, state.best, _image(state.w)), state.x, state.threat)

    def _next(self, state: CWState, over: Bool[Tensor, "n"]) -> CWState:
        """Begin the next search, with the next c, where one is over."""
        low = torch.where(over & ~state.fooled, torch.maximum(state.low, state.c), state.low)
        high = torch.where(over & state.fooled, torch.minimum(state.high, state.c), state.high)
        c = torch.where(high < torch.inf, (low + high) / 2, GROWTH * state.c)
        search = state.search + over
        if self.searches >= LAST_AT_TOP:
            c = torch.where(search == self.searches - 1, high, c)
        image = over[:, None, None, None]
        return replace(
            state,
            w=torch.where(image, _origin(state.x), state.w),
            mean=torch.where(image, 0, state.mean),
            square=torch.where(image, 0, state.square),
            c=torch.where(over, c.clamp(max=LARGEST_C), state.c),
            low=low,
            high=high,
            step=torch.where(over, 0, state.step),
            search=search,
            fooled=state.fooled & ~over,
            checked=torch.where(over, torch.inf, state.checked),
        )


def _origin(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    return ((2 * x - 1) * INSIDE).atanh()


def _image(w: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    return (w.tanh() + 1) / 2


def _adam(state: CWState, slope: Float[Tensor, "n c h w"], step_size: float) -> CWState:
    """Take one step of Adam down the slope; every row has its own count of steps."""
    step = state.step + 1
    mean = BETA1 * state.mean + (1 - BETA1) * slope
    square = BETA2 * state.square + (1 - BETA2) * slope**2
    bias1, bias2 = (1 - b ** step.to(slope.dtype)[:, None, None, None] for b in (BETA1, BETA2))
    w = state.w - step_size * (mean / bias1) / ((square / bias2).sqrt() + TINY)
    return replace(state, w=w, mean=mean, square=square, step=step)
