"""Axis ``per_class``: is every class served, or do the common ones carry the rest?

Balanced accuracy is the mean of the accuracies of the classes. It is also the mean over images of

    right_i * n / (K * n_c(i)),

with n images, K classes that occur and n_c images of class c, which lets two models be compared image by image. Its
interval is Student's t on these numbers with right_i less the accuracy of its class, so that how the images are spread
over classes does not count as noise.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hardy.evaluation.context import Context, Measured, record
from hardy.records import Axis, Score
from hardy.stats import mean_interval, wilson

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
    shares = right / counts.clamp_min(1)
    classes = [_class(c, int(right[c]), int(counts[c])) for c in present]
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
            _balanced(classes, weights * (context.correct.float() - shares[context.y])),
            _worst(classes),
            *classes,
        ),
    )
    return Measured(axis=axis, outcomes=outcomes, arrays={BALANCED: balanced.float()})


def _balanced(classes: list[Score], around: Float[Tensor, "n"]) -> Score:
    """Give the mean of the accuracies; ``around`` is how far each image moves it from the accuracy of its class."""
    n, value = len(around), sum(score.value for score in classes) / len(classes)
    if bool(around.any()):
        low, high = (max(0.0, min(1.0, value + bound)) for bound in mean_interval(around.cpu().numpy()))
    else:  # every class is right or wrong as a whole
        low, high = wilson(round(value * n), n)
    return Score(
        label=BALANCED, value=value, kind="accuracy", n=n, low=low, high=high, details={"classes": len(classes)}
    )


def _worst(classes: list[Score]) -> Score:
    """Give the least accuracy; its interval holds for all classes at once, as which one is worst was not known."""
    worst = min(classes, key=lambda score: (score.value, score.label))
    low, high = wilson(round(worst.value * worst.n), worst.n, level=1 - 0.05 / len(classes))
    details = {"class": worst.details["class"], "interval": "Bonferroni over classes"}
    return Score(
        label="worst class", value=worst.value, kind="accuracy", n=worst.n, low=low, high=high, details=details
    )


def _class(c: int, right: int, n: int) -> Score:
    low, high = wilson(right, n)
    facts = {"low": low, "high": high, "series": "class", "details": {"class": c}}
    return Score(label=f"class {c}", value=right / n, kind="accuracy", n=n, **facts)  # type: ignore[arg-type]  # its fields


def _top(context: Context) -> Tensor:
    """Say where the true class is among the highest logits, of a random net the highest mean probabilities.

    NaN is wrong.
    """
    if context.draws > 1:
        z = torch.stack([context.logits(context.x).softmax(dim=1) for _ in range(context.draws)]).mean(dim=0)
    else:
        z = context.memo["logits"] if "logits" in context.memo else context.logits(context.x)
    among = z.nan_to_num(-torch.inf).topk(TOP, dim=1).indices.eq(context.y[:, None]).any(dim=1)
    return among & ~z.isnan().any(dim=1)
