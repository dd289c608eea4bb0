"""Axis ``per_class``: is every class served, or do the common ones carry the rest?

Balanced accuracy is the mean of the accuracies of the classes. It is also the mean over images of

    right_i * n / (K * n_c(i)),

with n images, K classes that occur and n_c images of class c, which lets two models be compared image by image.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hardy.evaluation.context import Context, Measured, record
from hardy.records import Axis, Score, mean_score
from hardy.stats import wilson

__all__ = ["BALANCED", "measure"]

BALANCED = "balanced accuracy"
TOP = 5


def measure(context: Context) -> Measured:
    """Count right answers by class, and true classes among the five highest logits; no pass beyond the plain images."""
    counts = torch.bincount(context.y, minlength=context.num_classes)
    right = torch.bincount(context.y[context.correct], minlength=context.num_classes)
    present = [int(c) for c in counts.nonzero()[:, 0]]
    weights = len(context.y) / (len(present) * counts[context.y])
    balanced: Float[Tensor, "n"] = context.correct * weights
    classes = [_class(c, int(right[c]), int(counts[c])) for c in present]
    worst = min(classes, key=lambda score: (score.value, score.label))
    points, outcomes = [], {}
    if context.num_classes > TOP:
        outcomes[f"top {TOP}"] = _top(context)
        points.append(record(f"top {TOP}", outcomes[f"top {TOP}"], passes={}))
    axis = Axis(
        name="per_class",
        question="Is it right on every class alike?",
        headline=BALANCED,
        points=tuple(points),
        scores=(
            mean_score(BALANCED, balanced.cpu().numpy(), kind="accuracy", details={"classes": len(present)}),
            Score(
                label="worst class",
                value=worst.value,
                kind="accuracy",
                n=worst.n,
                low=worst.low,
                high=worst.high,
                details={"class": worst.details["class"]},
            ),
            *classes,
        ),
    )
    return Measured(axis=axis, outcomes=outcomes, arrays={BALANCED: balanced.float()})


def _class(c: int, right: int, n: int) -> Score:
    low, high = wilson(right, n)
    facts = {"low": low, "high": high, "series": "class", "details": {"class": c}}
    return Score(label=f"class {c}", value=right / n, kind="accuracy", n=n, **facts)  # type: ignore[arg-type]  # its fields


def _top(context: Context) -> Tensor:
    """Say where the true class is among the highest logits; NaN logits are wrong."""
    z: Tensor = context.memo["logits"] if "logits" in context.memo else context.logits(context.x)
    among = z.nan_to_num(-torch.inf).topk(TOP, dim=1).indices.eq(context.y[:, None]).any(dim=1)
    return among & ~z.isnan().any(dim=1)
