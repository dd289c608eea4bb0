"""One way to write a check down."""

from hardy.results import Check, Status

__all__ = ["DOCS", "verdict"]

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
