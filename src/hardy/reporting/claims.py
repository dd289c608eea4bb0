"""What a row of the verdict table may claim: clear differences, each counted once, with its warnings beside it."""

from collections.abc import Sequence
from typing import Literal

from hardy.reporting.compare import DESCRIPTIONS, Paired, Score, Topic
from hardy.reporting.numbers import gap
from hardy.reporting.runs import Run
from hardy.reporting.trust import GRADIENT, WORST, caution

__all__ = ["claims", "is_merit", "phrase", "points", "repeats", "subject_of", "verdict"]

COST = ("clean",)  # topics that are a price, not an aim


def claims(row: Sequence[Score], kind: Literal["gain", "loss"]) -> list[Score]:
    """List the clear gains or losses of a run on what a method aims at."""
    return [
        score
        for score in row
        if isinstance(score.difference, Paired)
        and score.difference.verdict == kind
        and is_merit(score.topic)
        and not repeats(row, score)
    ]


def is_merit(topic: Topic) -> bool:
    """Say whether more is better there: clean accuracy is a price, patch shuffle describes what a net relies on."""
    return topic.axis not in (*COST, *DESCRIPTIONS)


def repeats(row: Sequence[Score], score: Score) -> bool:
    """Say whether another column of the row speaks for this one: one finding, not two.

    White-box, the eps curve and the minimal norm ask what is left within one budget. The worst case contains what each
    of them found, so where it is compared it alone counts; else the curve adds nothing where white-box has its verdict.
    """
    if score.topic.axis not in GRADIENT or score.point is None or not isinstance(score.difference, Paired):
        return False
    for other in row:
        if other.point is None or other.topic.gray_box or other.point.level != score.point.level:
            continue
        if isinstance(other.difference, Paired):
            if other.topic.axis == WORST:
                return True
            if other.topic.axis == "white_box" != score.topic.axis and other.difference.verdict == verdict(score):
                return True
    return False


def verdict(score: Score) -> str:
    """Give the verdict of a score; empty where it was not compared."""
    return score.difference.verdict if isinstance(score.difference, Paired) else ""


def phrase(base: Run, score: Score) -> str:
    """Name a topic with its difference."""
    return f"{subject_of(score.topic)}{points(base, score)}"


def subject_of(topic: Topic) -> str:
    """Name a topic in a sentence."""
    return f"the {topic.title}" if topic.axis == WORST else topic.title


def points(base: Run, score: Score) -> str:
    """Write a difference in brackets, with the checks that warned; nothing where there is no difference."""
    if not isinstance(score.difference, Paired):
        return ""
    warning = caution(base.result, score.run.result, score.topic.axis)
    return f" ({gap(score.difference.mean)} points{f'; {warning}' if warning else ''})"
