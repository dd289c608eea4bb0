"""Raw scores become cells of text."""

from hardy.reporting.compare import LEVEL, Paired
from hardy.reporting.data import Cell, Difference
from hardy.reporting.numbers import ABSENT, gap, gap_interval, interval, percent
from hardy.results import Point

__all__ = ["SYMBOLS", "cell", "difference"]

SYMBOLS = {
    "gain": "\N{BLACK UP-POINTING TRIANGLE}",
    "loss": "\N{BLACK DOWN-POINTING TRIANGLE}",
    "unclear": "\N{ALMOST EQUAL TO}",
    "description": "",
}
FEW = 30  # differing images that explain by themselves why a test says nothing
WORDS = {"gain": "gain", "loss": "loss", "unclear": "unclear", "description": ""}


def difference(paired: Paired) -> Difference:
    """Write a paired difference; a verdict that the interval alone does not explain says why."""
    word = WORDS[paired.verdict]
    if paired.verdict == "unclear" and (paired.low > 0 or paired.high < 0):
        images = "image differs" if paired.differing == 1 else "images differ"
        why = f"only {paired.differing} {images}" if paired.differing < FEW else "the test does not agree"
        why = "after correction" if paired.p < LEVEL else why
        word = f"{word}: {why}"
    return Difference(
        text=gap(paired.mean),
        interval=gap_interval(paired.low, paired.high),
        verdict=paired.verdict,
        symbol=SYMBOLS[paired.verdict],
        word=word,
    )


def cell(
    column: str,
    point: Point | None,
    compared: Paired | str | None = None,
    href: str = "",
    *,
    void: str = "",
    warning: str = "",
) -> Cell:
    """Write one accuracy, its interval, and its difference to the baseline or why there is none.

    Args:
        column: Head of the column.
        point: The accuracy; None where it was not measured.
        compared: The difference, or in words why there is none.
        href: Where the accuracy is explained.
        void: Why the accuracy is no evidence; it stands in place of the difference.
        warning: What to bear in mind beside a gain or a loss.
    """
    if point is None or percent(point.accuracy) == ABSENT:
        return Cell(column=column, accuracy=ABSENT, measured=False)
    note = void
    if not void and isinstance(compared, str):
        note = f"not compared: {compared}"
    elif not void and isinstance(compared, Paired) and compared.verdict in ("gain", "loss"):
        note = warning
    return Cell(
        column=column,
        accuracy=percent(point.accuracy),
        measured=True,
        interval=interval(point.low, point.high),
        count=f"{round(point.accuracy * point.n)} of {point.n} images right",
        href=href,
        difference=difference(compared) if isinstance(compared, Paired) and not void else None,
        note=note,
        void=bool(void),
    )
