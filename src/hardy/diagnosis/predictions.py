"""Part ``predictions``: what is taken for what, how sure the net is of it, and which images it fails on.

Accuracies, calibration and their intervals are those of the axes ``clean``, ``per_class`` and ``calibration`` of
:mod:`hardy.evaluation`. The thresholds of the findings are Hardy's own.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hardy.diagnosis.case import Case
from hardy.diagnosis.record import Finding, Part, Severity
from hardy.evaluation import calibration, clean, per_class
from hardy.evaluation.calibration import ECE
from hardy.evaluation.context import Measured
from hardy.records import Point, Score
from hardy.stats import wilson

__all__ = ["confused_pairs", "confusion", "measure"]

PICTURES = 12  # of each kind
PAIRS = 3  # that are spoken of
OFTEN, VERY_OFTEN, LEAST = 0.05, 0.2, 5  # share of a class's images taken for another; images that it must be
SURELY = 0.1  # lower bound of that share in a problem
SMALL_GAP, GAP = 0.02, 0.05  # confidence less accuracy: worth a word, a problem
SURE = 0.9  # a confident answer
WEAK = 0.1  # accuracy of the worst class below that of all: a problem


def confusion(y: Int[Tensor, "n"], predictions: Int[Tensor, "n"], num_classes: int) -> Int[Tensor, "k k"]:
    """Count true classes (rows) by predicted classes (columns); predictions of -1 are not counted."""
    known = predictions >= 0
    counts = torch.bincount(y[known] * num_classes + predictions[known], minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def confused_pairs(counts: Int[Tensor, "k k"], most: int = 20) -> list[tuple[int, int, int]]:
    """List the pairs of classes that are taken for each other, in either direction, the most frequent first.

    Returns:
        (a, b, count) with a < b and a count above 0; of equal ones the first classes first.
    """
    both = torch.triu(counts + counts.T, diagonal=1).flatten()
    order = torch.argsort(both, descending=True, stable=True)[:most].tolist()
    k = len(counts)
    return [(i // k, i % k, int(both[i])) for i in order if both[i] > 0]


def measure(case: Case) -> Part:
    """Describe the answers to the plain images.

    Returns:
        Scores of the axes ``clean``, ``per_class`` and ``calibration`` (its curve: series ``reliability``, level: mean
        confidence), and ``confident mistakes``. Tensors: ``confusion`` (k, k), true classes in rows; ``predictions``
        and ``confidence`` (n,). For the wrong answers of which the net is surest (``wrong``) and the right ones of
        which it is least sure (``unsure``): ``... pictures`` (uint8), ``... places`` in the images given, ``... rows``
        (identities), ``... labels``, ``... predictions``, ``... confidence``.
    """
    context, n = case.context(), len(case.y)
    predictions = case.predictions()
    measured = [clean.measure(context), per_class.measure(context), calibration.measure(context)]
    axes = [each.axis for each in measured if isinstance(each, Measured)]
    confidence = case.logits().softmax(dim=1).amax(dim=1).nan_to_num(0)
    wrong = predictions != case.y
    sure = int((wrong & (confidence >= SURE)).sum())
    low, high = wilson(sure, n)
    scores = [_score(point) for axis in axes for point in axis.points] + [s for axis in axes for s in axis.scores]
    scores.append(Score(label="confident mistakes", value=sure / n, kind="error", n=n, low=low, high=high))
    counts = confusion(case.y, predictions, case.num_classes)
    tensors = {
        "confusion": counts,
        "predictions": predictions,
        "confidence": confidence,
        **_examples(case, "wrong", wrong, -confidence, confidence),
        **_examples(case, "unsure", ~wrong, confidence, confidence),
    }
    by_label = {score.label: score for score in scores}
    findings = (
        *_chance(case, by_label["clean"]),
        *_unused(case, counts),
        *_taken(case, counts),
        *_weakest(case, by_label),
        *_trust(by_label),
        *_mistakes(sure, int(wrong.sum())),
    )
    notes = [f"Not measured: {each.reason}." for each in measured if not isinstance(each, Measured)]
    return Part(
        name="predictions",
        question="What does it take for what, and how sure is it?",
        scores=tuple(scores),
        findings=findings,
        tensors={name: value.cpu() for name, value in tensors.items()},
        level_name="confidence",
        notes=(*notes, f"A confident answer is one of which the net is sure by {SURE:g} or more."),
        passes={"forward": n},
    )


def _score(point: Point) -> Score:
    return Score(label=point.label, value=point.accuracy, kind="accuracy", n=point.n, low=point.low, high=point.high)


def _examples(
    case: Case, name: str, chosen: Tensor, order: Float[Tensor, "n"], confidence: Float[Tensor, "n"]
) -> dict[str, Tensor]:
    """Keep the first images by ``order`` among those chosen; nothing where none is."""
    places = torch.argsort(order, stable=True)
    places = places[chosen[places]][:PICTURES]
    if not len(places):
        return {}
    return {
        f"{name} pictures": case.x[places].mul(255).round().to(torch.uint8),
        f"{name} places": places,
        f"{name} rows": case.rows[places],
        f"{name} labels": case.y[places],
        f"{name} predictions": case.predictions()[places],
        f"{name} confidence": confidence[places],
    }


def _chance(case: Case, score: Score) -> list[Finding]:
    """Say how accurate it is, next to guessing."""
    chance, low, high = 1 / case.num_classes, score.low or 0.0, 1.0 if score.high is None else score.high
    said = f"Right on {score.value:.1%} of {score.n} images (95 % interval {low:.1%} to {high:.1%})"
    if low <= chance:
        text = f"{said}: no better than guessing ({chance:.1%})."
        remedy = "See whether images, labels and normalisation are those that it was trained with."
        return [Finding(code="at_chance", severity="problem", text=text, remedy=remedy)]
    return [Finding(code="accuracy", severity="note", text=f"{said}.")]


def _unused(case: Case, counts: Int[Tensor, "k k"]) -> list[Finding]:
    """Name the classes that occur and are never answered."""
    missed = ((counts.sum(0) == 0) & (torch.bincount(case.y, minlength=len(counts)) > 0)).nonzero()[:, 0].tolist()
    if not missed:
        return []
    names = ", ".join(case.class_names[c] for c in missed[:10]) + (" ..." if len(missed) > 10 else "")
    text = f"{len(missed)} classes are never predicted, though images of them are there: {names}."
    remedy = "Compare the order of the classes with that of the training; balance the classes in training."
    return [Finding(code="never_predicted", severity="problem", text=text, remedy=remedy)]


def _taken(case: Case, counts: Int[Tensor, "k k"]) -> list[Finding]:
    """Name the classes that are most often taken for another."""
    wrong = counts - torch.diag(counts.diagonal())
    images = torch.bincount(case.y, minlength=len(counts))
    order = torch.argsort(wrong.flatten(), descending=True, stable=True)[: 10 * PAIRS].tolist()
    made: list[Finding] = []
    for a, b in (divmod(i, len(counts)) for i in order):
        count, of = int(wrong[a, b]), int(images[a])
        if count < LEAST or count < OFTEN * of or len(made) == PAIRS:
            continue
        low, high = wilson(count, of)
        severity: Severity = "problem" if count >= VERY_OFTEN * of and low >= SURELY else "note"
        text = (
            f"{case.class_names[a]} is taken for {case.class_names[b]}: {count} of {of} images ({count / of:.0%}, 95 % "
            f"interval {low:.0%} to {high:.0%})."
        )
        remedy = (
            "See which channels both use; more or other images of these two may part them, or hardy treat --how "
            "channel."
        )
        made.append(Finding(code="confused", severity=severity, text=text, remedy=remedy))
    return made


def _weakest(case: Case, scores: dict[str, Score]) -> list[Finding]:
    """Name the worst class where its interval, which is for all classes at once, is below the mean of the classes."""
    worst, mean = scores["worst class"], scores[per_class.BALANCED].value
    if worst.high is None or worst.high >= mean:
        return []
    name = case.class_names[int(str(worst.details["class"]))]
    severity: Severity = "problem" if mean - worst.value >= WEAK else "note"
    text = (
        f"{name} is the weakest class: right on {worst.value:.1%} of its {worst.n} images (at most {worst.high:.1%} by "
        f"a 95 % interval for all classes at once); mean of the classes {mean:.1%}."
    )
    remedy = "More or harder images of this class in training; see what it is taken for."
    return [Finding(code="weak_class", severity=severity, text=text, remedy=remedy)]


def _trust(scores: dict[str, Score]) -> list[Finding]:
    """Say whether it is surer than it may be."""
    gap, error, factor = (scores.get(name) for name in ("confidence minus accuracy", ECE, "temperature"))
    if gap is None or error is None:
        return []
    low, high = (gap.value if bound is None else bound for bound in (gap.low, gap.high))
    said = f"Its mean confidence is {abs(gap.value):.1%} {'above' if gap.value > 0 else 'below'} its accuracy"
    said += f" (expected calibration error {error.value:.1%})"
    if low <= 0 <= high or abs(gap.value) < SMALL_GAP:
        return [Finding(code="calibrated", severity="good", text=f"{said}.")] if error.value < GAP else []
    word = "overconfident" if gap.value > 0 else "underconfident"
    remedy = "Divide its logits by a temperature"
    remedy += "" if factor is None else f" (here {factor.value:.2f}, fitted on these images)"
    remedy += "; or train with label smoothing or mixup." if gap.value > 0 else "; or train with less smoothing."
    severity: Severity = "problem" if abs(gap.value) >= GAP else "note"
    return [Finding(code=word, severity=severity, text=f"{word.capitalize()}: {_lower(said)}.", remedy=remedy)]


def _mistakes(sure: int, wrong: int) -> list[Finding]:
    """Say how many mistakes are made with confidence."""
    if not sure:
        return []
    text = f"{sure} of {wrong} mistakes are made with a confidence of {SURE:g} or more."
    remedy = "Look at these images: some may carry a wrong label, others show what the net relies on."
    return [Finding(code="confident_mistakes", severity="note", text=text, remedy=remedy)]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
