"""``hardy demo``."""

from pathlib import Path
from typing import Annotated

import typer

from hardy.cli.common import Device, Json, Quiet, console, device_of, guarded, print_json

__all__ = ["command"]


@guarded
def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("hardy-demo"),
    device: Device = "cpu",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the whole story on embedded data: train nine small nets, evaluate four, write one page.

    Examples:

        hardy demo

        hardy demo --out /tmp/demo --json
    """
    import torch

    from hardy.cli.progress import bars
    from hardy.demo import ARMS, DemoProgress, demo
    from hardy.results import Result

    torch.set_num_threads(1)  # nets this small are fastest on one core, and on a busy machine by far
    if not quiet:
        console().print(
            "Training nine small nets on scikit-learn's digits (four recipes, two seeds each, one source of attacks),\n"
            "then evaluating four of them. About a minute on two cores.",
            highlight=False,
        )
    with bars(quiet=quiet) as display:
        task = display.add_task("starting", total=None, note="")
        said = ""

        def show(p: DemoProgress) -> None:
            nonlocal said
            display.update(task, description=p.what, total=round(p.total), completed=round(p.done))
            head = p.what.partition(":")[0]
            if head != said and not quiet and display.disable:
                said = head
                console().print(f"[{p.done / p.total:4.0%}] {head}", highlight=False, markup=False)

        page = demo(out, device=device_of(device), on_progress=show)
    results = {arm: Result.read(out / arm / "result.json") for arm in ARMS}
    if json:
        print_json({"report": str(page), "runs": {arm: str(out / arm) for arm in ARMS}})
    if not quiet:
        for arm, result in results.items():
            console().print(
                f"{arm:>24}: clean {result.accuracy('clean'):.1%}, {result.threat} white-box "
                f"{result.accuracy('white_box'):.1%}, transfer {result.accuracy('transfer'):.1%}",
                highlight=False,
            )
        console().print("One pair of seeds: an illustration, not evidence.", highlight=False)
        console().print(f"Open {page.resolve().as_uri()}", highlight=False, soft_wrap=True)
