"""The verdict against the base: does this defence beat the net that it was made from, under the same protocol?

Published defences have ended below their own base once the attack knew of them. So the base is attacked with the same
suite, the same budget and the same random numbers, each net's worst case counts, each is shown the images made on the
other, and the difference is paired over images.
"""

import dataclasses
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from hardy.attacks import PGD, SUITES
from hardy.evaluation.adaptive import twin_of
from hardy.evaluation.context import DRAWS, Context, Source
from hardy.evaluation.suite import confirmed, controls, resolve, suite_run
from hardy.results import Versus
from hardy.stats import paired_bootstrap, sign_test

__all__ = ["versus"]

LEVEL = 0.05  # of the sign test


def versus(context: Context, base: Source) -> tuple[tuple[Versus, ...], dict[str, Bool[Tensor, "n"]]]:
    """Attack the base as the model was attacked and compare: plain accuracy, the suite, and the worst case.

    The worst case of either net is what its suite, its controls and PGD images made on the other net left standing: the
    same for both, so it may be above that of the axis ``worst_case``, which holds all axes.

    Args:
        context: The question, with ``white_box`` measured.
        base: The un-hardened net.

    Returns:
        The comparisons, and the base's outcomes per image by axis.
    """
    other = _asked_of(context, base.model)
    ours, theirs = suite_run(context), suite_run(other)
    outcomes = {
        "clean": (context.correct, other.correct),
        "white_box": (ours.standing, theirs.standing),
        "worst_case": (
            _weakest(context) & _transfer(context, other),
            _weakest(other) & _transfer(other, context),
        ),
    }
    made = tuple(_compare(axis, base.name, *pair) for axis, pair in outcomes.items())
    return made, {axis: pair[1] for axis, pair in outcomes.items()}


def _asked_of(context: Context, model: nn.Module) -> Context:
    """Put the same question to the base; whether its answers are random is its own matter."""
    draws = DRAWS if float((context.logits(context.x, model) - context.logits(context.x, model)).abs().max()) > 0 else 1
    wish = context.suite_name if context.suite_name in SUITES else list(context.suite.values())
    _, suite = resolve(wish, context.threat, num_classes=context.num_classes, draws=draws)
    other = dataclasses.replace(context, model=model, twin=twin_of(model), sources=(), suite=suite, draws=draws)
    return other.answered()


def _weakest(context: Context) -> Bool[Tensor, "n"]:
    return torch.stack([suite_run(context).standing, *(~broken for broken in controls(context).values())]).all(dim=0)


def _transfer(target: Context, source: Context) -> Bool[Tensor, "n"]:
    """Show the target the images that PGD makes on the source."""
    spec = PGD(steps=target.budget.transfer_steps)
    found = target.attack(spec, source=source.model, stop="never")
    return ~confirmed(target, found, torch.arange(len(target.x), device=target.x.device)) & target.correct


def _compare(axis: str, base: str, ours: Bool[Tensor, "n"], theirs: Bool[Tensor, "n"]) -> Versus:
    a, b = _array(ours), _array(theirs)
    mean, low, high = paired_bootstrap(a, b)
    p = sign_test(a, b)
    verdict: Literal["better", "worse", "unclear"] = (
        "better" if low > 0 and p < LEVEL else "worse" if high < 0 and p < LEVEL else "unclear"
    )
    return Versus(
        axis=axis,
        base=base,
        accuracy=float(a.mean()),
        base_accuracy=float(b.mean()),
        difference=mean,
        low=low,
        high=high,
        p=p,
        verdict=verdict,
    )


def _array(values: Bool[Tensor, "n"]) -> npt.NDArray[np.bool_]:
    return values.cpu().numpy()
