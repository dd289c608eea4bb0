"""Axis ``texture``: how often is the model still right when shape is destroyed and texture kept (patch shuffle)?

A low accuracy here says that the model reads shape; it is a description, not a defect.
"""

from hardy.corruptions import patch_shuffle
from hardy.evaluation.context import Context, Measured, NotMeasured, record
from hardy.results import Axis

__all__ = ["measure"]


def measure(context: Context) -> Measured | NotMeasured:
    """Shuffle the pieces of every image for every grid that divides its size; say which grids do not."""
    h, w = context.x.shape[2:]
    grids = [grid for grid in context.budget.grids if h % grid == 0 and w % grid == 0]
    skipped = [str(grid) for grid in context.budget.grids if grid not in grids]
    if not grids:
        tried = ", ".join(skipped)
        return NotMeasured("texture", f"no grid of {tried} divides {h}x{w} images", "Give Budget(grids=...) that do.")
    key, outcomes, points = context.keys("patch_shuffle"), {}, []
    for grid in grids:
        label = f"{grid}x{grid}"
        outcomes[label] = context.predict(patch_shuffle(context.x, grid=grid, key=key)) == context.y
        note = f"{', '.join(skipped)} (not dividing {h}x{w})" if skipped else None
        made = record(
            label,
            outcomes[label],
            level=float(grid),
            passes={"forward": len(context.x)},
            details={"skipped_grids": note},
        )
        points.append(made)
    axis = Axis(
        name="texture",
        question="How often is it still right when the image is cut into pieces and shuffled?",
        headline=points[0].label,
        points=tuple(points),
        level_name="pieces per side",
    )
    return Measured(axis=axis, outcomes=outcomes)
