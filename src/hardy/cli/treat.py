"""``hardy treat``."""

from dataclasses import asdict
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
    Quiet,
    Size,
    SkipBad,
    Weights,
    batch_size_of,
    console,
    device_of,
    guarded,
    in_box,
    parse_list,
    print_json,
)
from hardy.errors import ConfigError

if TYPE_CHECKING:
    from hardy.methods import Method
    from hardy.training import Recipe, TrainRecipe
    from hardy.treatment import Treatment

__all__ = ["command", "show_treatment"]


@guarded
def command(
    model: Annotated[
        str, typer.Argument(help="The patient: run folder, checkpoint, timm:NAME, torchvision:NAME, file.py:factory.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything; the same command again goes on.")],
    how: Annotated[
        str,
        typer.Option(
            "--how", help="channel, space or both (Model Doctor), rift, distill, or any method (hardy methods)."
        ),
    ] = "channel",
    preset: Annotated[
        str | None, typer.Option("--preset", help="Of the method; for Model Doctor paper or repo.")
    ] = None,
    data: Data = None,
    limit: Limit = None,
    train_limit: Annotated[int | None, typer.Option("--train-limit", help="Number of training images.")] = None,
    size: Size = None,
    download: Download = False,
    skip_bad: SkipBad = False,
    weights: Weights = None,
    masks: Annotated[
        str | None,
        typer.Option("--masks", help="Objects in the training images: folder:DIR, npz:FILE or boxes:FILE.csv."),
    ] = None,
    diagnosis: Annotated[
        Path | None, typer.Option("--diagnosis", help="Of hardy diagnose: its maps of training images are used.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Of treatment and control; default 30.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="train.KEY=VALUE or method.FIELD=VALUE, repeatable: train.lr=0.005."),
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Of the trainings, as 0,1,2: 3 or more to judge.")] = "0",
    noise_control: Annotated[
        bool, typer.Option("--noise-control", help="Also train with the noise of Model Doctor alone.")
    ] = False,
    axes: Annotated[
        str | None, typer.Option("--axes", help="What is measured; default clean,calibration,noise,white_box.")
    ] = None,
    eps: Annotated[str, typer.Option("--eps", help="Budget of white_box and rift, as 8/255 or 0.03.")] = "8/255",
    norm: Annotated[str, typer.Option("--norm", help="linf, l2 or l1.")] = "linf",
    suite: Annotated[
        str, typer.Option("--suite", help="Attacks of white_box: quick, standard, full, or names.")
    ] = "quick",
    checks: Annotated[str, typer.Option("--checks", help="derived, or full.")] = "derived",
    device: Device = "auto",
    batch_size: BatchSize = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Treat a trained net, and compare it with the same further training without the treatment.

    The patient is left as it is. Below --out are the control and the treated net as run folders, treatment.json and
    report.html. --limit is the number of test images.

    Examples:

        hardy treat runs/plain --out runs/treated --epochs 10 --seeds 0,1,2

        hardy treat runs/plain --out runs/rift --how rift --eps 2/255

        hardy treat runs/photos --out runs/space --how space --masks folder:photo_masks

        hardy treat runs/plain --out runs/lfm --how lfm --set method.p=0.3
    """
    from hardy.cli.targets import open_data, open_target, recipe_of
    from hardy.data import ArrayData
    from hardy.diagnosis import Diagnosis
    from hardy.threats import Threat, parse_budget
    from hardy.treatment import treat
    from hardy.treatment.relevance import TOP
    from hardy.treatment.run import AXES, PAGE

    recipe = recipe_of(model)
    threat = in_box(Threat(norm, parse_budget(eps)))  # type: ignore[arg-type]  # Threat checks the norm
    if checks not in {"derived", "full"}:
        raise ConfigError(f"--checks: must be derived or full; got {checks!r}.")
    method, options = _wish(how, preset, set_ or [])

    def images(split: str, count: int | None, seed: int = 0) -> ArrayData:
        return open_data(
            data,
            recipe,
            split=split,
            limit=count,
            size=size,
            seed=seed,
            model=model,
            download=download,
            skip_bad=skip_bad,
        )

    test = images("test", limit)
    where = device_of(device)
    target = open_target(model, test, device="cpu", weights=weights)
    made = treat(
        target.model,
        images("train", *_training_part(recipe, data, train_limit)),
        None if diagnosis is None else Diagnosis.read(diagnosis),
        test=test,
        val_data=images("val", None) if _has_val(recipe, data) else None,
        out=out,
        how=method,
        preset=preset if isinstance(method, str) else None,
        top=TOP.get(preset or "paper"),
        masks=masks,
        epochs=epochs,
        options=options,
        augment=recipe.data.augment if recipe is not None else ("crop", "flip"),
        seeds=_numbers(seeds),
        noise_control=noise_control,
        threat=threat,
        axes=parse_list(axes) or AXES,
        suite=suite if suite in {"quick", "standard", "full"} else list(parse_list(suite) or ()),
        checks=checks,  # type: ignore[arg-type]  # checked above
        model_name=target.name,
        device=where,
        batch_size=batch_size_of(batch_size, shape=test.shape),
        on_event=None if quiet else lambda text: console().print(text, highlight=False, markup=False, soft_wrap=True),
    )
    if json:
        print_json({"out": str(out), **made.to_json()})
    if not quiet:
        show_treatment(made)
        console().print(f"-> {out / PAGE}", highlight=False)


def show_treatment(made: "Treatment") -> None:
    """Print before, control and treated, and what it comes to."""
    from rich.table import Table

    table = Table(title=f"{made.how}: {len(made.seeds)} training{'s' if len(made.seeds) > 1 else ''}")
    for name in ("", "before", "control", "treated", "treated - before", "treated - control", ""):
        table.add_column(name, justify="left" if not name else "right")
    for gain in made.gains:
        share = gain.kind == "accuracy"
        values = (_number(value, share) for value in (gain.before, gain.control, gain.treated))
        change = _difference(gain.change, gain.change_low, gain.change_high, share)
        difference = _difference(gain.difference, gain.low, gain.high, share)
        name = gain.axis if gain.label == "clean" else f"{gain.axis}: {gain.label}"
        table.add_row(name + (" (%)" if share else ""), *values, change, difference, gain.verdict)
    console().print(table)
    console().print(made.verdict, highlight=False, markup=False, soft_wrap=True)


def _number(value: float, share: bool) -> str:
    return f"{100 * value:.1f}" if share else f"{value:.4f}"


def _difference(value: float, low: float | None, high: float | None, share: bool) -> str:
    scale, digits = (100, 1) if share else (1, 4)
    ends = "" if low is None or high is None else f" [{scale * low:+.{digits}f}, {scale * high:+.{digits}f}]"
    return f"{scale * value:+.{digits}f}{ends}"


def _wish(how: str, preset: str | None, texts: list[str]) -> "tuple[str | Method, TrainRecipe | None]":
    """Read what ``--set`` says of the training and of the method.

    Raises:
        ConfigError: no such key, or fields for a treatment without a method.
    """
    from hardy import config
    from hardy.methods import METHODS
    from hardy.training import TrainRecipe
    from hardy.treatment.arms import spec_of

    wish = spec_of(how, preset)
    data: dict[str, Any] = {}
    for text in texts:
        config.override(data, text)
    if unknown := set(data) - {"train", "method"}:
        raise ConfigError(f"--set: keys must begin with train. or method.; got {min(unknown)!r}.")
    options = None
    if "train" in data:
        options = config.build(TrainRecipe, _plain(asdict(wish.options)) | data["train"], "train.")
    if "method" not in data:
        return how, options
    if how == "distill" or wish.method is None:
        raise ConfigError(f"--set method.: {how} takes no fields of a method.")
    fields = _plain(asdict(wish.method))  # type: ignore[call-overload]  # methods are dataclasses
    name = next(key for key, cls in METHODS.items() if type(wish.method) is cls)
    method: Method = config.build(METHODS[name], fields | data["method"], "method.")
    return method, options


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Give fields as a recipe would: lists, and nothing where there is nothing."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in fields.items() if v is not None}


def _training_part(recipe: "Recipe | None", data: str | None, limit: int | None) -> tuple[int | None, int]:
    """Give how many training images to take, and the seed that chooses them: those that the patient was trained on."""
    own = recipe is not None and data in (None, recipe.data.name)
    if recipe is None or not own:
        return limit, 0
    return (recipe.data.limit if limit is None else limit), recipe.seed


def _has_val(recipe: "Recipe | None", data: str | None) -> bool:
    return recipe is None or data not in (None, recipe.data.name) or recipe.data.val_fraction > 0


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds: must be whole numbers, as 0,1,2; got {text!r}.") from None
