"""The worst case of axis ``weights``: a table, budget of the inputs by radius of the weights.

Its row and its column of zeros are the usual, "singular" robustness (Tsai, Hsu, Yu, Chen, ICASSP 2021). One change of
the weights is shared by all images: it is searched on some of them (:mod:`hardy.evaluation.weight_search`) and judged
on all. With a budget of the inputs both are searched together; then the weights stay, and every image that is still
right is tried with what broke it at smaller radii and attacked anew. Of the changes found at a radius or below, and of
that found for untouched inputs, the one that leaves the fewest images right counts: no row rises, and no column.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hardy import seeding
from hardy.attacks import APGD, PGD
from hardy.attacks.goal import predicted
from hardy.errors import AttachError
from hardy.evaluation.context import Context
from hardy.evaluation.weight_search import WorstWeights, losses, worst_weights
from hardy.perturbed import WeightBall, Weights, perturbable, perturbed_weights
from hardy.threats import Threat

__all__ = ["SEARCH", "WORST", "Answer", "Details", "answers", "cost", "worst_case", "worst_label"]

SEARCH = 100  # images that the worst case is searched on
WORST = "worst case"  # series; that with a budget of the inputs names it too
Details = dict[str, str | int | float | bool | None]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of the images under one change of the weights.

    Attributes:
        label: What was done.
        series: Answers of one curve share it.
        level: Strength of the change.
        right: Which images are still classified right.
        passes: Forward and backward passes, summed over images.
        details: Further facts.
        rise: How much the cross-entropy of each image rose, in nats, if it was measured: of all images, or of those
            that the change was searched on.
    """

    label: str
    series: str
    level: float
    right: Bool[Tensor, "n"]
    passes: dict[str, int]
    details: Details
    rise: Float[Tensor, "m"] | None = None


def answers(context: Context, index: Int[Tensor, "m"]) -> tuple[Bool[Tensor, "m"], Float[Tensor, "m"]]:
    """Say which images the model gets right with the weights that it now has, and with what cross-entropy in nats."""
    x, y = context.x[index], context.y[index]
    logits = context.logits(x)
    guess = predicted(logits) if context.draws == 1 else context.predict(x)
    return guess == y, losses(logits, y)


def cost(context: Context, n: int) -> int:
    """Count the forward passes of :func:`answers` about n images: one for the loss, and the votes of a random net."""
    return n if context.draws == 1 else n * (1 + context.draws)


def worst_label(radius: float, threat: Threat | None) -> str:
    """Name a cell of the table."""
    return f"weights {radius:g}" if threat is None else f"weights {radius:g}, {threat}"


def worst_case(context: Context, weights: Weights) -> Iterator[Answer]:
    """Fill the table, first the row of untouched inputs; ``weights`` are copies of those of the model."""
    twin, alone = _twin(context, weights), dict[float, Tensor]()
    for answer in _row(context, weights, twin, None, alone):
        alone[answer.level] = answer.right
        yield answer
    yield from _row(context, weights, twin, context.threat, alone)


def _row(
    context: Context, weights: Weights, twin: nn.Module | None, threat: Threat | None, alone: dict[float, Tensor]
) -> Iterator[Answer]:
    """Fill one row, radius by radius; every search begins where the one before ended."""
    found, base, x_adv = None, None, context.x.clone()
    fewest, source = torch.ones_like(context.correct), Details()
    for radius in (0.0, *sorted(context.budget.weight_radii)):
        values, passes, details = dict(weights), {"forward": 0, "backward": 0}, _facts(context, radius, threat)
        if radius > 0 or threat is not None:
            found = _search(context, twin, radius, threat, found)
            values = {name: w + delta for (name, w), delta in zip(weights.items(), found.deltas.values(), strict=True)}
            passes, details = dict(found.passes), details | _seen(context, found, twin)
        with _changed(context, twin, values):
            right, loss = _judge(context, twin, threat, x_adv, first=radius == 0, passes=passes)
        if int(right.sum()) <= int(fewest.sum()):
            fewest, source = right, {"found_at": radius}
        if threat is not None and int(alone[radius].sum()) < int(fewest.sum()):
            fewest, source = alone[radius], {"found_at": radius, "inputs": "untouched"}
        loss = loss if threat is None or found is None else found.loss
        base = loss if base is None else base
        yield Answer(
            label=worst_label(radius, threat),
            series=WORST if threat is None else f"{WORST}, {threat}",
            level=radius,
            right=fewest,
            passes=passes,
            details=details | source,
            rise=loss - base if radius > 0 else None,
        )


