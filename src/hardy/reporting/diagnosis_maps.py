"""Heat maps of a diagnosis: classes by channels as pictures, classes by classes as a table."""

import base64
import io
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hardy.reporting.diagnosis_parts import MapPicture
from hardy.reporting.parts import Heat, Matrix, MatrixRow

__all__ = ["CLASSES", "COLUMNS", "binned", "by_class", "confusion_matrix", "heat_png", "map_picture", "most_confused"]

CLASSES = 30  # rows that a person can read; of more classes the most confused are shown
COLUMNS = 512  # columns that a screen can show; more channels are binned
LEVELS = 16
INK = (38, 118, 205)  # reads on white and on black
NONE = (128, 128, 128)  # of a row without a map


def most_confused(counts: Int[Tensor, "k k"] | None, num_classes: int, most: int = CLASSES) -> list[int]:
    """Choose the classes to show, in label order: all where they fit, else those of the most confused pairs.

    Args:
        counts: True classes in rows, answers in columns; None where they are not known: the first classes.
        num_classes: Number of classes.
        most: Most classes to choose.
    """
    if num_classes <= most or counts is None:
        return list(range(min(num_classes, most)))
    wrong = counts - torch.diag(counts.diagonal())
    kept: dict[int, None] = {}
    for place in torch.argsort(wrong.flatten(), descending=True, stable=True)[: most * most].tolist():
        both = [each for each in divmod(place, num_classes) if each not in kept]
        if len(kept) + len(both) <= most:
            kept |= dict.fromkeys(both)
        if len(kept) == most:
            break
    return sorted(kept)


def confusion_matrix(counts: Int[Tensor, "k k"], names: Sequence[str], chosen: Sequence[int]) -> Matrix:
    """Lay out who is taken for whom: counts, tinted by their share of the row, mistakes on a scale of their own.

    Args:
        counts: True classes in rows, answers in columns.
        names: Of all classes.
        chosen: Classes to show; what is answered beyond them is summed up in a last column.
    """
    images, picked = counts.sum(1), torch.tensor(chosen, dtype=torch.int64)
    shown = counts[picked][:, picked]
    shares = shown.double() / images[picked].clamp_min(1)[:, None]
    worst = float(shares.masked_fill(torch.eye(len(chosen), dtype=torch.bool), 0).max())
    rows = []
    for i, c in enumerate(chosen):
        cells = [_count(int(shown[i, j]), float(shares[i, j]), worst, right=i == j) for j in range(len(chosen))]
        if len(chosen) < len(names):
            cells.append(Heat(text=f"{int(images[c] - shown[i].sum()):,}", tint=0))
        rows.append(MatrixRow(head=names[c], sub=f"{int(images[c]):,}", cells=tuple(cells)))
    some = len(chosen) < len(names)
    notes = [f"{len(chosen)} of {len(names)} classes: those of the pairs that are confused most often."] if some else []
    return Matrix(
        title="Confusion matrix",
        corner="True class",
        heads=tuple((names[c], "") for c in chosen) + ((("all other classes", ""),) if some else ()),
        rows=tuple(rows),
        question="Images of each true class (rows) by the answer (columns): right ones in blue by their share of the "
        f"row, mistakes in red on a scale of their own (the deepest is {100 * worst:.0f} % of a row).",
        notes=tuple(notes),
    )


def _count(count: int, share: float, worst: float, *, right: bool) -> Heat:
    tint = share if right else share / worst if worst else 0.0
    return Heat(text=f"{count:,}", tint=math.ceil(10 * tint), mark="right" if right else "wrong", void=not count)


def by_class(map_: Float[Tensor, "k c"]) -> Int[Tensor, "c"]:
    """Order channels by the class that depends on them most, of its own largest, and by how much.

    Channels on which no class depends come last.
    """
    rows = _scaled(map_).nan_to_num(0)
    value, owner = rows.max(dim=0)
    owner = torch.where(value > 0, owner, len(rows))
    order = torch.argsort(value, descending=True, stable=True)
    return order[torch.argsort(owner[order], stable=True)]


def binned(map_: Float[Tensor, "k c"], most: int = COLUMNS) -> tuple[Float[Tensor, "k _"], int]:
    """Take the largest of each run of neighbouring channels, so that at most ``most`` columns are left.

    Returns:
        The map, and how many channels a column stands for.
    """
    width = -(-map_.shape[1] // most)
    if width == 1:
        return map_, 1
    runs = torch.split(map_, width, dim=1)
    return torch.stack([run.amax(dim=1) for run in runs], dim=1), width


def map_picture(
    map_: Float[Tensor, "k c"], names: Sequence[str], *, layer: str, sort: bool, chosen: Sequence[int]
) -> MapPicture:
    """Draw a map of class and channel, every row relative to its own largest value.

    Args:
        map_: At least 0; rows of NaN have no map.
        names: Of all classes.
        layer: Name of the layer.
        sort: Order channels by class; else as in the net.
        chosen: Classes to show.
    """
    rows = _scaled(map_[torch.tensor(chosen, dtype=torch.int64)])
    rows = rows[:, by_class(rows)] if sort else rows
    shown, width = binned(rows)
    order = "sorted by the class that depends on them most" if sort else "in the order of the net"
    bins = f"; one column is the largest of {width} neighbours" if width > 1 else ""
    return MapPicture(
        src=heat_png(shown),
        alt=f"Heat map of {layer}: {len(chosen)} classes by {map_.shape[1]} channels {order}. "
        "The strongest channels of each class stand in the table below.",
        rows=tuple(names[c] for c in chosen),
        columns=f"{map_.shape[1]} channels, {order}{bins}",
        caption="Sorted by class" if sort else "In the order of the net",
    )


def heat_png(values: Float[Tensor, "r c"]) -> str:
    """Write values in [0, 1] as a PNG data URI, one pixel each: transparent at 0, full colour at 1, gray where NaN."""
    from PIL import Image

    steps = (values.nan_to_num(0).clamp(0, 1) * (LEVELS - 1)).round().to(torch.uint8)
    steps = torch.where(values.isnan(), LEVELS, steps).to(torch.uint8)
    picture = Image.frombytes("P", (steps.shape[1], steps.shape[0]), steps.contiguous().numpy().tobytes())
    picture.putpalette([*INK] * LEVELS + [*NONE])
    alpha = bytes(round(255 * step / (LEVELS - 1)) for step in range(LEVELS))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True, transparency=alpha + b"\x60")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _scaled(map_: Float[Tensor, "k c"]) -> Float[Tensor, "k c"]:
    """Divide every row by its largest value; rows of zeros stay, rows of NaN too."""
    most = map_.amax(dim=1, keepdim=True)
    return torch.where(most == 0, torch.zeros_like(map_), map_ / most)
