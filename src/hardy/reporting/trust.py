"""Which numbers a check speaks of: a failed check voids them, a warning is named beside them.

Three kinds of checks speak of attacks, and what they say differs.

- The attack does not work on this net: gradients vanish or lead nowhere, more budget or a huge one does not help, a
  planted example is not found. Nothing else was found either, so every number that rests on such attacks is void, and
  the worst case with them: the other axes are weaker attackers, they do not stand in for one that works.
- The attack was beaten: noise, one step, queries, another net or a smaller budget broke what it left. Its own numbers
  are void. The worst case is not, since it contains what beat the attack, and stands as an upper bound. But nobody ran
  an attack that works, so it is not compared: next to a net whose gradients are sound, masked gradients look like gain.
- Every other check speaks of all axes: a guard that failed, or a check that is not known here.
"""

from hardy.reporting.numbers import join
from hardy.results import Point, Result, Status

__all__ = [
    "BEATEN",
    "GRADIENT",
    "REMOVED",
    "SCOPE",
    "WORST",
    "bounded",
    "caution",
    "failed",
    "is_control",
    "named",
    "speaks_of_attacks",
    "subject",
    "void",
    "warned",
]

GRADIENT = ("white_box", "eps_curve", "minimal_norm")  # axes whose attacks follow the gradient of the net itself
WORST = "worst_case"
FOLLOW = ("frequency", "weights")  # axes with a gradient search of their own
RESTS = (*GRADIENT, WORST)
REMOVED = "methods removed"  # the net itself without what works at test time: its weights, another function
BLIND = (
    *("gradient_slope", "border_gradient", "zero_gradient", "chance_level", "no_progress", "frozen_randomness"),
    *("more_budget", "larger_eps", "huge_eps", "self_test"),
)
BEATEN = (
    *("monotone_eps", "noise_beats_gradients", "single_step_beats_many", "black_box_beats_white_box"),
    "transfer_beats_white_box",
)
SCOPE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(BLIND, (*RESTS, *FOLLOW)),
    **dict.fromkeys(BEATEN, (*GRADIENT, *FOLLOW)),
    "silent_success": ("white_box",),  # a warning: what was passed over is counted
    "source_is_model": ("transfer",),  # white-box once more; the worst case loses nothing by it
}


def is_control(point: Point) -> bool:
    """Say whether a point is random noise beside an attack: it follows no gradient."""
    return bool({"noise", "random", "control"} & set(point.series.replace("_", " ").split()))


def subject(axis: str, point: Point) -> str:
    """Name the axis whose checks speak of a point.

    What follows no gradient, or is attacked with nothing, is measured as plain images are; a part of the worst case is
    what its own axis found.
    """
    if axis == WORST and point.series == "one axis":
        return point.label
    if axis in GRADIENT and (is_control(point) or point.level == 0):
        return "clean"
    return "clean" if axis == "query" and point.level == 0 else axis


def failed(result: Result, axis: str) -> tuple[str, ...]:
    """Name the failed checks that make the numbers of an axis no evidence; empty where there is none."""
    return _codes(result, axis, "fail")


def bounded(result: Result, axis: str) -> tuple[str, ...]:
    """Name the failed checks that leave the worst case an upper bound, shown but not compared; empty on other axes."""
    if axis != WORST:
        return ()
    return tuple(dict.fromkeys(c.code for c in result.checks if c.status == "fail" and c.code in BEATEN))


def warned(result: Result, axis: str) -> tuple[str, ...]:
    """Name the checks that ask to read the numbers of an axis with care."""
    found = _codes(result, axis, "warn")
    if axis == WORST:  # an attack that was beaten now and then leaves doubts about the rest
        found += tuple(c.code for c in result.checks if c.status == "warn" and c.code in BEATEN)
    return tuple(dict.fromkeys(found))


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


def speaks_of_attacks(code: str) -> bool:
    """Say whether a check looks into attacks, rather than into the net and the images."""
    return code in SCOPE


def _codes(result: Result, axis: str, status: Status) -> tuple[str, ...]:
    found = (c.code for c in result.checks if c.status == status and axis in SCOPE.get(c.code, (axis,)))
    return tuple(dict.fromkeys(found))
