"""``hardy methods``."""

import dataclasses
from typing import Annotated, Any

import typer

from hardy.cli.common import Json, answer, guarded, print_json
from hardy.errors import ConfigError, did_you_mean

__all__ = ["command"]


@guarded
def command(
    name: Annotated[str | None, typer.Argument(help="One method, for its whole card.")] = None, json: Json = False
) -> None:
    """List the methods, or show the card of one: idea, defaults, presets, where it attaches, deviations, our figures.

    Examples:

        hardy methods

        hardy methods lfm
    """
    from hardy.methods import CARDS, METHODS, PRESETS, changed_fields, measured

    if name is not None and name not in CARDS:
        raise ConfigError(f"methods: no method {name!r}; {did_you_mean(name, CARDS)}")
    chosen = [name] if name is not None else list(CARDS)
    rows = [
        {
            **dataclasses.asdict(CARDS[n]),
            "defaults": {
                f.name: "(required)" if f.default is dataclasses.MISSING else f.default
                for f in dataclasses.fields(METHODS[n])
            },
            "presets": {preset: changed_fields(spec) for preset, spec in PRESETS.get(n, {}).items()},
            "measured": measured(n),
        }
        for n in chosen
    ]
    if json:
        print_json(rows[0] if name is not None else rows)
    elif name is not None:
        _show_card(rows[0])
    else:
        from rich.table import Table

        table = Table("name", "idea", "test time", "paper")
        for row in rows:
            table.add_row(row["name"], row["summary"], "stays" if row["live"] else "gone", row["paper"])
        answer().print(table)


def _show_card(row: dict[str, Any]) -> None:
    out = answer()
    out.print(f"[bold]{row['name']}[/]  {row['paper']}  {row['url']}")
    out.print(row["summary"], highlight=False)
    out.print(f"\nattaches to: {row['attaches']}", highlight=False)
    out.print(f"at test time: {'stays' if row['live'] else 'gone'}", highlight=False)
    out.print(f"defaults: {_keys(row['defaults'])}", highlight=False, markup=False)
    out.print(f"  {row['defaults_from']}", highlight=False, markup=False)
    for preset, changed in row["presets"].items():
        out.print(f"preset {preset!r}: {_keys(changed) or 'the defaults'}", highlight=False, markup=False)
    for kind in ("measured", "deviations", "notes"):
        if row[kind]:
            out.print(f"\n{kind}:")
            for line in row[kind]:
                out.print(f"  - {line}", highlight=False, markup=False)


def _keys(fields: dict[str, object]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in fields.items())
