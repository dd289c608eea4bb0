"""The pictures of a result: a few images before and after the attack."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch

from hardy.evaluation.context import Context, Measured

__all__ = ["EXAMPLES", "pictures"]

EXAMPLES = 8


def pictures(context: Context, seen: Mapping[str, Measured]) -> dict[str, npt.NDArray[Any]]:
    """Choose up to eight images that were right before, those broken at the smallest budget first.

    Returns:
        ``examples/x`` and ``examples/x_adv`` (float32 in [0, 1], n c h w), ``examples/label``, ``examples/prediction``,
        ``examples/prediction_adv``, ``examples/eps`` (inf where not broken) and ``examples/row``; nothing if neither
        ``eps_curve`` nor ``white_box`` was measured or no image was right.
    """
    made = seen.get("eps_curve") or seen.get("white_box")
    if made is None or made.x_adv is None or made.eps_broken is None or not context.correct.any():
        return {}
    right = context.correct.nonzero()[:, 0]
    rows = right[made.eps_broken[right].argsort(stable=True)][:EXAMPLES]
    x_adv = made.x_adv[rows]
    return {
        "examples/x": context.x[rows].cpu().numpy(),
        "examples/x_adv": x_adv.cpu().numpy(),
        "examples/label": context.y[rows].cpu().numpy(),
        "examples/prediction": context.predictions[rows].cpu().numpy(),
        "examples/prediction_adv": context.predict(x_adv).cpu().numpy(),
        "examples/eps": made.eps_broken[rows].to(torch.float32).cpu().numpy(),
        "examples/row": rows.cpu().numpy(),
    }
