"""Why two numbers must not be compared image by image: other images, another question, a check that failed."""

from typing import Any

import numpy as np
import numpy.typing as npt

from hardy.reporting.numbers import level
from hardy.reporting.trust import REMOVED, WORST, bounded, failed, named, subject
from hardy.results import Axis, Point, Result

__all__ = [
    "GRAY_BOX",
    "outcomes",
    "own_weights",
    "per_image",
    "refusal",
    "same_images",
    "source_weights",
    "sources_known",
]

GRAY_BOX = ("gray-box", "sibling")  # series of attacks made on the same method trained from another seed
WITH_THREAT = (  # axes that the threat enters
    *("white_box", "eps_curve", "minimal_norm", "transfer", "query", "worst_case", "frequency", "weights", "certified"),
)
SETTINGS = (
    *("attack", "steps", "restarts", "step_size", "random_start", "norm", "eps", "targeted", "draws", "fab_targets"),
    "axes",
    *("images_from", "scale", "names", "severities", "reference", "reference_error", "reference_clean_error"),
    *("left_out", "grid", "fill", "relevance", "profile", "order", "bands", "band_steps", "ball", "patterns", "bins"),
    *("search_steps", "search_restarts", "input_steps", "sigma", "select", "alpha", "others", "others_digest"),
    "train_digest",
)
WORDS = {"axes": "attacks in the worst case"}  # settings whose name says nothing to a reader
NAMED_SUITES = ("standard", "quick", "full")


def refusal(base: Result, run: Result, axis: str, before: Point, after: Point) -> str:
    """Say in words why the difference of two points would mislead; empty where it does not."""
    return (
        _other_images(base, run)
        or _other_question(base, run, axis, before, after)
        or _other_source(base, run, before, after)
        or _void(base, run, subject(axis, after))
    )


def same_images(base: Result, run: Result) -> bool:
    """Say whether both results prove to be about the same images, rather than about equal labels."""
    digests = _digest(base, "images"), _digest(run, "images")
    return digests[0] != "" and digests[0] == digests[1]


def sources_known(base: Result, run: Result, before: Point, after: Point) -> bool:
    """Say whether the results tell which net each attack was made on, wherever another net has a part in it."""
    if "source" not in before.details and "source" not in after.details:
        return True
    if _own_twin(before, after):
        return True
    digests = own_weights(base), own_weights(run), source_weights(before), source_weights(after)
    return "" not in digests


def outcomes(result: Result, axis: str, point: Point) -> npt.NDArray[Any] | None:
    """Give the number of each image behind a point, or a mean; None where they are missing or something else."""
    return per_image(result, f"{axis}/{point.label}", point.accuracy)


def per_image(result: Result, name: str, mean: float) -> npt.NDArray[Any] | None:
    """Give the outcomes or numbers per image that are kept under a name and have this mean."""
    kept: npt.NDArray[Any] | None = result.outcomes_by_point.get(name, result.arrays.get(name))
    if kept is None or kept.shape != (result.n,) or kept.dtype.kind not in "bf" or result.n == 0:
        return None
    return kept if abs(float(kept.mean(dtype=np.float64)) - mean) < 1e-5 else None


def _other_images(base: Result, run: Result) -> str:
    if base.n != run.n:
        return f"other images: {run.n}, the baseline has {base.n}"
    if base.data != run.data:
        return "other data"
    digests = _digest(base, "images"), _digest(run, "images")
    if "" not in digests and digests[0] != digests[1]:
        return "other images"
    labels = base.arrays.get("labels"), run.arrays.get("labels")
    if labels[0] is None or labels[1] is None:
        return "labels were not kept, so the images cannot be matched"
    return "" if np.array_equal(labels[0], labels[1]) else "the labels differ"


def _other_question(base: Result, run: Result, axis: str, before: Point, after: Point) -> str:
    if axis in WITH_THREAT and base.threat != run.threat:
        return "other threat"
    if before.level != after.level:
        strengths = [level(p.level, "eps") or "none" for p in (after, before)]
        return f"other strength: {strengths[0]}, the baseline has {strengths[1]}"
    if suite := _other_suite(base, run, axis, before, after):
        return suite
    if before.label != after.label and not _own_twin(before, after):
        return "another condition"
    differ = [key for key in SETTINGS if before.details.get(key) != after.details.get(key)]
    return f"other {', '.join(WORDS.get(key, key) for key in differ)}" if differ else ""


