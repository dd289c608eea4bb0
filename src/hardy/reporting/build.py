"""One page from run folders: first plain records, then the template. The same runs give the same bytes."""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from hardy import __version__
from hardy.reporting.attack_tables import attack_groups, worst_case
from hardy.reporting.beyond import sections
from hardy.reporting.cells import SYMBOLS, cell
from hardy.reporting.charts import swatch
from hardy.reporting.compare import DESCRIPTIONS, Paired, Score, Topic, axis_names, scores, topics
from hardy.reporting.curves import ATTACKED, curves, point_tables, training_charts
from hardy.reporting.data import Cell, CheckLine, Column, Legend, ReportData, RunRow, UnderAttack
from hardy.reporting.numbers import ABSENT, duration, join, ratio
from hardy.reporting.pictures import gallery
from hardy.reporting.profile import profile
from hardy.reporting.runs import Run, read_runs
from hardy.reporting.sections import attack_checks, check_lines, checks_summary, definitions, per_class, provenance
from hardy.reporting.statements import TOO_SHORT
from hardy.reporting.transfer import transfer_matrix
from hardy.reporting.trust import WORST, caution, void
from hardy.reporting.versus import versus_rows
from hardy.reporting.words import seeds_label, verdict
from hardy.safefile import write_text

__all__ = ["collect", "render", "report"]


def report(
    runs: Sequence[str | Path],
    out: str | Path = "report.html",
    *,
    base: str | Path | None = None,
    title: str | None = None,
) -> Path:
    """Write one self-contained HTML page about runs; several runs make a comparison.

    The page needs no network and no JavaScript. Differences are paired over images, and only computed where both runs
    answered the same question about the same images.

    Args:
        runs: Run folders or ``result.json`` files.
        out: Where to write the page.
        base: The run that the others are compared with: one of ``runs``, its name, or a further run; the first if None.
        title: Heading of the page; made from the names of the runs if None.

    Returns:
        Where the page is.

    Raises:
        ParameterError: no runs, or one given twice.
        DataError: a run cannot be read, or the page cannot be written.
    """
    page = render(collect(read_runs(runs, base), title=title))
    write_text(Path(out), page)
    return Path(out)


def collect(runs: Sequence[Run], *, title: str | None = None) -> ReportData:
    """Compute everything the page says; the first run is the baseline."""
    columns = topics(runs)
    table = scores(runs, columns)
    lead, statements = verdict(table)
    axes = definitions(runs)
    anchors = {axis.name: f"#{axis.anchor}" for axis in axes}
    checks = check_lines(runs)
    return ReportData(
        title=title or _title(runs),
        subtitle=_subtitle(runs),
        seeds=seeds_label(runs),
        alarm=_alarm(checks),
        lead=lead,
        statements=statements,
        columns=tuple(Column(title=t.title, sub=_condition(table, t), href=anchors[t.axis]) for t in columns),
        rows=tuple(_row(row, run, runs[0], i, anchors) for i, (row, run) in enumerate(zip(table, runs, strict=True))),
        base=runs[0].name if len(runs) > 1 else "",
        table_notes=_notes(table),
        fired=tuple(line for line in checks if line.status in ("fail", "warn")),
        checks_summary=checks_summary(runs),
        legends=_legends(runs, "key"),
        attack=_under_attack(runs),
        profile=profile(runs, anchors),
        section_legends=_legends(runs, "section-key"),
        sections=sections(runs),
        point_tables=point_tables(runs, [n for n in axis_names(runs) if n in ATTACKED]),
        per_class=per_class(runs),
        training=training_charts(runs),
        training_legends=_legends(runs, "training-key"),
        checks=checks,
        definitions=axes,
        provenance=provenance(runs),
        version=__version__,
    )


