"""A result as a record in the form of RobustBench's ``model_info`` files, for its leaderboard or beside it.

Croce et al. "RobustBench: a standardized adversarial robustness benchmark". NeurIPS 2021 (datasets and benchmarks).
https://arxiv.org/abs/2010.09670. Fields as in version 1.1.1 of https://github.com/RobustBench/robustbench:
``clean_acc`` of the plain images; ``autoattack_acc`` against AutoAttack-standard; ``external`` against anything else
that was tried within the threat, if it broke more; all three in percent, as text. ``unreliable`` if a check failed.
"""

from hardy.attacks.suites import suite
from hardy.errors import ParameterError
from hardy.results import Point, Result

__all__ = ["robustbench_record"]

RANKED = ("linf", "l2")  # norms that RobustBench has leaderboards for
DATA = ("cifar10", "cifar100", "imagenet")  # and data
HOLDS_STANDARD = ("standard", "full")  # suites that begin with the attacks of AutoAttack-standard
Field = str | int | bool | None


def robustbench_record(
    result: Result,
    *,
    link: str | None = None,
    name: str | None = None,
    authors: str | None = None,
    additional_data: bool | None = None,
    number_forward_passes: int | None = None,
    dataset: str | None = None,
    venue: str | None = None,
    architecture: str | None = None,
    reported: str | None = None,
    footnote: str | None = None,
) -> dict[str, Field]:
    """Put a result into the fields of RobustBench; ``hardy.safefile.write_json(path, record)`` writes it.

    Only numbers that were measured are written. Facts that nobody gave are null, to be filled in. The footnote gains
    the data and number of images, what ``external`` is, and the codes of failed checks: any of them counts, because
    each is about the net, its images or the attacks behind ``autoattack_acc``.

    Args:
        result: With the axes ``clean`` and ``white_box``, by the suite "standard" or "full"; with ``worst_case``,
            ``external`` is that of all axes.
        link: Address of the paper.
        name: Its title.
        authors: Their names, separated by commas.
        additional_data: Whether the training used more than the training set.
        number_forward_passes: Of the net, for one prediction; at least 1.
        dataset: Name of the data; by default as in the result, if it is one of RobustBench's.
        venue: Where and when it was published ("ICLR 2024").
        architecture: Of the net ("WideResNet-28-10").
        reported: Robust accuracy that the paper claims, in percent ("57.3").
        footnote: Remark.

    Raises:
        ParameterError: an axis is missing, another suite, a norm without a leaderboard, a net that is random at test
            time, or a fact out of range.
    """
    clean, standard, worst = _measured(result)
    if number_forward_passes is not None and number_forward_passes < 1:
        raise ParameterError(f"robustbench: number_forward_passes must be at least 1; got {number_forward_passes}.")
    if reported is not None and not _is_percent(reported):
        raise ParameterError(f'robustbench: reported must be percent, such as "57.3"; got {reported!r}.')
    known = result.data.partition(" ")[0]
    failed = [check.code for check in result.checks if check.status == "fail"]
    notes = [footnote, f"Measured by Hardy on {result.n} images of {result.data}."]
    record: dict[str, Field] = {
        "link": link,
        "name": name,
        "authors": authors,
        "additional_data": additional_data,
        "number_forward_passes": number_forward_passes,
        "dataset": dataset or (known if known in DATA else None),
        "venue": venue,
        "architecture": architecture,
        "eps": _eps(result),
        "clean_acc": _percent(clean),
        "reported": reported,
        "autoattack_acc": _percent(standard),
    }
    if worst.accuracy < standard.accuracy:
        record["external"] = _percent(worst)
        axes = worst.details.get("axes")
        what = f"per-image worst case over {axes}" if axes else f"all attacks of white_box, suite {worst.label}"
        notes.append(f"External: {what}.")
    if failed:
        notes.append(f"Checks that failed: {', '.join(failed)}.")
    return record | {"footnote": " ".join(note for note in notes if note), "unreliable": bool(failed)}


def _measured(result: Result) -> tuple[Point, Point, Point]:
    """Give the points of the plain images, of AutoAttack-standard alone, and of everything that was tried."""
    threat = result.threat
    if threat.norm not in RANKED:
        raise ParameterError(f"robustbench: the norm must be one of {', '.join(RANKED)}; got {threat.norm!r}.")
    clean, whole = result.point("clean"), result.point("white_box")
    if whole.label not in HOLDS_STANDARD:
        raise ParameterError(
            f"robustbench: white_box must hold AutoAttack-standard; got the suite {whole.label!r}. "
            'Use suite="standard".'
        )
    if any(point.details.get("draws_per_gradient") for point in result.axis("white_box").points):
        raise ParameterError(
            "robustbench: the net must give one answer; got one that is random at test time, which RobustBench does "
            "not rank. Evaluate it with its randomness frozen."
        )
    labels = suite("standard", norm=threat.norm, num_classes=result.num_classes)
    standard = [result.point("white_box", label) for label in labels]
    tried = [whole]
    if any(axis.name == "worst_case" for axis in result.axes):
        tried.append(result.point("worst_case"))
    last = standard[-1]  # its accuracy is against all before it too; a twin or more attacks may follow
    return clean, last, min(tried, key=lambda point: point.accuracy)


def _eps(result: Result) -> str:
    """Write the budget as RobustBench does: "8/255", "0.5"."""
    text = str(result.threat).partition(" ")[2]
    return text if "/" in text else repr(result.threat.eps)


def _percent(point: Point) -> str:
    return f"{100 * point.accuracy:.2f}"


def _is_percent(text: str) -> bool:
    try:
        return 0 <= float(text) <= 100
    except ValueError:
        return False
