"""What a row of the verdict table may claim: clear differences, each counted once, with its warnings beside it."""

from collections.abc import Sequence
from typing import Literal

from hardy.reporting.compare import DESCRIPTIONS, Paired, Score, Topic
from hardy.reporting.numbers import gap
from hardy.reporting.runs import Run
from hardy.reporting.trust import caution

__all__ = ["claims", "is_merit", "phrase", "points", "repeats_white_box"]

COST = ("clean",)  # topics that are a price, not an aim


def claims(row: Sequence[Score], kind: Literal["gain", "loss"]) -> list[Score]:
    """List the clear gains or losses of a run on what a method aims at."""
    return [
        score
        for score in row
        if isinstance(score.difference, Paired)
        and score.difference.verdict == kind
        and is_merit(score.topic)
        and not repeats_white_box(row, score)
    ]


def is_merit(topic: Topic) -> bool:
    """Say whether more is better there: clean accuracy is a price, patch shuffle describes what a net relies on."""
    return topic.axis not in (*COST, *DESCRIPTIONS)


def repeats_white_box(row: Sequence[Score], score: Score) -> bool:
    """Say whether this is the eps curve at the budget of white-box, with the same verdict: one finding, not two."""
    if score.topic.axis != "eps_curve" or score.point is None or not isinstance(score.difference, Paired):
        return False
    return any(
        other.topic.axis == "white_box"
        and not other.topic.gray_box
        and other.point is not None
        and other.point.level == score.point.level
        and isinstance(other.difference, Paired)
        and other.difference.verdict == score.difference.verdict
        for other in row
    )


def phrase(base: Run, score: Score) -> str:
    """Name a topic with its difference."""
    return f"{score.topic.title}{points(base, score)}"


def points(base: Run, score: Score) -> str:
    """Write a difference in brackets, with the checks that warned; nothing where there is no difference."""
    if not isinstance(score.difference, Paired):
        return ""
    warning = caution(base.result, score.run.result, score.topic.axis)
    return f" ({gap(score.difference.mean)} points{f'; {warning}' if warning else ''})"
