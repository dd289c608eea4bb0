"""Write docs/methods.md and docs/recipes.md from the code; a test fails where the committed pages differ.

python docs/generate.py
"""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from hardy.methods import CARDS, METHODS, PRESETS, changed_fields, measured
from hardy.training import DataRecipe, EvaluateRecipe, ModelRecipe, Recipe, TrainRecipe

HERE = Path(__file__).parent
KINDS = {"layer": "works inside the net", "input": "changes the batch", "loss": "changes the objective"}


def attributes(cls: type) -> dict[str, str]:
    """Read the ``Attributes:`` section of a docstring: name to text."""
    text = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    joined = re.sub(r"\n {8,}", " ", text)
    found = (line.strip().partition(": ") for line in joined.splitlines() if line.strip())
    return {name: meaning for name, _, meaning in found}


def fields(cls: Any) -> str:
    """Make a table of the fields of a dataclass: name, default, meaning."""
    said = attributes(cls)
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for f in dataclasses.fields(cls):
        default = "required" if f.default is dataclasses.MISSING else f"`{toml(f.default)}`"
        if f.default_factory is not dataclasses.MISSING:
            default = f"`{toml(f.default_factory())}`"
        rows.append(f"| `{f.name}` | {default} | {said[f.name]} |")
    return "\n".join(rows)


def toml(value: Any) -> str:
    """Write a default as TOML; None is a key left out."""
    if value is None:
        return "(left out)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "{}" if value == {} else str(value)


def changes(spec: Any) -> str:
    """Say what a preset changes, as TOML."""
    return ", ".join(f"`{name} = {toml(value)}`" for name, value in changed_fields(spec).items())


def methods_page() -> str:
    """Make the cards of all methods."""
    parts = [
        "# Methods\n\nGenerated from the code by `python docs/generate.py`. Each is a table `[[methods]]` of a\n"
        "recipe, a class of `hardy.methods`, and one file. Sites are module names, globs, calls (`layer1.0.relu#1`),\n"
        "what enters a module (`layer2@input`), words that some methods know (`pooled`, `before_stage1`, `residual`:\n"
        "see the card), or stages (`stem`, `stage2`, `bottom`, `top`, `all`); `hardy layers\n"
        "MODEL` lists stages and modules, [nets.md](nets.md) what each method takes on every family of CNNs. A key\n"
        "`preset` takes the fields of a preset, which further keys change. Figures under *Measured* are our own.",
    ]
    for name, card in CARDS.items():
        cls = METHODS[name]
        lines = [
            f"## {name}",
            card.summary,
            f"`hardy.methods.{cls.__name__}` {KINDS[card.kind]}; at test time it "
            f"{'stays' if card.live else 'is gone'}. It takes {card.attaches}.",
            f"Paper: {card.paper}, <{card.url}>.",
            fields(cls),
            f"Defaults: {card.defaults_from}",
        ]
        if card.twin:
            lines.append(f"Differentiable twin under attack: {card.twin}")
        if presets := PRESETS.get(name):
            rows = [f"| `{p}` | {changes(spec) or 'the defaults'} |" for p, spec in presets.items()]
            lines.append("\n".join(["| preset | changes |", "|---|---|", *rows]))
        if said := measured(name):
            lines.append("Measured:\n\n" + "\n".join(f"- {sentence}" for sentence in said))
        for title, items in {"Deviations": card.deviations, "Notes": card.notes}.items():
            if items:
                lines.append(f"{title}:\n\n" + "\n".join(f"- {item}" for item in items))
        parts.append("\n\n".join(lines))
    return "\n\n".join(parts) + "\n"


def recipes_page() -> str:
    """Make the reference of recipes."""
    tables = {
        "(top level)": Recipe,
        "[model]": ModelRecipe,
        "[data]": DataRecipe,
        "[train]": TrainRecipe,
        "[evaluate]": EvaluateRecipe,
    }
    intro = (
        "# Recipes\n\nGenerated from the code by `python docs/generate.py`. A recipe is a TOML file; unknown keys\n"
        'and wrong types are errors. Numbers may be fractions (`"8/255"`). `--set key.sub=value` overrides a key.\n'
        "Methods are tables `[[methods]]` with `name` and the fields in [methods.md](methods.md); `--set methods=[]`\n"
        "takes all out."
    )
    return intro + "\n\n" + "\n\n".join(f"## {title}\n\n{fields(cls)}" for title, cls in tables.items()) + "\n"


PAGES = {"methods.md": methods_page, "recipes.md": recipes_page}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (HERE / name).write_text(make(), encoding="utf-8")
