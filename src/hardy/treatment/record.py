"""What a treatment leaves: the treated net, and whether it is better than its control."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hardy.treatment.verdict import ENOUGH, Gain

__all__ = ["FORMAT", "Treatment"]

FORMAT = 1  # of treatment.json


@dataclass(frozen=True, kw_only=True, eq=False)
class Treatment:
    """A finished treatment.

    Attributes:
        model: The net treated with the first seed, in eval mode, on the CPU.
        how: What was done, in a word.
        methods: ``repr`` of the methods of the treatment.
        seeds: Of the trainings; each has a control of its own.
        gains: Before, control and treated, number by number.
        folder: Where all lies: ``before``, ``control/seed<k>``, ``<how>/seed<k>``, ``treatment.json``, ``report.html``.
        notes: What to know about it.
    """

    model: nn.Module
    how: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    gains: tuple[Gain, ...]
    folder: Path
    notes: tuple[str, ...] = ()

    def gain(self, axis: str, label: str | None = None) -> Gain | None:
        """Give one comparison, that of the axis' headline by default; None where it was not measured."""
        return next((g for g in self.gains if g.axis == axis and label in (None, g.label)), None)

    @property
    def verdict(self) -> str:
        """Say in a few sentences whether the patient is better."""
        clean = self.gain("clean")
        said = [] if clean is None else [_sentence(clean, self.how)]
        main = [g for g in self.gains if g.axis != "clean"]
        classes = [g for g in self.gains if g.axis == "clean" and g is not clean]
        for word in ("better", "worse"):
            if found := [f"{_named(g)} ({_signed(g)})" for g in main if g.verdict == word]:
                said.append(f"{word.capitalize()} on {', '.join(found)}.")
            if named := [f"{g.label.removeprefix('class ')} ({_signed(g)})" for g in classes if g.verdict == word]:
                said.append(f"Classes that are {word}: {', '.join(named)}.")
        if unclear := [_named(g) for g in main if g.verdict == "unclear"]:
            said.append(f"No difference shown on {', '.join(unclear)}.")
        if len(self.seeds) < ENOUGH:
            count = "One training" if len(self.seeds) == 1 else f"{len(self.seeds)} trainings"
            said.append(
                f"{count}: intervals are over images and speak of these nets only; take {ENOUGH} seeds or more to "
                "judge the treatment."
            )
        return " ".join(said)

    def to_json(self) -> dict[str, Any]:
        """Give the content of ``treatment.json``; fractions are in [0, 1]."""
        return {
            "format": FORMAT,
            "how": self.how,
            "methods": list(self.methods),
            "seeds": list(self.seeds),
            "verdict": self.verdict,
            "notes": list(self.notes),
            "gains": [dataclasses.asdict(gain) for gain in self.gains],
        }


def _named(gain: Gain) -> str:
    return f"{gain.axis}: {gain.label}" if gain.axis == "calibration" else gain.axis


def _sentence(clean: Gain, how: str) -> str:
    words = {
        "better": "is better than",
        "worse": "is worse than",
        "unclear": "is not shown to be better than",
        "description": "differs from",
    }
    return (
        f"Clean accuracy: {100 * clean.before:.1f} % before, {100 * clean.control:.1f} % after the control, "
        f"{100 * clean.treated:.1f} % after {how}; the treatment {words[clean.verdict]} the same training without it "
        f"({_signed(clean)})."
    )


def _signed(gain: Gain) -> str:
    """Write a difference with its interval, accuracies in points."""
    scale, unit = (100.0, " points") if gain.kind == "accuracy" else (1.0, "")
    digits = 1 if scale == 100.0 else 3
    text = f"{scale * gain.difference:+.{digits}f}"
    if gain.low is None or gain.high is None:
        return f"{text}{unit}"
    return f"{text} [{scale * gain.low:+.{digits}f}, {scale * gain.high:+.{digits}f}]{unit}"
