"""Numbers as text: percent with one decimal, signs that line up, and words where there is no number."""

import math

from hardy.threats import Threat

__all__ = [
    "ABSENT",
    "TIMES",
    "count",
    "duration",
    "gap",
    "gap_interval",
    "interval",
    "join",
    "level",
    "number",
    "p_value",
    "percent",
    "ratio",
    "share",
    "threat",
]

ABSENT = "not measured"
TIMES = "\N{MULTIPLICATION SIGN}"
MINUS = "\N{MINUS SIGN}"


def percent(share: float) -> str:
    """Write a share in [0, 1] as percent, without the sign; what is no share is :data:`ABSENT`.

    Example:
        >>> percent(0.8306), percent(math.nan)
        ('83.1', 'not measured')
    """
    return f"{100 * share:.1f}" if math.isfinite(share) and 0 <= share <= 1 else ABSENT


def share(value: float) -> str:
    """Write a share for a sentence: percent with its sign, which stays on the same line."""
    text = percent(value)
    return text if text == ABSENT else f"{text}\N{NO-BREAK SPACE}%"


def interval(low: float, high: float) -> str:
    """Write the bounds of a share in percent, or nothing where they are no numbers."""
    bounds = percent(low), percent(high)
    return "" if ABSENT in bounds else f"[{bounds[0]}, {bounds[1]}]"


def gap(share: float) -> str:
    """Write a difference of shares in points, always with a sign; zero has none.

    Example:
        >>> gap(0.121), gap(-0.00001)
        ('+12.1', '0.0')
    """
    text = f"{100 * share:+.1f}"
    return text[1:] if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def gap_interval(low: float, high: float) -> str:
    """Write the bounds of a difference in points."""
    return f"[{gap(low)}, {gap(high)}]"


def ratio(value: float, base: float) -> str:
    """Write how many times the baseline a value is; nothing where the baseline is no measure."""
    return f"{value / base:.2f}{TIMES}" if base > 0 else ""


def duration(seconds: float) -> str:
    """Write a time so that it reads at a glance.

    Example:
        >>> duration(3.21), duration(245.0), duration(7400.0)
        ('3.2 s', '4 min 05 s', '2 h 03 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def level(value: float | None, name: str) -> str:
    """Write a strength; budgets that are whole gray levels as ``8/255``."""
    if value is None:
        return ""
    if value >= 1000 and value == round(value):
        return f"{value:,.0f}"
    gray, short = value * 255, f"{value:.3g}"
    if "eps" in name and 0.5 < gray < 255 and math.isclose(gray, round(gray), rel_tol=1e-4) and float(short) != value:
        return f"{round(gray)}/255"
    return short


def threat(budget: Threat) -> str:
    """Write a threat as the page does: ``Linf, eps 8/255``."""
    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[budget.norm]
    return f"{norm}, eps {level(budget.eps, 'eps') if budget.norm == 'linf' else f'{budget.eps:.3g}'}"


def join(items: list[str] | tuple[str, ...]) -> str:
    """List things in a sentence.

    Example:
        >>> join(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def count(value: object) -> str:
    """Write a number of things; nothing where it is none.

    Example:
        >>> count(14400), count(None)
        ('14,400', '')
    """
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else ""


def p_value(p: float) -> str:
    """Write a p-value.

    Example:
        >>> p_value(0.0316), p_value(0.00001), p_value(1.0)
        ('p = 0.032', 'p < 0.001', 'p = 1')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def number(value: float) -> str:
    """Write a number with three digits behind the point, or fewer where it is large.

    Example:
        >>> number(0.12345), number(12.34), number(2100.4)
        ('0.123', '12.34', '2,100.4')
    """
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    text = f"{value:,.{digits}f}"
    return text.replace("-", MINUS) if float(text.replace(",", "")) else text.lstrip("-")
