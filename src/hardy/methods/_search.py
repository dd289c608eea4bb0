"""The search for adversarial images inside a training step, which adversarial training methods share.

It takes the steps of the attack :class:`hardy.attacks.PGD` and differentiates by the pixels only. The net is searched
as it is at test time, with its live methods and without the others, and is afterwards as it was to the last bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.attacks import PGD, Goal
from hardy.attacks.state import Ball
from hardy.errors import AttachError, ParameterError
from hardy.methods._checks import in_range, one_of
from hardy.sites import BOX
from hardy.taps import KeyedLayer

__all__ = [
    "NEAR",
    "SearchInsert",
    "adversarial",
    "as_at_test_time",
    "check_budget",
    "check_search_alone",
    "cross_entropy",
    "kl_divergence",
    "searched_once",
    "wide",
]

SearchNorm = Literal["linf", "l2"]
NEAR = 0.001  # standard deviation of the start of TRADES and MART, in pixels in [0, 1]
FORWARD_STATE = ("count", "running", "mode", "passes", "again", "pending", "key", "call")  # of taps and their layers
FREE, AWP = "free_at", "awp"  # both decide when the weights move; free_at searches by its replays


def wide(x: Tensor) -> Tensor:
    """Give half precision as float32; wider numbers as they are."""
    return x if x.dtype in {torch.float32, torch.float64} else x.float()


def cross_entropy(logits: Float[Tensor, "n k"], y: Int[Tensor, "n"] | Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
    """Compute the cross-entropy of each row in nats, for labels or label probabilities; float32 or wider."""
    z = wide(logits)
    return F.cross_entropy(z, y.to(z.dtype) if y.is_floating_point() else y, reduction="none")


def kl_divergence(p: Float[Tensor, "n k"], q: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
    """Compute KL(softmax(p) || softmax(q)) of each row in nats, from logits; float32 or wider, with gradients."""
    log_p, log_q = wide(p).log_softmax(1), wide(q).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


@contextmanager
def as_at_test_time(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Run the block in evaluation mode without gradients and leave no trace of it.

    Given back: the mode of every module, the global random state, and what the random layers know of the last and the
    next training pass: their keys, and their counts of calls and draws.
    """
    parts = list(getattr(model, BOX, nn.Module()).modules())
    before = [(vars(part), {name: vars(part)[name] for name in FORWARD_STATE if name in vars(part)}) for part in parts]
    draws = [(part.step, part.step.clone()) for part in parts if isinstance(part, KeyedLayer)]
    try:
        with surgery.without_trace(model, x):
            yield
    finally:
        for held, values in before:
            held.update(values)
        for count, value in draws:
            count.copy_(value)


# The gradient by the pixels cannot be part of a graph of the compiler.
@torch.compiler.disable  # type: ignore[untyped-decorator]  # untyped in torch
def adversarial(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    loss: Callable[[Tensor], Tensor],
    *,
    attack: PGD,
    norm: SearchNorm,
    eps: float,
    key: Int[Tensor, "n"],
    near: float | None = None,
) -> Float[Tensor, "n c h w"]:
    """Search images around ``x`` that make a loss large, by exactly ``attack.steps`` forward and backward passes.

    Args:
        model: The plain model; it is searched as at test time, under the autocast of the caller.
        x: Images in [0, 1].
        loss: Gives one number per row from logits (n, k), to be increased; no row may depend on another.
        attack: Whose steps to take.
        norm: Of the ball.
        eps: Its radius, in pixels in [0, 1].
        key: Source of the random start, one per row.
        near: Begin at x plus normal noise of this standard deviation, not where the attack begins.

    Returns:
        Images inside the ball and [0, 1], in the dtype and memory format of ``x``, without gradients. Values of a
        gradient that are not finite count as 0.
    """
    centre = wide(x.detach())
    label = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    goal = Goal(label, label, torch.zeros_like(label, dtype=torch.bool))  # PGD takes none from it: the loss is ours
    state = attack.start(centre, goal, Ball(norm, centre.new_full((len(x),), eps)), key)
    if near is not None:
        state = replace(state, x_adv=centre + near * seeding.normal(key, 0, x.shape[1:]))
    with as_at_test_time(model, x), torch.enable_grad():
        for _ in range(attack.steps):
            leaf = torch.empty_like(x).copy_(attack.ask(state).x).requires_grad_()
            logits = model(leaf)
            (gradient,) = torch.autograd.grad(loss(logits).sum(), leaf)
            gradient = gradient.to(centre.dtype).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            state = attack.tell(state, logits.detach(), gradient)
    return torch.empty_like(x).copy_(attack.result(state))


class SearchInsert(surgery.Insert):
    """A method that searches images. It looks at its model, which a copy of the model copies along."""

    def __init__(self, spec: Any, *, seed: int, model: nn.Module) -> None:
        super().__init__(spec, seed=seed)
        self.held = (model,)  # in a tuple, as a module that is its own descendant cannot be walked through
        self.once = False
        self.found: Tensor | None = None

    def search(self, x: Tensor, key: Tensor, loss: Callable[[Tensor], Tensor], **how: Any) -> Tensor:
        """Search by the fields of the spec, or give what this step has found already (:func:`searched_once`)."""
        if self.found is not None:
            return self.found
        s = self.spec
        attack = PGD(steps=s.steps, step_size=s.step_size, random_start=how.pop("random_start", False), stop="never")
        x_adv: Tensor = adversarial(self.held[0], x, loss, attack=attack, norm=s.norm, eps=s.eps, key=key, **how)
        if self.once:
            self.found = x_adv
        return x_adv

    @property
    def passes(self) -> surgery.Passes:
        return surgery.Passes(search_forward=self.spec.steps, search_backward=self.spec.steps)


@contextmanager
def searched_once(model: nn.Module) -> Iterator[None]:
    """Let every method search once in the block and use what it found in all further rounds over the same batch."""
    searching = [held for held in getattr(model, BOX).values() if isinstance(held, SearchInsert) and not held.once]
    for held in searching:
        held.once = True
    try:
        yield
    finally:
        for held in searching:
            held.once, held.found = False, None


def check_budget(method: str, *, norm: str, eps: float, steps: int, step_size: float) -> None:
    """Raise ParameterError unless a search can be done with these."""
    one_of(method, "norm", norm, ("linf", "l2"))
    in_range(method, "eps", eps, 0, 1 if norm == "linf" else 1000)
    if eps == 0 or steps < 1 or not step_size > 0:
        raise ParameterError(
            f"{method}: eps and step_size must be above 0 and steps at least 1; got {eps}, {step_size} and {steps}."
        )


def check_search_alone(model: nn.Module, name: str) -> None:
    """Refuse a second method that makes adversarial images, which would leave the ball, and free_at beside awp.

    Raises:
        AttachError: such a method is attached.
    """
    for other in surgery.attachments(model):
        kind = other.name.partition("-")[0]
        if {kind, name} == {FREE, AWP}:
            raise AttachError(
                f"{name}: cannot be combined with {kind}: one steps the weights between its replays, the other moves "
                "them around a step. Use pgd_at, trades or mart with awp."
            )
        if name != AWP and (isinstance(other.insert, SearchInsert) or kind == FREE):
            raise AttachError(
                f"{name}: only one method can make adversarial images; {kind} is attached. Use one of the two."
            )
