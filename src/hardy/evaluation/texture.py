"""Axis ``texture``: what does the model rely on: the shape of things, their texture, coarse or fine structure?

Every number here describes the model; none is a defect. Four parts:

Patch shuffle cuts an image into pieces and permutes them, which keeps textures and destroys shapes: a high accuracy
says that the model needs no shape, and what survives many pieces is what a bag of patches would get right.

Low and high pass keep the coarse or the fine structure up to, or above, a cutoff. The high pass keeps the mean colour,
so that the image stays inside the box.

Shape bias needs images whose shape and texture are of different classes, ``Material(cue_conflict=...)``. It is the
share of shape decisions among the decisions for shape or texture; that of a model that guesses is 1/2, so read it with
the share of images that were decided at all. Geirhos, Rubisch, Michaelis, Bethge, Wichmann, Brendel. "ImageNet-trained
CNNs are biased towards texture; increasing shape bias improves accuracy and robustness". ICLR 2019,
https://arxiv.org/abs/1811.12231. Intervals are over images as if they were independent; the published ones are
combinations of fewer shapes and textures, so that true intervals are wider.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy.attacks.goal import predicted
from hardy.corruptions.frequency_filter import high_pass, low_pass
from hardy.corruptions.patch_shuffle import patch_shuffle
from hardy.data.cue_conflict import CueConflict
from hardy.errors import DataError
from hardy.evaluation.context import Context, Measured, NotMeasured, record
from hardy.results import Axis, Score
from hardy.stats import wilson

__all__ = ["check_cue_conflict", "measure"]

SHUFFLE, LOW, HIGH = "patch shuffle", "low pass", "high pass"
BIAS, DECIDED, BY_CLASS = "shape bias", "decided", "shape bias by class"
DECISIONS = "cue decisions"  # per cue-conflict image: 1 for its shape, 0 for its texture, -1 for neither
MISSING = "not measured: needs Material(cue_conflict=...), from hardy.data.cue_conflict(...) or shapes_conflict(...)"


def measure(context: Context) -> Measured | NotMeasured:
    """Shuffle pieces for every grid that divides the image, filter at every cutoff, and measure the shape bias."""
    h, w = context.x.shape[2:]
    grids = [grid for grid in context.budget.grids if h % grid == 0 and w % grid == 0]
    skipped = ", ".join(str(grid) for grid in context.budget.grids if grid not in grids)
    if not grids:
        return NotMeasured("texture", f"no grid of {skipped} divides {h}x{w} images", "Give Budget(grids=...) that do.")
    cue = context.material.cue_conflict
    if cue is not None:
        check_cue_conflict(cue, context.x[0], context.num_classes)
    note = {"skipped_grids": f"{skipped} (not dividing {h}x{w})" if skipped else None}
    note |= {"shape_bias": MISSING if cue is None else None}
    outcomes, points = {}, []
    for label, series, level, make in _conditions(context, grids):
        outcomes[label] = context.predict_made(make, len(context.x)) == context.y
        details = note if series == SHUFFLE else {}
        passes = {"forward": len(context.x) * context.draws}
        points.append(record(label, outcomes[label], level=level, series=series, passes=passes, details={**details}))
    scores, arrays = ((), {}) if cue is None else _shape_bias(context, cue)
    axis = Axis(
        name="texture",
        question="What does it rely on: shape or texture, coarse or fine structure?",
        headline=points[0].label,
        points=tuple(points),
        level_name="pieces per side (patch shuffle), or cutoff, a share of the highest frequency along one side",
        scores=scores,
    )
    return Measured(axis=axis, outcomes=outcomes, arrays=arrays)


def check_cue_conflict(cue: CueConflict, image: Float[Tensor, "c h w"], num_classes: int) -> None:
    """Demand cue-conflict images that the model can look at, and classes among its outputs.

    Raises:
        DataError: images of another shape than ``image``, or outputs that the model does not have.
    """
    if cue.x.shape[1:] != image.shape:
        raise DataError(
            f"texture: cue-conflict images must have the shape of the evaluated ones, {tuple(image.shape)}; got "
            f"{tuple(cue.x.shape[1:])}. Read them with size=."
        )
    largest = max(map(max, cue.groups)) if cue.groups else int(torch.maximum(cue.shape, cue.texture).max())
    if largest >= num_classes:
        raise DataError(
            f"texture: classes of cue-conflict images must be among the model's {num_classes} outputs; got output "
            f"{largest}. Give the class names of this model to cue_conflict."
        )


def _conditions(
    context: Context, grids: list[int]
) -> list[tuple[str, str, float, Callable[[Int[Tensor, "m"]], Float[Tensor, "m c h w"]]]]:
    """List label, series, level and maker of the images, of which the places are given, of every condition."""
    x, key, cutoffs = context.x, context.keys("patch_shuffle"), context.budget.cutoffs

    def shuffled(grid: int, i: Tensor) -> Tensor:
        return patch_shuffle(x[i], grid=grid, key=key[i])

    def passed(keep: Callable[..., Tensor], cutoff: float, i: Tensor) -> Tensor:
        return keep(x[i], cutoff=cutoff)

    shuffles = [(f"{grid}x{grid}", SHUFFLE, float(grid), partial(shuffled, grid)) for grid in grids]
    lows = [(f"{LOW} {cutoff:g}", LOW, cutoff, partial(passed, low_pass, cutoff)) for cutoff in cutoffs]
    highs = [(f"{HIGH} {cutoff:g}", HIGH, cutoff, partial(passed, high_pass, cutoff)) for cutoff in cutoffs]
    return [*shuffles, *lows, *highs]


def _shape_bias(context: Context, cue: CueConflict) -> tuple[tuple[Score, ...], dict[str, Tensor]]:
    """Count the answers for the shape and for the texture, of all classes and by the class of the shape."""
    device = context.x.device
    x, shape, texture = (tensor.to(device) for tensor in (cue.x, cue.shape, cue.texture))
    answers = torch.stack([_decide(context.logits(x), cue.groups) for _ in range(context.draws)]).mode(dim=0).values
    for_shape, for_texture = answers == shape, answers == texture
    decided = for_shape | for_texture
    choices = len(cue.groups) or context.num_classes
    facts: dict[str, Any] = {
        "images": cue.name,
        "mapping": cue.mapping or "class k is output k; all outputs count",
        "shape_decisions": int(for_shape.sum()),
        "texture_decisions": int(for_texture.sum()),
    }
    made = [_share(DECIDED, decided, passes={"forward": len(x) * context.draws}, details={"by_chance": 2 / choices})]
    if bool(decided.any()):
        made.insert(0, _share(BIAS, for_shape[decided], details=facts))
    for k in sorted({*shape.tolist()}):
        if bool((here := decided & (shape == k)).any()):
            name = cue.class_names[k] if cue.class_names else f"class {k}"
            made.append(_share(f"{BIAS}, {name}", for_shape[here], series=BY_CLASS))
    decision = torch.where(for_shape, 1, torch.where(for_texture, 0, -1)).to(torch.int8)
    return tuple(made), {DECIDED: decided.float(), DECISIONS: decision}


def _decide(logits: Float[Tensor, "n k"], groups: tuple[tuple[int, ...], ...]) -> Int[Tensor, "n"]:
    """Answer with the class whose outputs have the largest mean probability; -1 where a logit is NaN."""
    if not groups:
        return predicted(logits)
    merged = [logits[:, list(group)].logsumexp(dim=1) - math.log(len(group)) for group in groups]
    return torch.where(logits.isnan().any(dim=1), -1, torch.stack(merged, dim=1).argmax(dim=1))


def _share(label: str, hits: Bool[Tensor, "m"], *, series: str = "", **facts: Any) -> Score:
    """Make the score of a share of images, with Wilson's interval; ``facts`` are further fields."""
    n, count = len(hits), int(hits.sum())
    low, high = wilson(count, n)
    return Score(label=label, value=count / n, kind="description", n=n, low=low, high=high, series=series, **facts)