def _other_suite(base: Result, run: Result, axis: str, before: Point, after: Point) -> str:
    """Say that other attacks were run, where an accuracy is that of a whole suite: its headline and what rests on it.

    Attacks through a differentiable twin come on top where a net needs them, and a net that is random gets the suite
    for such: each net is attacked as it must be, so these are no reasons.
    """
    if not (_rests_on_suite(axis, before) and _rests_on_suite(axis, after)):
        return ""
    first, second = _white_box(base), _white_box(run)
    if first is None or second is None:
        return ""
    names = second.headline, first.headline
    if names[0] != names[1]:
        return f"another suite: {names[0]}, the baseline has {names[1]}"
    if names[0] in NAMED_SUITES and _is_random(first) != _is_random(second):
        return ""
    return "" if _stages(first) == _stages(second) else "another suite"


def _rests_on_suite(axis: str, point: Point) -> bool:
    if axis == WORST:
        return point.label in (WORST.replace("_", " "), "white_box")
    if axis == "eps_curve":
        return str(point.details.get("attack")).startswith("suite ")
    return axis == "white_box" and point.series == "suite"


def _white_box(result: Result) -> Axis | None:
    return next((axis for axis in result.axes if axis.name == "white_box"), None)


def _stages(axis: Axis) -> list[tuple[str, object]]:
    stages = [p for p in axis.points if p.series == "suite" and "attacked" in p.details]
    return [(p.label, p.details.get("attack")) for p in stages if not p.label.endswith(", twin")]


def _is_random(axis: Axis) -> bool:
    return any(point.details.get("draws_per_gradient") is not None for point in axis.points)


def _other_source(base: Result, run: Result, before: Point, after: Point) -> str:
    """Refuse attacks made on other nets, and those that are white-box for one of the two."""
    if {before.label, after.label} == {REMOVED}:
        return ""
    own, sources = (own_weights(base), own_weights(run)), (source_weights(before), source_weights(after))
    if _own_twin(before, after):
        attacked = {"the baseline": own[0] in _nets(sources[0]), "this net": own[1] in _nets(sources[1])}
    else:
        nets = _nets(sources[0]) | _nets(sources[1])
        attacked = {"the baseline": own[0] in nets, "this net": own[1] in nets}
    for whose, itself in attacked.items():
        if itself:
            return f"the source is {whose} itself"
    differ = "" not in sources and sources[0] != sources[1] and not _own_twin(before, after)
    return "another source net" if differ else ""


def _void(base: Result, run: Result, axis: str) -> str:
    if codes := failed(run, axis) or bounded(run, axis):
        return f"its {named(codes)} failed"
    codes = failed(base, axis) or bounded(base, axis)
    return f"{named(codes)} of the baseline failed" if codes else ""


def _own_twin(before: Point, after: Point) -> bool:
    """Say whether every run has a source of its own here: its sibling, or itself without its methods."""
    return {before.series, after.series} <= set(GRAY_BOX) or {before.label, after.label} == {REMOVED}


def source_weights(point: Point) -> str:
    """Give the fingerprint of the net that the attack was made on; empty where it was not kept."""
    kept = point.details.get("source_weights")
    return kept if isinstance(kept, str) else ""


def _nets(source: str) -> set[str]:
    """List the nets of an ensemble."""
    return set(source.split("+")) - {""}


def own_weights(result: Result) -> str:
    """Give the fingerprint of the evaluated net; empty where it was not kept."""
    return _digest(result, "model_weights")


def _digest(result: Result, name: str) -> str:
    """Give a digest kept with the result in hexadecimal; empty where there is none."""
    kept: npt.NDArray[Any] | None = result.arrays.get(name)
    return "" if kept is None or kept.dtype != np.uint8 or kept.size == 0 else kept.tobytes().hex()
