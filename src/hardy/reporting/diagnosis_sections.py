"""The sections of the page of a diagnosis: each part becomes bars, charts, maps, tables and pictures."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hardy.diagnosis.record import Diagnosis, Part
from hardy.records import Score
from hardy.reporting.diagnosis_channels import channels
from hardy.reporting.diagnosis_maps import CLASSES, confusion_matrix, most_confused
from hardy.reporting.diagnosis_numbers import bars, counted, is_difference, lines, numbers_table
from hardy.reporting.diagnosis_parts import Legible, Lines, Named
from hardy.reporting.diagnosis_pictures import altered, answers, looks
from hardy.reporting.numbers import percent
from hardy.stats import wilson

__all__ = ["blocks"]

WORST = 15  # classes, layers or numbers that are shown at once
PAIRS = 20  # confused pairs that are listed
CLASS = "class"  # the series of accuracies by class
BACKGROUND = {  # series of the part and what they are
    "accuracy": "Accuracy with the background or the object taken away",
    "difference": "Against the plain images, image by image",
    "kept": "Right answers that stay right though the object is gone",
    "follows": "Answers that follow the background of another class",
    "attention": "Share of the attention map that falls on the background",
    "gradient": "Share of the gradient by the pixels that falls on the background",
}


def blocks(diagnosis: Diagnosis, part: Part) -> tuple[Named, ...]:
    """Write what a part measured; parts without a layout of their own are written by the shape of their scores."""
    layout = LAYOUTS.get(part.name, _plain)
    return tuple(layout(diagnosis, part))


def _predictions(diagnosis: Diagnosis, part: Part) -> list[Named]:
    names, made = diagnosis.class_names, list[Named]()
    single = [_renamed(s) for s in part.scores if not s.series and s.level is None]
    made += _numbers(single)
    counts = part.tensors.get("confusion")
    if counts is not None:
        made.append(("confusion", confusion_matrix(counts, names, most_confused(counts, len(names)))))
        if (pairs := _pairs(diagnosis, counts)) is not None:
            made.append(("table", pairs))
    reliability = [s for s in part.scores if s.series == "reliability"]
    if len(reliability) > 1:
        made.append(("lines", _reliability(reliability)))
    classes = sorted((s for s in part.scores if s.series == CLASS), key=lambda s: s.value)
    if classes:
        made += _class_bars(classes, names)
    for name, title, note in (
        ("wrong", "Worst images", "The wrong answers of which it is surest."),
        ("unsure", "Least sure", "The right answers of which it is least sure."),
    ):
        if (shown := answers(part, name, names, title=title, note=note)) is not None:
            made.append(("pictures", shown))
    return made


def _renamed(score: Score) -> Score:
    """Call the accuracy by its name."""
    return replace(score, label="accuracy") if score.label == "clean" else score


def _reliability(scores: Sequence[Score]) -> Lines:
    """Draw accuracy over confidence: the dotted line is a confidence that can be taken at its word."""
    return lines(
        scores,
        name="reliability",
        title="Is it right as often as it says?",
        level_name="confidence",
        y_label="accuracy (%)",
        ticks=(0.0, 0.25, 0.5, 0.75, 1.0),
        question="Accuracy of the answers of like confidence. On the dotted line it is right as often as it is sure; "
        "below it is too sure. The band is the 95 % interval.",
        diagonal=True,
    )


def _class_bars(classes: Sequence[Score], names: Sequence[str]) -> list[Named]:
    def name(score: Score) -> str:
        return names[int(str(score.details["class"]))]

    many = len(classes) > CLASSES
    worst = classes[:WORST] if many else classes
    title = f"The {WORST} weakest of {len(classes)} classes" if many else "Accuracy by class, the weakest first"
    note = "The line is the 95 % interval over the images of the class."
    return [
        (
            "bars",
            bars(
                worst, title=title, head="Class", name=name, sub=lambda score: counted(score.n, "image"), notes=[note]
            ),
        )
    ]


def _pairs(diagnosis: Diagnosis, counts: Tensor) -> Legible | None:
    """List who is most often taken for whom; None where no answer is wrong."""
    wrong, images = counts - torch.diag(counts.diagonal()), counts.sum(1)
    order = torch.argsort(wrong.flatten(), descending=True, stable=True)[:PAIRS].tolist()
    rows = []
    for a, b in (divmod(place, len(counts)) for place in order):
        count, of = int(wrong[a, b]), int(images[a])
        if count:
            names = diagnosis.class_names
            rows.append((names[a], names[b], f"{count:,} of {of:,}", _share_of(count, of)))
    heads = ("True class", "Taken for", "Images", "Share of the class")
    return Legible(title="Most frequent mistakes", heads=heads, rows=tuple(rows), folded=True) if rows else None


def _share_of(count: int, n: int) -> str:
    low, high = wilson(count, n)
    return f"{percent(count / n)} % [{percent(low)}, {percent(high)}]"


def _isolation(diagnosis: Diagnosis, part: Part) -> list[Named]:
    """Draw the curves of normal and adversarial images over the noise."""
    curves = [score for score in part.scores if score.level is not None]
    rest = [score for score in part.scores if score.level is None]
    made = list[Named]()
    if len({score.level for score in curves}) > 1:
        most = max(score.level or 0.0 for score in curves)
        drawn = lines(
            curves, name="isolation", title="Answers as noise inside the net grows", level_name=part.level_name,
            ticks=[most * i / 4 for i in range(5)], share=True, chance=1 / len(diagnosis.class_names),
            question="Bands are 95 % intervals over images. Isolated: a little noise brings adversarial images back, "
            "while normal ones stay right.",
        )  # fmt: skip
        made.append(("lines", drawn))
    return [*made, *_numbers(rest)]


def _attention(diagnosis: Diagnosis, part: Part) -> list[Named]:
    """Show the images with their maps, those it is sure of first."""
    made = list[Named]()
    for name, title in (("sure", "Where it looks when it is sure"), ("unsure", "Where it looks when it is not sure")):
        if (shown := looks(part, name, diagnosis.class_names, title=title)) is not None:
            made.append(("pictures", shown))
    return [*_plain(diagnosis, part), *made]


def _background(diagnosis: Diagnosis, part: Part) -> list[Named]:
    """Draw what is left without the background, without the object, and before another background."""
    made, chance = list[Named](), 1 / len(diagnosis.class_names)
    for series, title in BACKGROUND.items():
        scores = [score for score in part.scores if score.series == series]
        over = [score for score in scores if is_difference(score) and series != "difference"]
        scores = [score for score in scores if score not in over]
        guessing = series in ("accuracy", "kept", "follows")
        if scores:
            drawn = bars(
                scores, title=title, head="Images", name=lambda score: score.label.removeprefix("accuracy, "),
                mark=chance if guessing else None, mark_text="guessing" if guessing else "",
            )  # fmt: skip
            made.append(("bars", drawn))
        if over:
            made.append(("bars", bars(over, title=f"{title}, beyond its area", head="Images", folded=True)))
    others = replace(part, scores=tuple(score for score in part.scores if score.series not in BACKGROUND))
    shown = altered(part, title="The same images, changed")
    return [*made, *_plain(diagnosis, others), *([("pictures", shown)] if shown else [])]


def _separability(diagnosis: Diagnosis, part: Part) -> list[Named]:  # noqa: ARG001  (like the others)
    """Set clean, noisy and attacked images side by side, number by number."""
    table: dict[str, dict[str, Score]] = {}
    for score in part.scores:
        what, _, images = score.label.rpartition(", ")
        if what == score.series:
            table.setdefault(what, {})[images] = score
    columns = list(dict.fromkeys(images for row in table.values() for images in row))
    rows = {what: [row.get(images) for images in columns] for what, row in table.items()}
    beside = [score for score in part.scores if not any(score in row.values() for row in table.values())]
    first = numbers_table(rows, columns, title="The classes in the features")
    return [*([("numbers", first)] if rows else []), *_numbers(beside)]


def _numbers(scores: Sequence[Score]) -> list[Named]:
    """List single numbers, if there are any."""
    rows = {score.label: [score] for score in scores}
    return [("numbers", numbers_table(rows, ["value and 95 % interval"], title="In numbers"))] if rows else []


def _plain(diagnosis: Diagnosis, part: Part) -> list[Named]:  # noqa: ARG001  (like the others)
    """Write any part: layers as bars, strengths as lines, groups as bars, the rest as a table."""
    made, rest = list[Named](), list[Score]()
    curved: dict[tuple[object, ...], list[Score]] = {}
    for series in dict.fromkeys(score.series for score in part.scores):
        scores = [score for score in part.scores if score.series == series]
        levels = [s.level for s in scores if s.level is not None]
        if len(scores) > 1 and all("layer" in s.details for s in scores):
            made.append(
                ("bars", bars(scores, title=_capital(series), head="Layer", name=lambda s: str(s.details["layer"])))
            )
        elif len(levels) == len(scores) > 1 and len(set(levels)) == len(levels):
            curved.setdefault((*sorted(levels), scores[0].unit, scores[0].kind), []).extend(scores)
        elif series and len(scores) > 1 and len({s.unit for s in scores}) == 1:
            made.append(("bars", bars(scores, title=_capital(series), head="What")))
        else:
            rest += scores
    for i, scores in enumerate(curved.values()):
        title = part.question if len(curved) == 1 else _capital(scores[0].series)
        made.append(
            ("lines", lines(scores, name=f"{part.name}-{i}", title=title, level_name=part.level_name or "level"))
        )
    return [*_numbers(rest), *made]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


LAYOUTS: dict[str, Callable[[Diagnosis, Part], list[Named]]] = {
    "predictions": _predictions,
    "channels": channels,
    "isolation": _isolation,
    "attention": _attention,
    "background": _background,
    "separability": _separability,
}
