"""Axis ``clean``: how often is the model right on plain images?"""

from hardy.evaluation.context import Context, Measured, record
from hardy.results import Axis

__all__ = ["measure"]


def measure(context: Context) -> Measured:
    """Count the plain images that are classified right."""
    made = record("clean", context.correct, passes={"forward": len(context.x)})
    axis = Axis(name="clean", question="How often is it right on plain images?", headline="clean", points=(made,))
    return Measured(axis=axis, outcomes={"clean": context.correct})
