"""One way to write a check down."""

from jaxtyping import Bool
from torch import Tensor

from hardy.results import Check, Status

__all__ = ["DOCS", "compare", "grade", "verdict"]

SMALL, LARGE = 0.01, 0.1  # shares of images from which a check warns, and from which it fails
DOCS = "docs/checks.md"


def verdict(code: str, status: Status, evidence: str, remedy: str = "") -> Check:
    """Make the record of a check; its anchor is the heading of that name in docs/checks.md.

    Args:
        code: Name of the check.
        status: "pass", "warn", "fail" or "not_run".
        evidence: What was seen, with its figures.
        remedy: What to do; dropped where the check passed.
    """
    return Check(
        code=code,
        status=status,
        evidence=evidence,
        remedy="" if status == "pass" else remedy,
        anchor=f"{DOCS}#{code}",
    )


def compare(missed: Bool[Tensor, "n"]) -> Status:
    """Grade the images that another attack broke and the main one missed, as a share of all images."""
    return grade(int(missed.sum()) / len(missed))


def grade(share: float) -> Status:
    """Grade a share of images that should be 0."""
    return "pass" if share < SMALL else "warn" if share < LARGE else "fail"
