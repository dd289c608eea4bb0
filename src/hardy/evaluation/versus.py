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
from torch import Tensor

from hardy.attacks import PGD
from hardy.evaluation.adaptive import twin_of
from hardy.evaluation.context import Context, Source
from hardy.evaluation.suite import confirmed, controls, suite_run
from hardy.evaluation.worst_case import LABEL
from hardy.results import Versus
from hardy.stats import paired_bootstrap, sign_test

__all__ = ["versus"]

LEVEL = 0.05  # of the sign test


def versus(context: Context, base: Source) -> tuple[tuple[Versus, ...], dict[str, Bool[Tensor, "n"]]]:
    """Attack the base as the model was attacked and compare: plain accuracy, the suite, and the worst case.

    The worst case of either net is what its suite, its controls and PGD images made on the other net left standing; for
    the model also what the axis ``worst_case`` found, if it was measured.

    Args:
        context: The question, with ``white_box`` measured.
        base: The un-hardened net.

    Returns:
        The comparisons, and the base's outcomes per image by axis.
    """
    other = dataclasses.replace(context, model=base.model, twin=twin_of(base.model), sources=())
    other = other.with_logits(other.logits(context.x))
    ours, theirs = suite_run(context), suite_run(other)
    outcomes = {
        "clean": (context.correct, other.correct),
        "white_box": (ours.standing, theirs.standing),
        "worst_case": (_worst(context, other), _weakest(other) & _transfer(other, context)),
    }
    made = tuple(_compare(axis, base.name, *pair) for axis, pair in outcomes.items())
    return made, {axis: pair[1] for axis, pair in outcomes.items()}


def _worst(context: Context, base: Context) -> Bool[Tensor, "n"]:
    standing = _weakest(context) & _transfer(context, base)
    measured = context.seen.get("worst_case")
    return standing if measured is None else standing & measured.outcomes[LABEL]


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
