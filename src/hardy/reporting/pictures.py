"""Example images as PNG data URIs: before, after, and what changed."""

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt

from hardy.reporting.data import Example, Gallery
from hardy.reporting.numbers import TIMES, level
from hardy.reporting.runs import Run

__all__ = ["gallery"]

LARGEST = 160  # pixels; larger images are thinned out, since the page shows thumbnails
NAMES = ("x", "x_adv", "label", "prediction", "prediction_adv")


def gallery(run: Run, limit: int) -> Gallery | None:
    """Make at most ``limit`` examples of a run; None where the result kept no usable pictures."""
    arrays = {name: run.result.arrays.get(f"examples/{name}") for name in NAMES}
    x, x_adv = arrays["x"], arrays["x_adv"]
    if x is None or x_adv is None or x.ndim != 4 or x.shape != x_adv.shape or 0 in x.shape:
        return None
    count = min(limit, len(x))
    x, x_adv = _tame(x[:count]), _tame(x_adv[:count])
    delta = x_adv - x
    largest = float(np.abs(delta).max())
    factor = max(1, round(0.5 / largest)) if largest > 0 else 1
    texts = [*(_labels(run, arrays[name], count) for name in NAMES[2:]), _budgets(run, count)]
    examples = [_example((x[i], x_adv[i], 0.5 + factor * delta[i]), *(told[i] for told in texts)) for i in range(count)]
    note = f"Change amplified {factor}{TIMES}, mid-gray is no change." if largest > 0 else "The attack changed nothing."
    return Gallery(run=run.name, note=note, pixelated=max(x.shape[2:]) <= 64, examples=tuple(examples))


def _budgets(run: Run, count: int) -> list[str]:
    """Say at which budget the images were broken; empty where none broke them, or it was not kept."""
    kept = run.result.arrays.get("examples/eps")
    if kept is None or kept.ndim != 1 or len(kept) < count or kept.dtype.kind != "f":
        return [""] * count
    return [f"eps {level(float(eps), 'eps')}" if 0 < eps < np.inf else "" for eps in kept[:count]]


def _example(images: tuple[npt.NDArray[Any], ...], truth: str, before: str, after: str, budget: str) -> Example:
    clean, attacked, change = map(_uri, images)
    return Example(
        clean=clean,
        attacked=attacked,
        change=change,
        truth=truth,
        before=before,
        after=after,
        fooled=after != truth,
        budget=budget,
        alt=f"label {truth}: classified {before} when clean, {after} when attacked",
    )


def _labels(run: Run, values: npt.NDArray[Any] | None, count: int) -> list[str]:
    """Name classes; what is no class of this result stays a number, what was not kept is unknown."""
    if values is None or values.ndim != 1 or len(values) < count or values.dtype.kind not in "iu":
        return ["unknown"] * count
    names = run.result.class_names
    return [names[int(v)] if 0 <= int(v) < len(names) else str(int(v)) for v in values[:count]]


def _tame(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Thin out large images, keep gray or RGB; other numbers of channels become their mean."""
    step = -(-max(images.shape[2:]) // LARGEST)
    images = np.nan_to_num(images[:, :, ::step, ::step].astype(np.float32))
    return images if images.shape[1] in (1, 3) else images.mean(axis=1, keepdims=True)


def _uri(image: npt.NDArray[Any]) -> str:
    from PIL import Image

    pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