def _facts(context: Context, radius: float, threat: Threat | None) -> Details:
    """Give the settings that a cell depends on."""
    budget = context.budget
    searched = radius > 0 or threat is not None
    return {
        "radius": radius,
        "eps": 0.0 if threat is None else threat.eps,
        "ball": budget.weight_ball if radius > 0 else None,
        "search_steps": budget.weight_steps if searched else None,
        "search_restarts": budget.weight_restarts if searched else None,
        "input_steps": None if threat is None else budget.weight_input_steps,
    }


def _seen(context: Context, found: WorstWeights, twin: nn.Module | None) -> Details:
    """Describe a search; where no step saw a gradient, it found nothing because it could not look."""
    through = "twin" if twin is not None else "model, as its twin has other weights"
    return {
        "searched_on": len(found.loss),
        "search_loss": float(found.loss.mean()),
        "zero_gradients": found.zero_gradients or None,
        "through": None if context.twin is None else through,
    }


def _search(
    context: Context, twin: nn.Module | None, radius: float, threat: Threat | None, start: WorstWeights | None
) -> WorstWeights:
    """Search on the images with the smallest keys, in their order, whatever the order of the images."""
    net, budget = context.model if twin is None else twin, context.budget
    chosen = context.keys("weights search").argsort()[:SEARCH]
    found = worst_weights(
        net,
        context.x[chosen],
        context.y[chosen],
        ball=WeightBall.around(perturbable(net), radius=radius, norm=budget.weight_ball),
        steps=budget.weight_steps,
        restarts=budget.weight_restarts,
        key=context.keys("weights inputs")[chosen],
        root=seeding.root(context.seed, f"weights {threat}"),
        threat=threat,
        start=start,
        batch_size=context.batch_size,
    )
    return _agreed(context, found)


def _agreed(context: Context, found: WorstWeights) -> WorstWeights:
    """Take what rank 0 found: all search alike, but sums on an accelerator may differ in the last bit."""
    own = {"x": found.x, "loss": found.loss, **{f"delta {name}": delta for name, delta in found.deltas.items()}}
    (told,) = context.ranks.share([own], dict, device=found.x.device, split=False)
    return replace(found, x=told["x"], loss=told["loss"], deltas={name: told[f"delta {name}"] for name in found.deltas})


def _judge(
    context: Context,
    twin: nn.Module | None,
    threat: Threat | None,
    x_adv: Float[Tensor, "n c h w"],
    *,
    first: bool,
    passes: dict[str, int],
) -> tuple[Bool[Tensor, "n"], Float[Tensor, "n"]]:
    """Ask the model as it now is about all images, attacked if there is a threat; keeps count and ``x_adv``."""
    right, loss = answers(context, torch.arange(len(context.x), device=context.x.device))
    passes["forward"] += cost(context, len(right))
    if threat is None:
        return right, loss
    if not first:
        left = right.nonzero()[:, 0]
        if len(left):
            right[left] = context.predict(x_adv[left]) == context.y[left]
            passes["forward"] += len(left) * context.draws
    for source in (None,) if twin is None else (None, twin):
        left = right.nonzero()[:, 0]
        if len(left):
            broken, x_adv[left] = _attack(context, left, threat, source, passes)
            right[left[broken]] = False
    return right, loss


def _attack(
    context: Context, index: Int[Tensor, "m"], threat: Threat, source: nn.Module | None, passes: dict[str, int]
) -> tuple[Bool[Tensor, "m"], Float[Tensor, "m c h w"]]:
    """Attack some images of the model as it now is, past the journal, which knows it with other weights.

    Of a random net the gradients are averaged over its draws.
    """
    sure, y, steps = context.draws == 1, context.y[index], context.budget.weight_input_steps
    asking = replace(context, threat=threat, journal=None, on_attack=None)
    spec = PGD(steps=steps) if sure else APGD(steps=steps, eot=context.draws)
    found = asking.attack(spec, index=index, source=source, stop="first_success")
    for kind, count in found.passes.items():
        passes[kind] += count
    if sure:
        return found.success, found.x_adv
    passes["forward"] += len(index) * context.draws
    return context.predict(found.x_adv) != y, found.x_adv


@contextmanager
def _changed(context: Context, twin: nn.Module | None, weights: Weights) -> Iterator[None]:
    """Give the model, and the twin, these weights for the block."""
    with ExitStack() as stack:
        stack.enter_context(perturbed_weights(context.model, weights))
        if twin is not None:
            stack.enter_context(perturbed_weights(twin, dict(zip(perturbable(twin), weights.values(), strict=True))))
        yield


def _twin(context: Context, weights: Mapping[str, Tensor]) -> nn.Module | None:
    """Give the differentiable stand-in of the model, if there is one and it has the same weights in the same order."""
    try:
        others = [] if context.twin is None else list(perturbable(context.twin).values())
    except AttachError:
        return None
    same = [torch.equal(a, b) for a, b in zip(others, weights.values(), strict=False) if a.dtype == b.dtype]
    return context.twin if len(others) == len(weights) == sum(same) else None
