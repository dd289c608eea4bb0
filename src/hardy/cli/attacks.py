"""``hardy attacks``."""

import dataclasses

from hardy.cli.common import Json, answer, guarded, print_json

__all__ = ["command"]


@guarded
def command(json: Json = False) -> None:
    """List the attacks and their defaults, and the suites made of them.

    Examples:

        hardy attacks

        hardy attacks --json
    """
    from hardy.attacks import ATTACKS, CARDS, SUITES

    rows = [
        {**dataclasses.asdict(card), "norms": list(ATTACKS[name]().norms), "defaults": repr(ATTACKS[name]())}
        for name, card in CARDS.items()
    ]
    if json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table("name", "idea", "norms", "paper")
    for row in rows:
        table.add_row(row["name"], row["summary"], " ".join(row["norms"]), row["paper"])
    answer().print(table)
    suites = Table("suite", "attacks", title="hardy evaluate --suite", title_justify="left")
    for name, summary in SUITES.items():
        suites.add_row(name, summary)
    answer().print(suites)
