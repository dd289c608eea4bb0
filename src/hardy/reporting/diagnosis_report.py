"""Write the page of a diagnosis: one self-contained HTML file. The same diagnosis gives the same bytes."""

from pathlib import Path

import jinja2

from hardy.diagnosis.record import Diagnosis
from hardy.reporting.diagnosis_page import diagnosis_page
from hardy.safefile import write_text

__all__ = ["diagnosis_html", "diagnosis_report"]


def diagnosis_report(diagnosis: Diagnosis, out: str | Path) -> None:
    """Write one self-contained HTML page about a diagnosis; it needs no network and no JavaScript.

    Args:
        diagnosis: What ``hardy.diagnose`` returned, or ``Diagnosis.read`` read.
        out: Where to write the page.

    Raises:
        DataError: the page cannot be written.
    """
    write_text(Path(out), diagnosis_html(diagnosis))


def diagnosis_html(diagnosis: Diagnosis) -> str:
    """Fill the template. Everything is escaped; only the charts drawn here are inserted as they are."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("diagnosis.html.j2").render(page=diagnosis_page(diagnosis)) + "\n"
