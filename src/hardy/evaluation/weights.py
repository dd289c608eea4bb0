"""Axis ``weights``: is the model still right when its weights are not quite what they were?

The worst case is a table over the budget of the inputs and the radius of the weights
(:mod:`hardy.evaluation.weight_table`); every number in it is an upper bound, as a better search may find worse. Beside
it stands what happens without an adversary: random changes of the same size, and what hardware does
(:mod:`hardy.evaluation.weight_noise`). Of every random change there are :data:`PATTERNS` patterns, the same at every
strength, and each image meets the one that its key chooses: a mean over images and patterns at one pass per image. Its
interval is that of the images; it does not know of the patterns.

Flatness is the rise of the mean cross-entropy (Stutz, Hein, Schiele, "Relating adversarially robust generalization to
flat minima", ICCV 2021, https://arxiv.org/abs/2104.04448): of all images, or with a budget of the inputs of those that
the change was searched on, above the cross-entropy of the inputs attacked alone by the same search. It describes the
model and depends on the scale of its logits: a constant net has a rise of 0.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hardy import seeding
from hardy.attacks import Progress
from hardy.errors import AttachError
from hardy.evaluation.context import Context, Measured, NotMeasured, record
from hardy.evaluation.weight_noise import analogue_noise, flip_bits, prune_random, prune_smallest, quantise
from hardy.evaluation.weight_table import WORST, Answer, answers, cost, worst_case, worst_label
from hardy.perturbed import WeightBall, Weights, added, perturbable, perturbed_weights
from hardy.ranks import Rows
from hardy.results import Axis, mean_score

__all__ = ["PATTERNS", "RANDOM", "WORST", "measure"]

PATTERNS = 10  # of every random change
TYPICAL = 0.003  # the headline is the radius closest to it: that of the paper on flatness
RANDOM = "random direction"  # series
OF_RISE = ("eps", "radius", "ball", "search_steps", "search_restarts", "patterns")  # details of its point that it needs
STRENGTH = "strength (radius, bits per weight, share of bits or weights, or sigma, as the series says)"

Noise = Callable[[Tensor, float, int, str], Tensor]  # (weight, strength, root, name) -> weight


def measure(context: Context) -> Measured | NotMeasured:
    """Change the weights in every way, and put them back to the same bits."""
    try:
        weights = {name: weight.detach().clone() for name, weight in perturbable(context.model).items()}
    except AttachError as error:
        return NotMeasured("weights", str(error), "Evaluate a copy whose weights are plain parameters.")
    if not weights:
        return NotMeasured("weights", "there is no convolution or linear layer", "Build the net of torch.nn layers.")
    found: list[Answer] = []
    for answer in chain(worst_case(context, weights), _random(context, weights), _hardware(context, weights)):
        found.append(answer)
        if context.on_attack is not None:
            broken = int((~answer.right).sum())
            context.on_attack(Progress(answer.series, len(found), _number(context), broken), None)
    return _measured(context, found)


def _measured(context: Context, found: list[Answer]) -> Measured:
    """Turn answers into points, and those with losses into scores too."""
    points = [
        record(a.label, a.right, level=a.level, series=a.series, passes=a.passes, details=a.details) for a in found
    ]
    rises = {f"flatness, {a.label}": (a, a.rise.float()) for a in found if a.rise is not None}
    scores = []
    for label, (answer, rise) in rises.items():
        facts: dict[str, Any] = {"level": answer.level, "series": f"flatness, {answer.series}", "unit": "nats"}
        details = {key: answer.details[key] for key in OF_RISE if answer.details.get(key) is not None}
        scores.append(mean_score(label, rise.cpu().numpy(), kind="description", details=details, **facts))
    axis = Axis(
        name="weights",
        question="How often is it still right when its weights change a little?",
        headline=worst_label(min(context.budget.weight_radii, key=lambda radius: abs(radius - TYPICAL)), None),
        points=tuple(points),
        level_name=STRENGTH,
        scores=tuple(scores),
    )
    outcomes, arrays = {a.label: a.right for a in found}, {label: rise for label, (_, rise) in rises.items()}
    return Measured(axis=axis, outcomes=outcomes, arrays=arrays)


def _number(context: Context) -> int:
    """Count the answers that there will be."""
    budget = context.budget
    hardware = (budget.bits, budget.bit_flip_rates, budget.lost_shares, budget.prune_shares, budget.analogue_sigmas)
    return 2 + 3 * len(budget.weight_radii) + sum(map(len, hardware))


def _random(context: Context, weights: Weights) -> Iterator[Answer]:
    """Go as far as the worst case may in random directions, the same at every radius."""
    _, before = answers(context, torch.arange(len(context.x), device=context.x.device))
    for radius in sorted(context.budget.weight_radii):
        ball = WeightBall.around(weights, radius=radius, norm=context.budget.weight_ball)
        right, loss = _spread(context, PATTERNS, partial(_turned, weights, ball))
        yield Answer(
            label=f"random {radius:g}",
            series=RANDOM,
            level=radius,
            right=right,
            passes={"forward": cost(context, len(right))},
            details={"radius": radius, "eps": 0.0, "ball": ball.norm, "patterns": PATTERNS},
            rise=loss - before,
        )


def _hardware(context: Context, weights: Weights) -> Iterator[Answer]:
    """Round, flip, drop and blur the weights of every layer alike."""
    budget = context.budget
    kinds: tuple[tuple[str, tuple[float, ...], int, Noise], ...] = (
        ("bits", tuple(map(float, budget.bits)), 1, lambda weight, bits, *_: quantise(weight, bits=int(bits))),
        ("bit flips", budget.bit_flip_rates, PATTERNS, flip_bits),
        ("random zeros", budget.lost_shares, PATTERNS, prune_random),
        ("smallest zeros", budget.prune_shares, 1, lambda weight, share, *_: prune_smallest(weight, share)),
        ("analogue noise", budget.analogue_sigmas, PATTERNS, analogue_noise),
    )
    for series, levels, patterns, change in kinds:
        for level in levels:
            right, _ = _spread(context, patterns, partial(_worn, weights, change, level))
            yield Answer(
                label=f"{series} {level:g}",
                series=series,
                level=level,
                right=right,
                passes={"forward": cost(context, len(right))},
                details={"patterns": patterns},
            )


def _turned(weights: Weights, ball: WeightBall, root: int) -> Weights:
    return added(weights, ball.draw(weights, root))


def _worn(weights: Weights, change: Noise, strength: float, root: int) -> Weights:
    return {name: change(weight, strength, root, name) for name, weight in weights.items()}


def _spread(
    context: Context, patterns: int, change: Callable[[int], Weights]
) -> tuple[Bool[Tensor, "n"], Float[Tensor, "n"]]:
    """Ask about every image under one of several patterns; ``change`` makes the weights of one from its root."""
    met = context.keys("weights patterns") % patterns
    asking = context if patterns == 1 else context.alone()

    def work(pattern: int) -> Rows:
        index = (met == pattern).nonzero()[:, 0]
        if len(index) == 0:
            return {"index": index, "right": index.bool(), "loss": index.float()}
        with perturbed_weights(context.model, change(seeding.root(context.seed, f"weights pattern {pattern}"))):
            right, loss = answers(asking, index)
        return {"index": index, "right": right, "loss": loss}

    found = [work(0)] if patterns == 1 else context.share(range(patterns), work)
    order = torch.cat([part["index"] for part in found]).argsort()
    right, loss = (torch.cat([part[name] for part in found])[order] for name in ("right", "loss"))
    return right, loss
