"""The page of a diagnosis: its record becomes text, bars, charts and pictures."""

from collections.abc import Sequence

from hardy import __version__
from hardy.diagnosis.record import Diagnosis, Finding, Severity
from hardy.reporting.diagnosis_numbers import counted
from hardy.reporting.diagnosis_parts import DiagnosisPage, Fact, Section, Word
from hardy.reporting.diagnosis_sections import blocks
from hardy.reporting.numbers import duration, join

__all__ = ["diagnosis_page"]

TITLES = {
    "predictions": "Predictions",
    "channels": "Classes and channels",
    "isolation": "Adversarial isolation",
    "attention": "Where it looks",
    "background": "Background",
    "criticality": "Critical layers",
    "separability": "Separability",
}
QUESTIONS = {
    "predictions": "What does it take for what, and how sure is it?",
    "channels": "Which channels does each class use?",
    "isolation": "Do attacked images come back when a little noise is added inside the net?",
    "attention": "Where does it look?",
    "background": "Does it rely on the background?",
    "criticality": "Which layers can it not do without, and which hardly matter?",
    "separability": "Are the classes apart in its features?",
}
WORDS: dict[Severity, tuple[str, str, str]] = {  # status of the page's style, symbol, word
    "problem": ("fail", "\N{BALLOT X}", "problem"),
    "note": ("info", "i", "note"),
    "good": ("pass", "\N{CHECK MARK}", "good"),
}
NOT_MEASURED = "Not measured: "  # begins the note of a diagnosis on a part that was left out
OPTIONS = {
    "top": "images of a class behind its map, at most",
    "sign": "gradients",
    "draws": "draws of noise",
    "joint": "noise on all layers at once:",
}


def diagnosis_page(diagnosis: Diagnosis) -> DiagnosisPage:
    """Write everything the page says."""
    measured = {part.name for part in diagnosis.parts}
    order = [*TITLES, *(part.name for part in diagnosis.parts if part.name not in TITLES)]
    words = [
        _word(finding, name)
        for name in order
        if name in measured
        for finding in diagnosis.part(name).findings
    ]  # fmt: skip
    words.sort(key=lambda word: [status for status, _, _ in WORDS.values()].index(word.status))
    missing = tuple((TITLES[name], _reason(diagnosis, name)) for name in TITLES if name not in measured)
    problems = sum(word.status == "fail" for word in words)
    return DiagnosisPage(
        title=f"What is wrong with {diagnosis.model}, and what may help?",
        subtitle=f"{diagnosis.data}, {counted(diagnosis.n, 'image')}, {len(diagnosis.class_names):,} classes",
        lead=_lead(words, missing),
        alarm=counted(problems, "problem") if problems else "",
        words=tuple(word for word in words if word.status != "pass"),
        good=tuple(word for word in words if word.status == "pass"),
        facts=_facts(diagnosis),
        sections=tuple(_section(diagnosis, name) for name in order if name in measured),
        missing=missing,
        command=diagnosis.command,
        environment=tuple(Fact(key=key, value=value) for key, value in sorted(diagnosis.environment.items())),
        version=__version__,
    )


def _section(diagnosis: Diagnosis, name: str) -> Section:
    part = diagnosis.part(name)
    spent = [f"{count:,} {way} passes" for way, count in part.passes.items()]
    cost = ", ".join([duration(part.seconds), *spent])
    return Section(
        anchor=f"part-{name}",
        title=TITLES.get(name, name),
        question=part.question,
        words=tuple(_word(finding, "") for finding in part.findings),
        blocks=blocks(diagnosis, part),
        notes=(*part.notes, f"It took {cost} (passes are summed over images)." if spent else f"It took {cost}."),
    )


def _word(finding: Finding, part: str) -> Word:
    status, symbol, word = WORDS[finding.severity]
    return Word(
        code=finding.code, status=status, symbol=symbol, word=word, text=finding.text, remedy=finding.remedy,
        href=f"#part-{part}" if part else "", where=TITLES.get(part, part),
    )  # fmt: skip


def _lead(words: Sequence[Word], missing: Sequence[tuple[str, str]]) -> str:
    """Say in a sentence or two what was found."""
    counts = {status: sum(word.status == status for word in words) for status in ("fail", "info")}
    looked = "in what was looked at" if missing else "anywhere"
    if counts["fail"]:
        start = f"{counted(counts['fail'], 'problem')} {'was' if counts['fail'] == 1 else 'were'} found"
        start += f", and {counted(counts['info'], 'thing')} worth knowing." if counts["info"] else "."
        return f"{start} The problems come first, each with what to try."
    if counts["info"]:
        return f"No problem was found {looked}; {counted(counts['info'], 'thing')} worth knowing."
    return f"Nothing was found {looked}."


def _facts(diagnosis: Diagnosis) -> tuple[Fact, ...]:
    """Say what was asked."""
    layers = diagnosis.layers
    shown = join(list(layers)) if len(layers) <= 3 else f"{len(layers)}, from {layers[0]} to {layers[-1]}"
    noisy = bool(diagnosis.options.get("draws", 0))
    options = ", ".join(
        f"{OPTIONS.get(key, key)} {_option(value)}"
        for key, value in diagnosis.options.items()
        if noisy or key not in ("sigma", "joint")
    )
    facts = [
        ("Model", diagnosis.model),
        ("Data", f"{diagnosis.data}, {counted(diagnosis.n, 'image')}, {len(diagnosis.class_names):,} classes"),
        (
            "Maps made on",
            f"{diagnosis.map_data}, {counted(diagnosis.map_n, 'image')}" if diagnosis.map_n else "the same images",
        ),
        ("Layers looked at", shown or "none"),
        ("Settings", options),
        ("Seed", str(diagnosis.seed)),
        ("It took", duration(diagnosis.seconds)),
        *(("Note", note) for note in diagnosis.notes if not note.startswith(NOT_MEASURED)),
    ]
    return tuple(Fact(key=key, value=value) for key, value in facts if value)


def _option(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _reason(diagnosis: Diagnosis, name: str) -> str:
    """Say why a part is not there."""
    starts = tuple(f"{NOT_MEASURED}{name}{mark}" for mark in ",.")
    for note in diagnosis.notes:
        if note.startswith(starts):
            return f"Not measured{note.removeprefix(f'{NOT_MEASURED}{name}')}"
    return f"{QUESTIONS[name]} Not asked for: parts, or --parts, takes {name}."
