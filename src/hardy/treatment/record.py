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
        over_noise: The same with the noise of Model Doctor alone as the control, if that was trained.
        notes: What to know about it, in sentences.
    """

    model: nn.Module
    how: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    gains: tuple[Gain, ...]
    folder: Path
    over_noise: tuple[Gain, ...] = ()
    notes: tuple[str, ...] = ()

    def gain(self, axis: str, label: str | None = None) -> Gain | None:
        """Give one comparison, that of the axis' headline by default; None where it was not measured."""
        return next((g for g in self.gains if g.axis == axis and label in (None, g.label)), None)

    @property
    def verdict(self) -> str:
        """Say in a few sentences whether the patient is better."""
        clean = self.gain("clean")
        said = [] if clean is None else [_sentence(clean, self.how)]
        noise = next((g for g in self.over_noise if g.axis == "clean"), None)
        if noise is not None:
            said.append(f"Against its noise alone: {_signed(noise)}.")
        said += [text for g in self.gains if g.axis != "clean" and (text := _other(g))]
        classes = [g for g in self.gains if g.axis == "clean" and g is not clean]
        for word in ("better", "worse"):
            if named := [f"{g.label.removeprefix('class ')} ({_signed(g)})" for g in classes if g.verdict == word]:
                said.append(f"Classes that are {word} than after the control: {', '.join(named)}.")
        if unclear := [_named(g) for g in self.gains if g.axis != "clean" and g.verdict == "unclear"]:
            said.append(f"No difference to the control shown on {', '.join(unclear)}.")
        if len(self.seeds) < ENOUGH:
            count = "One training" if len(self.seeds) == 1 else f"{len(self.seeds)} trainings"
            said.append(
                f"{count}: intervals are over images and speak of these nets only; take {ENOUGH} seeds or more to "
                "judge the treatment."
            )
        return " ".join([*said, *self.notes])

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
            "gains_over_noise": [dataclasses.asdict(gain) for gain in self.over_noise],
        }


def _named(gain: Gain) -> str:
    return f"{gain.axis}: {gain.label}" if gain.axis == "calibration" else gain.axis


def _sentence(clean: Gain, how: str) -> str:
    """Say what became of clean accuracy."""
    words = {
        ("better", "better"): "It is better than before, and than the same training without the treatment.",
        (
            "better",
            "unclear",
        ): "It is better than the same training without the treatment; whether than before is open.",
        ("better", "worse"): "It is worse than before, though less than after the same training without the treatment.",
        ("unclear", "better"): "It is better than before, but not shown to be better than the same training without "
        "the treatment.",
        ("worse", "better"): "It is better than before, but worse than the same training without the treatment.",
        ("worse", "unclear"): "It is worse than the same training without the treatment.",
        ("worse", "worse"): "It is worse than before, and than the same training without the treatment.",
    }
    return (
        f"Clean accuracy: {100 * clean.before:.1f} % before, {100 * clean.control:.1f} % after the control, "
        f"{100 * clean.treated:.1f} % after {how}: {_changed(clean)} against before, {_signed(clean)} against the "
        "control. " + words.get((clean.verdict, clean.against_before), "The treatment is not shown to change it.")
    )


def _other(gain: Gain) -> str:
    """Say what became of another number, where it differs from the control."""
    if gain.verdict not in ("better", "worse"):
        return ""
    more = {
        ("better", "worse"): f"; against before worse, {_changed(gain)}",
        ("better", "unclear"): f"; against before {_changed(gain)}, unclear",
        ("worse", "better"): f"; against before better, {_changed(gain)}",
    }
    tail = more.get((gain.verdict, gain.against_before), "")
    return f"{gain.verdict.capitalize()} than the control on {_named(gain)} ({_signed(gain)}){tail}."


def _signed(gain: Gain) -> str:
    """Write the difference to the control with its interval, accuracies in points."""
    return _with_interval(gain, gain.difference, gain.low, gain.high)


def _changed(gain: Gain) -> str:
    """Write the difference to the patient likewise."""
    return _with_interval(gain, gain.change, gain.change_low, gain.change_high)


def _with_interval(gain: Gain, value: float, low: float | None, high: float | None) -> str:
    scale, unit = (100.0, " points") if gain.kind == "accuracy" else (1.0, "")
    digits = 1 if scale == 100.0 else 3
    text = f"{scale * value:+.{digits}f}"
    if low is None or high is None:
        return f"{text}{unit}"
    return f"{text} [{scale * low:+.{digits}f}, {scale * high:+.{digits}f}]{unit}"