def render(data: ReportData) -> str:
    """Fill the template. Everything is escaped; only the charts drawn here are inserted as they are."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(page=data) + "\n"


def _under_attack(runs: Sequence[Run]) -> UnderAttack | None:
    """Collect what attackers did; None where nothing was attacked."""
    galleries = [gallery(run, 8 if len(runs) == 1 else 4) for run in runs]
    found = UnderAttack(
        checks=attack_checks(runs),
        curves=curves(runs, [n for n in axis_names(runs) if n in ATTACKED]),
        groups=attack_groups(runs),
        worst=worst_case(runs),
        versus=versus_rows(runs),
        transfer=transfer_matrix(runs),
        galleries=tuple(each for each in galleries if each is not None),
    )
    parts = (found.curves, found.groups, found.worst, found.versus, found.transfer, found.galleries)
    return found if any(parts) else None


def _legends(runs: Sequence[Run], name: str) -> tuple[Legend, ...]:
    """Show how each run is drawn; one run needs no legend."""
    if len(runs) == 1:
        return ()
    swatches = [swatch(i, name=f"{name}-{i}") for i in range(len(runs))]
    return tuple(
        Legend(name=run.name, swatch=drawn, is_base=run is runs[0]) for run, drawn in zip(runs, swatches, strict=True)
    )


def _title(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return f"How robust is {runs[0].name}?"
    others = join([run.name for run in runs[1:]]) if len(runs) <= 5 else f"{len(runs) - 1} runs"
    return f"{others}, compared with {runs[0].name}"


def _subtitle(runs: Sequence[Run]) -> str:
    models, data = (
        list(dict.fromkeys(values)) for values in zip(*((r.result.model, r.result.data) for r in runs), strict=True)
    )
    facts = [
        models[0] if len(models) == 1 else f"{len(models)} models",
        data[0] if len(data) == 1 else f"{len(data)} data sets",
    ]
    return f"{', '.join(facts)}, {len(axis_names(runs))} axes of robustness"


def _alarm(checks: Sequence[CheckLine]) -> str:
    """Say beside the title that something is wrong, if so."""
    counts = {
        word: sum(line.status == status for line in checks) for status, word in (("fail", "failed"), ("warn", "warned"))
    }
    parts = [f"{count} {'check' if count == 1 else 'checks'} {word}" for word, count in counts.items() if count]
    return ", ".join(parts)


def _condition(table: Sequence[Sequence[Score]], topic: Topic) -> str:
    """Name the condition behind a column, where it is the same for all runs."""
    points = [score.point for row in table for score in row if score.topic == topic and score.point]
    if topic.gray_box:
        return "same method, other seed"
    if len({point.label for point in points}) != 1:
        return "conditions differ"
    if topic.axis == WORST:
        return "of all that was tried"
    return f"{points[0].label} suite" if "suite" in points[0].details else points[0].label


def _row(row: Sequence[Score], run: Run, base: Run, number: int, anchors: dict[str, str]) -> RunRow:
    spent, before = run.train_seconds, base.train_seconds
    notes = []
    if spent is not None:
        if run is not base and before and before >= TOO_SHORT:
            notes.append(ratio(spent, before))
        notes.append(f"{len(run.metrics)} epochs")
    return RunRow(
        name=run.name,
        href=f"#run-{number}",
        methods=run.methods,
        is_base=number == 0,
        cells=tuple(_cell(base, score, anchors[score.topic.axis]) for score in row),
        training=ABSENT if spent is None else duration(spent),
        training_note=", ".join(notes),
    )


def _cell(base: Run, score: Score, href: str) -> Cell:
    result, axis = score.run.result, score.topic.axis
    warning = caution(base.result, result, axis)
    return cell(score.topic.title, score.point, score.difference, href, void=void(result, axis), warning=warning)


def _notes(table: Sequence[Sequence[Score]]) -> tuple[str, ...]:
    notes = ["Accuracy in %, with the 95 % Wilson interval over images."]
    found = [score for row in table for score in row if isinstance(score.difference, Paired)]
    judged = sum(score.topic.axis not in DESCRIPTIONS for score in found)
    if found:
        notes.append(
            "Below it the difference to the baseline in points, with the 95 % bootstrap interval over the images: "
            f"{SYMBOLS['gain']} gain or {SYMBOLS['loss']} loss where the interval excludes 0 and an exact sign test "
            "agrees, after Holm's correction for the differences in this table, "
            f"else {SYMBOLS['unclear']} no clear difference. They speak of these nets, not of other seeds."
        )
    if judged < len(found):
        notes.append("Texture tells what a net relies on; it counts neither as gain nor as loss.")
    if judged >= 10:
        lucky = max(1, round(0.05 * judged))
        notes.append(
            f"{judged} differences are judged here: without the correction about {lucky} of them would look clear by "
            "chance alone."
        )
    doubtful = list(
        dict.fromkeys(s.topic.title for s in found if isinstance(s.difference, Paired) and not s.difference.verified)
    )
    if doubtful:
        notes.append(f"On {join(doubtful)} the source nets could not be verified to be the same.")
    return tuple(notes)
