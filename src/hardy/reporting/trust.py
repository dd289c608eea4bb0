"""Which numbers a check speaks of: a failed check voids them, a warning is named beside them."""

from hardy.reporting.numbers import join
from hardy.results import Point, Result, Status

__all__ = ["caution", "failed", "is_control", "named", "subject", "void", "warned"]

GRADIENT = ("white_box", "eps_curve")  # axes whose attacks follow the gradient of the net itself
SCOPE = {
    "zero_gradient": GRADIENT,
    "monotone_eps": GRADIENT,
    "chance_level": GRADIENT,
    "noise_beats_gradients": GRADIENT,
    "transfer_beats_white_box": GRADIENT,
    "more_budget": GRADIENT,
    "source_is_model": ("transfer",),
}  # every other check, a guard or one not known yet, speaks of all axes


def is_control(point: Point) -> bool:
    """Say whether a point is random noise beside an attack: it follows no gradient."""
    return bool({"noise", "random", "control"} & set(point.series.replace("_", " ").split()))


def subject(axis: str, point: Point) -> str:
    """Name the axis whose checks speak of a point; what follows no gradient is measured as plain images are."""
    return "clean" if axis in GRADIENT and (is_control(point) or point.level == 0) else axis


def failed(result: Result, axis: str) -> tuple[str, ...]:
    """Name the failed checks that make the numbers of an axis no evidence; empty where there is none."""
    return _codes(result, axis, "fail")


def warned(result: Result, axis: str) -> tuple[str, ...]:
    """Name the checks that ask to read the numbers of an axis with care."""
    return _codes(result, axis, "warn")


def named(codes: tuple[str, ...]) -> str:
    """Write ``check a`` or ``checks a and b``."""
    return f"{'check' if len(codes) == 1 else 'checks'} {join(codes)}"


def void(result: Result, axis: str) -> str:
    """Write what stands in a cell in place of a difference; empty where no check failed."""
    codes = failed(result, axis)
    return f"void: {named(codes)} failed" if codes else ""


def caution(base: Result, run: Result, axis: str) -> str:
    """Write what to bear in mind beside a claim that compares two runs; empty where no check warned."""
    own, before = warned(run, axis), warned(base, axis)
    others = tuple(code for code in before if code not in own)
    parts = [f"{named(own)} warned"] if own else []
    return join([*parts, f"{named(others)} of the baseline warned"] if others else parts)


def _codes(result: Result, axis: str, status: Status) -> tuple[str, ...]:
    found = (c.code for c in result.checks if c.status == status and axis in SCOPE.get(c.code, (axis,)))
    return tuple(dict.fromkeys(found))
