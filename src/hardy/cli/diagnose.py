"""``hardy diagnose``."""

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hardy.cli.common import (
    BatchSize,
    Data,
    Device,
    Download,
    Json,
    Limit,
    Out,
    Quiet,
    Seed,
    Size,
    SkipBad,
    Split,
    Weights,
    batch_size_of,
    console,
    device_of,
    guarded,
    in_box,
    parse_list,
    print_json,
)
from hardy.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hardy.data import ArrayData
    from hardy.diagnosis import Diagnosis

__all__ = ["command", "show_findings"]

FILE, PAGE = "diagnosis.json", "report.html"
COLOURS = {"problem": "red", "note": "yellow", "good": "green"}
SPLITS = ("train", "val", "test", "same")
SIGNS = ("absolute", "positive")


@guarded
def command(
    model: Annotated[
        str, typer.Argument(help="Run folder, checkpoint, timm:NAME, torchvision:NAME, file.py:factory, ensemble:A,B.")
    ],
    data: Data = None,
    split: Split = "test",
    limit: Limit = None,
    size: Size = None,
    download: Download = False,
    skip_bad: SkipBad = False,
    weights: Weights = None,
    parts: Annotated[
        str,
        typer.Option(
            "--parts",
            help="default (channels,predictions), all, or names: channels, predictions, isolation, attention, "
            "background, criticality, separability.",
        ),
    ] = "default",
    layers: Annotated[
        str | None, typer.Option("--layers", help="Names or globs, as layer4.*; hardy layers lists them. Default all.")
    ] = None,
    map_split: Annotated[
        str, typer.Option("--map-split", help="Images behind the maps of class and channel: train, val, test or same.")
    ] = "train",
    map_limit: Annotated[int, typer.Option("--map-limit", help="Number of those to choose the sure ones from.")] = 5000,
    top: Annotated[int, typer.Option("--top", help="Sure images of each class behind its map.")] = 100,
    sign: Annotated[str, typer.Option("--sign", help="Gradients: absolute, or positive.")] = "absolute",
    draws: Annotated[
        int, typer.Option("--draws", help="Draws of noise on each layer of the maps, a pass for each; 0: none.")
    ] = 0,
    sigma: Annotated[float, typer.Option("--sigma", help="Standard deviation of that noise.")] = 1.0,
    joint: Annotated[
        bool, typer.Option("--joint", help="Noise on all layers at once: fewer passes, not the paper's.")
    ] = False,
    masks: Annotated[
        str | None,
        typer.Option("--masks", help="Objects in the images, for background: folder:DIR, npz:FILE or boxes:FILE.csv."),
    ] = None,
    eps: Annotated[str, typer.Option("--eps", help="Budget of the parts that attack, as 8/255 or 0.03.")] = "8/255",
    norm: Annotated[str, typer.Option("--norm", help="linf, l2 or l1.")] = "linf",
    seed: Seed = None,
    device: Device = "auto",
    batch_size: BatchSize = "auto",
    out: Out = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find out what is wrong with a trained net: what it confuses, and which channels and layers that comes from.

    --out is a folder, by default RUN/diagnosis; it gets diagnosis.json, diagnosis.safetensors (maps and pictures) and
    report.html, in place of those of an earlier diagnosis.

    Examples:

        hardy diagnose runs/plain

        hardy diagnose runs/plain --parts all --limit 1000 --masks npz:masks.npz

        hardy diagnose timm:resnet50 --weights pretrained --data folder:photos --size 224 --layers 'net.layer4.*'
    """
    from hardy.cli.targets import open_data, open_target, recipe_of, run_of
    from hardy.data import object_masks
    from hardy.diagnosis import diagnose
    from hardy.environment import command_line
    from hardy.reporting.diagnosis_report import diagnosis_report
    from hardy.safefile import check_writable
    from hardy.threats import Threat, parse_budget

    threat = in_box(Threat(norm, parse_budget(eps)))  # type: ignore[arg-type]  # Threat checks the norm
    asked = _parts(parts)
    for option, value, known in (("--map-split", map_split, SPLITS), ("--sign", sign, SIGNS)):
        if value not in known:
            raise ConfigError(f"{option}: must be one of {', '.join(known)}; got {value!r}.")
    where = device_of(device)
    run = run_of(model)
    folder = out or (run.path / "diagnosis" if run is not None else Path("diagnosis"))
    named = [folder / FILE, (folder / FILE).with_suffix(".safetensors"), folder / PAGE]
    for file in named:
        check_writable(file)
    recipe = recipe_of(model)

    def images(part: str, count: int | None) -> "ArrayData":
        return open_data(
            data, recipe, split=part, limit=count, size=size, seed=seed or 0, model=model, download=download,
            skip_bad=skip_bad,
        )  # fmt: skip

    shown = images(split, limit)
    target = open_target(model, shown, device=where, weights=weights)
    found = None if masks is None else object_masks(shown, masks)[0]
    others = None if map_split in {"same", split} else _others(images, map_split, map_limit)
    with _progress(quiet=quiet, name=target.name) as on_progress:
        diagnosis = diagnose(
            target.model,
            shown.images(),
            shown.y,
            parts=asked,
            layers=parse_list(layers),
            class_names=shown.class_names,
            masks=found,
            map_x=None if others is None else others.images(),
            map_y=None if others is None else others.y,
            map_rows=None if others is None else others.index,
            top=top,
            sign=sign,  # type: ignore[arg-type]  # checked above
            draws=draws,
            sigma=sigma,
            joint=joint,
            threat=threat,
            rows=shown.index,
            seed=seed or 0,
            batch_size=batch_size_of(batch_size, shape=shown.shape),
            model_name=target.name,
            data_name=f"{shown.name} {shown.split}",
            map_data_name="" if others is None else f"{others.name} {others.split}",
            command=command_line(),
            on_progress=on_progress,
        )
    diagnosis.save(named[0])
    diagnosis_report(diagnosis, named[2])
    if json:
        print_json(diagnosis.to_json())
    if not quiet:
        show_findings(diagnosis)
        console().print(f"-> {named[0]}, {named[2]}", highlight=False)


def show_findings(diagnosis: "Diagnosis") -> None:
    """Print what was found in words, problems first, and how it was measured."""
    print_ = console().print
    print_(
        f"{diagnosis.model} on {diagnosis.data}, {diagnosis.n} images, {len(diagnosis.layers)} layers", highlight=False
    )
    if diagnosis.map_data:
        print_(f"maps: {diagnosis.map_n} images of {diagnosis.map_data} to choose from", highlight=False)
    for finding in diagnosis.findings:
        print_(
            f"[{COLOURS[finding.severity]}]{finding.severity}[/] {_plain(finding.text)} {_plain(finding.remedy)}",
            highlight=False,
        )
    for note in diagnosis.notes:
        print_(_plain(note), highlight=False, style="dim")


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _parts(text: str) -> Any:
    """Read the option.

    Raises:
        ConfigError: an unknown part.
    """
    from hardy.diagnosis import PARTS

    if text in {"default", "all"}:
        return text
    names = parse_list(text) or ()
    if unknown := [name for name in names if name not in PARTS]:
        raise ConfigError(f"--parts: no part {unknown[0]!r}; {did_you_mean(unknown[0], PARTS)}")
    return names


def _others(images: Any, split: str, limit: int) -> "ArrayData | None":
    """Load the images behind the maps; None where the data have no such part."""
    try:
        found: ArrayData = images(split, limit)
    except DataError as error:
        console().print(f"maps: from the images shown, as there is no {split} part ({error})", highlight=False)
        return None
    return found


@contextmanager
def _progress(*, quiet: bool, name: str) -> "Iterator[Callable[[str, int, int], None]]":
    """Show which part is measured."""
    from hardy.cli.progress import bars

    with bars(quiet=quiet) as display:
        task = display.add_task(name, total=None, note="")
        yield lambda part, done, total: display.update(task, description=f"{name} {part}", total=total, completed=done)
