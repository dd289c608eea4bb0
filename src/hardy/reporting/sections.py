"""The rest of the page: checks, accuracy by class, definitions, and how every number can be made again."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hardy.reporting.attack_tables import stages
from hardy.reporting.compare import Topic, axis_names, axis_title, find_axis
from hardy.reporting.curves import detail
from hardy.reporting.data import CheckLine, ClassRow, Definition, Heat, PerClass, Provenance
from hardy.reporting.numbers import ABSENT, duration, interval, join, percent, threat
from hardy.reporting.runs import Run
from hardy.reporting.trust import REMOVED, failed, speaks_of_attacks
from hardy.results import Axis, Check
from hardy.stats import wilson

__all__ = ["attack_checks", "check_lines", "checks_summary", "definitions", "per_class", "provenance"]

ORDER = ("fail", "warn", "not_run", "pass")
SYMBOLS = {"fail": "\N{BALLOT X}", "warn": "!", "not_run": "\N{EN DASH}", "pass": "\N{CHECK MARK}"}
WORDS = {"fail": "failed", "warn": "warning", "not_run": "not run", "pass": "passed"}
MOST_CLASSES = 40
MEANING = {
    "white_box": "The attacks of the suite run one after the other, each on the images that the ones before left; "
    "right is what all of them failed to break.",
    "eps_curve": "An image broken at a smaller eps counts as broken at every larger one. At the eps of the threat the "
    "suite of white-box counts, elsewhere one attack: an upper bound.",
    "minimal_norm": "Attacks without a budget look for the nearest adversarial image; every distance is an upper bound "
    "of the true one, so the accuracies are upper bounds too.",
    "transfer": "The images are made on the source alone; the attacker asks the attacked net nothing. "
    f"'{REMOVED}' is the net itself without what works at test time.",
    "query": "A query is every point whose output the search looked at; right is what it had not broken after so many.",
    "calibration": "Confidence is the largest softmax probability. The error of few images is biased upwards, so is "
    "its interval.",
    "ood": "The area is the chance that an image of the other data is scored as stranger than an evaluated one.",
    "corruptions": "Means are over corruptions and severities. Generated frost is no photograph of ice, and the random "
    "numbers are other ones: compare nets measured alike, not with figures on published corrupted images.",
    "occlusion": "Where the fills disagree, the net fails because of the patch, not because of what it hides.",
    "texture": "A description: more is neither better nor worse. Of the high pass a larger cutoff leaves less, of the "
    "low pass a smaller one.",
    "frequency": "The attack is confined to one band of frequencies; an attacker is not, so that none of these is a "
    "robustness. Where the random control is low too, any change in that band fools the net.",
    "weights": "The net's weights change, not the images alone. What a search found is an upper bound.",
    "certified": "What is proved of the smoothed classifier, which gives the net's most frequent answer under noise; "
    "not of the net.",
    "worst_case": "Joined image by image from all axes with an adversary, at most at the eps of the threat; nothing is "
    "attacked anew. It is an upper bound like its parts, and the lowest one.",
}


def check_lines(runs: Sequence[Run]) -> tuple[CheckLine, ...]:
    """List the findings of all checks, the worst first; runs with the same finding share a line."""
    found: dict[tuple[str, str, str, str, str], list[str]] = {}
    for run in runs:
        for c in run.result.checks:
            found.setdefault((c.status, c.code, c.evidence, c.remedy, c.anchor), []).append(run.name)
    lines = [
        CheckLine(
            code=code, status=status, symbol=SYMBOLS[status], word=WORDS[status],
            runs="all runs" if len(names) == len(runs) > 1 else join(names),
            evidence=evidence, remedy=remedy, anchor=_help(anchor) if status != "pass" else "",
        )
        for (status, code, evidence, remedy, anchor), names in found.items()
    ]  # fmt: skip
    return tuple(sorted(lines, key=lambda line: ORDER.index(line.status)))


def _help(anchor: str) -> str:
    return anchor if not anchor or "#" in anchor else f"docs/checks.md#{anchor}"


def checks_summary(runs: Sequence[Run]) -> tuple[str, ...]:
    """Count what passed, and name what was not run: silence is not a pass."""
    checks = [check for run in runs for check in run.result.checks]
    if not checks:
        return ("No check was made: nothing here says whether the numbers can be trusted.",)
    counts = {status: sum(check.status == status for check in checks) for status in ORDER}
    nets = f" over {len(runs)} runs" if len(runs) > 1 else ""
    lines = [
        f"{counts['pass']} of {len(checks)} checks{nets} passed; {counts['fail']} failed, {counts['warn']} warned."
    ]
    missing = list(dict.fromkeys(check.code for check in checks if check.status == "not_run"))
    if missing:
        lines.append(f"Not run, so not passed: {join(missing)}.")
    without = [run.name for run in runs if not run.result.checks]
    if without:
        lines.append(f"Without any check: {join(without)}.")
    return tuple(lines)


def attack_checks(runs: Sequence[Run]) -> str:
    """Count what the checks of the attacks found; what failed or warned is named with its run."""
    found = [(check, run) for run in runs for check in run.result.checks if speaks_of_attacks(check.code)]
    if not found:
        return "No check looked into these attacks."
    counts = {status: sum(check.status == status for check, _ in found) for status in ORDER}
    parts = [f"{counts['pass']} passed"]
    for status, word in (("fail", "failed"), ("warn", "warned")):
        if counts[status]:
            parts.append(f"{counts[status]} {word} ({_whose(runs, [c for c in found if c[0].status == status])})")
    parts += [f"{counts['not_run']} {'was' if counts['not_run'] == 1 else 'were'} not run"] if counts["not_run"] else []
    return f"Of {len(found)} checks of these attacks, {join(parts)}."


def _whose(runs: Sequence[Run], found: Sequence[tuple[Check, Run]]) -> str:
    """Name checks, each with its runs where there are several."""
    codes: dict[str, list[str]] = {}
    for check, run in found:
        codes.setdefault(check.code, []).append(run.name)
    if len(runs) == 1:
        return join(list(codes))
    return "; ".join(
        f"{code} of {'all runs' if len(names) == len(runs) else join(names)}" for code, names in codes.items()
    )


def per_class(runs: Sequence[Run]) -> PerClass | None:
    """Compute accuracy by class, clean and white-box; None where labels or outcomes were not kept."""
    topics = (Topic(axis="clean", title="clean"), Topic(axis="white_box", title="white-box"))
    names = runs[0].result.class_names
    shares: list[list[float | None]] = []
    groups, heads = [], []
    counts = _counts(runs[0])
    for run in runs:
        columns = [
            (f"{t.title} (void)" if failed(run.result, t.axis) else t.title, s)
            for t in topics
            if (s := _by_class(run, t)) is not None
        ]
        if columns and run.result.class_names == names and _counts(run) == counts:
            groups.append((run.name, len(columns)))
            heads += [title for title, _ in columns]
            shares += [share for _, share in columns]
    if not shares or counts is None:
        return None
    order = list(range(len(names)))
    note = _class_note(counts)
    if len(order) > MOST_CLASSES:
        order = sorted(order, key=lambda k: share if (share := shares[0][k]) is not None else 2.0)[:MOST_CLASSES]
        note += f" Of {len(names)} classes, the {MOST_CLASSES} worst ones for {groups[0][0]} ({heads[0]}) are shown."
    rows = [
        ClassRow(name=names[k], count=str(counts[k]), cells=tuple(_heat(column[k]) for column in shares)) for k in order
    ]
    return PerClass(groups=tuple(groups), heads=tuple(heads), rows=tuple(rows), note=note)


def _labels(run: Run) -> npt.NDArray[Any] | None:
    labels = run.result.arrays.get("labels")
    usable = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels) == run.result.n
    return labels if usable and len(run.result.class_names) == run.result.num_classes else None


def _counts(run: Run) -> list[int] | None:
    labels = _labels(run)
    return None if labels is None else [int(np.sum(labels == k)) for k in range(run.result.num_classes)]


def _by_class(run: Run, topic: Topic) -> list[float | None] | None:
    labels, point = _labels(run), topic.select(run.result)
    if labels is None or point is None:
        return None
    right = run.result.outcomes_by_point.get(f"{topic.axis}/{point.label}")
    if right is None or right.shape != labels.shape:
        return None
    own = [right[labels == k] for k in range(run.result.num_classes)]
    return [float(each.mean()) if len(each) else None for each in own]


def _heat(share: float | None) -> Heat:
    return Heat(text=ABSENT, tint=0) if share is None else Heat(text=percent(share), tint=round(10 * share))


def _class_note(counts: list[int]) -> str:
    present = sorted(count for count in counts if count)
    if not present:
        return "No image has a known label."
    typical = present[len(present) // 2]
    low, high = wilson(round(0.8 * typical), typical)
    bounds = interval(low, high)
    return f"With {typical} images of a class, the 95 % interval around 80 % is {bounds}: read single rows with care."


def definitions(runs: Sequence[Run]) -> tuple[Definition, ...]:
    """Say for every axis what it asks and what was done, with the settings that its points share."""
    found = []
    for number, name in enumerate(axis_names(runs)):
        axes = [axis for run in runs if (axis := find_axis(run.result, name))]
        shown = {
            point.label + (f" ({point.series})" if point.series and point.series not in point.label else ""): None
            for axis in axes
            for point in axis.points
        }
        conditions = f"Conditions: {'; '.join(shown)}. Headline: {axes[0].headline}."
        passes: dict[str, int] = {}
        for point in axes[0].points:
            for kind, count in point.passes.items():
                passes[kind] = passes.get(kind, 0) + count
        budget = [f"{kind} {count:,}" for kind, count in passes.items()]
        done = [MEANING[name]] if name in MEANING else []
        done += [conditions, *_attacks(axes), *_settings([p for axis in axes for p in axis.points])]
        done += [f"Passes spent on {runs[0].name}: {', '.join(budget)}."] if budget else []
        found.append(
            Definition(
                anchor=f"axis-{number}", title=axis_title(name), name=name, question=axes[0].question, done=tuple(done)
            )
        )
    return tuple(found)


def _attacks(axes: Sequence[Axis]) -> list[str]:
    """Write the attacks of a suite with all their settings."""
    found = dict.fromkeys(f"{p.label}: {p.details.get('attack')}" for axis in axes for p in stages(axis))
    return [f"Attacks: {'; '.join(found)}."] if found else []


def _settings(points: Sequence[Any]) -> list[str]:
    """Name the details that have one value in all points that have them."""
    values: dict[str, set[str]] = {}
    for point in points:
        for key, value in point.details.items():
            if value is not None:
                values.setdefault(key, set()).add(detail(key, value))
    common = [f"{key.replace('_', ' ')} {next(iter(found))}" for key, found in values.items() if len(found) == 1]
    return [f"Settings: {', '.join(common)}."] if common else []


def provenance(runs: Sequence[Run]) -> tuple[Provenance, ...]:
    """Say for every run how it was made and measured."""
    found = []
    for number, run in enumerate(runs):
        result = run.result
        facts = [
            ("Model", result.model),
            ("Methods", ", ".join(result.methods) or "none"),
            ("Data", f"{result.data}, {result.n} images, {result.num_classes} classes"),
            ("Threat", threat(result.threat)),
            ("Seed of the evaluation", str(result.seed)),
            ("Evaluation took", duration(result.seconds)),
        ]
        if run.train_seconds is not None:
            facts.append(("Training took", f"{duration(run.train_seconds)}, {len(run.metrics)} epochs"))
        if result.training_passes:
            counts = (f"{result.training_passes.get(f'{way}_passes', 0):g}" for way in ("forward", "backward"))
            facts.append(("Forward / backward passes per training image", " / ".join(counts)))
        training, evaluation = sorted(run.environment.items()), sorted(result.environment.items())
        both = training == evaluation
        environments = [("Environment", training)] if both else [("Training", training), ("Evaluation", evaluation)]
        found.append(
            Provenance(
                anchor=f"run-{number}", name=run.name, facts=tuple(facts), command=result.command, recipe=run.recipe,
                environments=tuple((title, tuple(items)) for title, items in environments if items),
            )
        )  # fmt: skip
    return tuple(found)
