"""``hardy evaluate``."""

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

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
    console,
    device_of,
    guarded,
    in_box,
    parse_list,
    print_json,
)
from hardy.cli.launch import check_processes, launch, rank
from hardy.errors import ConfigError, RankError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hardy.evaluation.suite import Suite
    from hardy.threats import Norm, Threat
    from hardy.training import Recipe
    from hardy.training.recipe import EvaluateRecipe

__all__ = ["command"]

USED_BY = {  # options that one axis uses
    "--cue-conflict": "texture",
    "--corrupted": "corruptions",
    "--mce-reference": "corruptions",
    "--other": "ood",
}
NO_ACCURACY = ("calibration", "ood")  # axes whose headline is another number


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
    axes: Annotated[
        str | None,
        typer.Option(
            "--axes",
            help="Names of axes (the README lists them), or all. Default the recipe's, or all.",
        ),
    ] = None,
    eps: Annotated[
        str | None, typer.Option("--eps", help="Budget, as 8/255 or 0.03; default the recipe's, or 8/255.")
    ] = None,
    norm: Annotated[str | None, typer.Option("--norm", help="linf (default), l2 or l1.")] = None,
    threat: Annotated[
        str | None, typer.Option("--threat", help="linf:8/255, or a preset such as cifar10-linf.")
    ] = None,
    weights: Weights = None,
    suite: Annotated[
        str | None,
        typer.Option("--suite", help="standard (AutoAttack's), quick, full, or attacks: pgd,square. Default standard."),
    ] = None,
    source: Annotated[list[str] | None, typer.Option("--source", help="Net to transfer from, repeatable.")] = None,
    sibling: Annotated[list[str] | None, typer.Option("--sibling", help="Same method, other seed; repeatable.")] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="The same net without the methods: attacked alike, and which is better?"),
    ] = None,
    twin: Annotated[
        str | None, typer.Option("--twin", help="A differentiable stand-in, where the net lets no gradient through.")
    ] = None,
    checks: Annotated[
        str, typer.Option("--checks", help="derived, or full: more attacks on what survived.")
    ] = "derived",
    budget: Annotated[
        list[str] | None,
        typer.Option("--budget", help="How hard an axis tries: NAME=VALUE, as severities=1,3,5; repeatable."),
    ] = None,
    cue_conflict: Annotated[
        str | None,
        typer.Option("--cue-conflict", help="For texture: images in conflict; a folder, a .npz file, or shapes."),
    ] = None,
    corrupted: Annotated[
        str | None, typer.Option("--corrupted", help="For corruptions: cifar-c:DIR or imagenet-c:DIR.")
    ] = None,
    mce_reference: Annotated[
        str | None,
        typer.Option(
            "--mce-reference", help="For corruptions: alexnet, or a run or result that the mCE is relative to."
        ),
    ] = None,
    other: Annotated[
        list[str] | None, typer.Option("--other", help="For ood: data of none of the classes, as --data; repeatable.")
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option("--fail-under", help="AXIS=SHARE: exit 1 if the accuracy is below, or void; repeatable."),
    ] = None,
    robustbench: Annotated[
        Path | None, typer.Option("--robustbench", help="Write a record (JSON) with the fields of RobustBench.")
    ] = None,
    seed: Seed = None,
    device: Device = "auto",
    devices: Annotated[int, typer.Option("--devices", help="Local processes, a GPU or some cores each.")] = 1,
    batch_size: BatchSize = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped evaluation.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an evaluation that asked more, or drop a stopped one.")
    ] = False,
    save_adversarial: Annotated[
        Path | None,
        typer.Option(
            "--save-adversarial",
            help="Save what white_box found (.npz: x_adv, y, margin, attacks, broken_by: number of the attack, or "
            "-1 robust, -2 wrong before).",
        ),
    ] = None,
    out: Out = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model on every axis of robustness, with checks that distrust the numbers.

    A run folder is evaluated on its own test images, and gets result.json and result.npz. An evaluation there with
    other axes, images or another threat is kept unless --overwrite is given.

    Examples:

        hardy evaluate runs/lfm --source runs/plain-1 --sibling runs/lfm-1

        hardy evaluate runs/lfm --axes clean,white_box --suite quick

        hardy evaluate timm:resnet18 --weights my.safetensors --data folder:photos --size 224 --eps 2/255
    """
    from hardy.cli.material import budget_of
    from hardy.cli.measured import Job, measured
    from hardy.cli.outcome import hold, show, write_record
    from hardy.cli.targets import recipe_of, run_of
    from hardy.environment import command_line
    from hardy.safefile import check_writable

    recipe = recipe_of(model)
    chosen_threat = _threat(threat, norm, eps, recipe)
    wish = recipe.evaluate if recipe is not None else None
    needs: dict[str, tuple[str, ...]] = {"--save-adversarial": ("white_box",)} if save_adversarial is not None else {}
    if robustbench is not None:
        needs["--robustbench"] = ("clean", "white_box")
    given = {
        "--cue-conflict": cue_conflict,
        "--corrupted": corrupted,
        "--mce-reference": mce_reference,
        "--other": other,
    }
    needs |= {option: (USED_BY[option],) for option, value in given.items() if value}
    asked = _asked(axes, wish, fail_under=fail_under or [], needs=needs)
    attacks = _attacks(suite or (wish.suite if wish else "standard"), chosen_threat)
    if robustbench is not None and attacks not in {"standard", "full"}:
        raise ConfigError("--robustbench: needs AutoAttack-standard; use --suite standard or full.")
    where = device_of(device)
    check_processes(devices, device=where)
    folder = run_of(model)
    path = out or (folder.result_file if folder is not None else Path("result.json"))
    named = [path, path.with_suffix(".npz"), path.with_suffix(".partial"), save_adversarial, robustbench]
    files = [each.resolve() for each in named if each is not None]
    if len(set(files)) < len(files):
        raise ConfigError(
            f"--out, --save-adversarial, --robustbench: must be different files; {path} is written with "
            f"{named[1]} beside it. Choose other names."
        )
    for each in filter(None, (path, save_adversarial, robustbench)):
        check_writable(each)
    job = Job(
        model=model,
        data=data,
        split=split,
        limit=limit if limit is not None else (wish.limit if wish else None),
        size=size,
        download=download,
        skip_bad=skip_bad,
        weights=weights,
        axes=asked,
        threat=chosen_threat,
        suite=attacks,
        budget=budget_of(budget or [], quick=attacks == "quick"),
        budget_texts=budget,
        checks=_one_of("--checks", checks, ("derived", "full")),
        source=source,
        sibling=sibling,
        base=base,
        twin=twin,
        cue_conflict=cue_conflict,
        corrupted=corrupted,
        mce_reference=mce_reference,
        other=other,
        seed=seed or 0,
        device=where,
        batch_size=batch_size,
        resume=resume,
        overwrite=overwrite,
        save_adversarial=save_adversarial,
        path=path,
        command=command_line(),
        quiet=quiet,
    )
    if devices > 1:
        with _say_how_to_go_on(path):
            result = launch(measured, job, processes=devices)
    else:
        result = measured(job)
    if rank() > 0:
        return
    if robustbench is not None:
        write_record(result, robustbench)
    if json:
        print_json(result.to_json())
    if not quiet:
        show(result)
        console().print(f"-> {path}", highlight=False)
    hold(result, _floors(fail_under or []))


@contextmanager
def _say_how_to_go_on(path: Path) -> "Iterator[None]":
    """Where a process died, it could not say itself what is kept."""
    try:
        yield
    except RankError:
        folder = path.with_suffix(".partial")
        if any(folder.glob("*.npz")):
            console().print(f"Finished images are kept in {folder}: go on with --resume.", highlight=False)
        raise


def _asked(
    axes: str | None, wish: "EvaluateRecipe | None", *, fail_under: list[str], needs: dict[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """Give the axes: those of the option, else those of the recipe, else all.

    Raises:
        ConfigError: an unknown axis, or another option needs one that is not there.
    """
    from hardy.evaluation import AXES

    asked = tuple(AXES) if axes == "all" else parse_list(axes) or (wish.axes if wish else None) or tuple(AXES)
    if unknown := [axis for axis in asked if axis not in AXES]:
        raise ConfigError(f"--axes: no axis {unknown[0]!r}; {did_you_mean(unknown[0], AXES)}")
    if missing := [axis for axis in _floors(fail_under) if axis not in asked]:
        raise ConfigError(f"--fail-under: {missing[0]} is not measured; --axes has {', '.join(asked)}.")
    if other := [axis for axis in _floors(fail_under) if axis in NO_ACCURACY]:
        raise ConfigError(f"--fail-under: {other[0]} is no accuracy; name another axis.")
    for option, needed in needs.items():
        if lacking := [axis for axis in needed if axis not in asked]:
            raise ConfigError(f"{option}: needs the axis {lacking[0]}; add it to --axes.")
    return tuple(asked)


def _attacks(text: str, threat: "Threat") -> "Suite":
    """Read the name of a suite, or attacks named one by one.

    Raises:
        ConfigError: no such suite or attack.
        ParameterError: an attack that is not defined for the norm.
    """
    from hardy.attacks import ATTACKS, SUITES
    from hardy.evaluation.suite import check_suite

    names = parse_list(text) or ()
    if len(names) > 1 and (suites := [name for name in names if name in SUITES]):
        raise ConfigError(
            f"--suite: {suites[0]} is a suite and stands alone; name attacks to combine: {', '.join(ATTACKS)}."
        )
    if text not in SUITES and (unknown := [name for name in names or (text,) if name not in ATTACKS]):
        raise ConfigError(
            f"--suite: no suite or attack {unknown[0]!r}; {did_you_mean(unknown[0], [*SUITES, *ATTACKS])}"
        )
    chosen: Suite = text if text in SUITES else names
    check_suite(chosen, threat)
    return chosen


def _one_of(option: str, value: str, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise ConfigError(f"{option}: must be one of {', '.join(known)}; got {value!r}.")
    return value


def _floors(texts: list[str]) -> dict[str, float]:
    floors = {}
    for text in texts:
        axis, sep, value = text.partition("=")
        try:
            floors[axis] = float(value)
        except ValueError:
            sep = ""
        if not sep or not 0 <= floors[axis] <= 1:
            raise ConfigError(f"--fail-under: must be AXIS=SHARE with a share in [0, 1]; got {text!r}.")
    return floors


def _threat(preset: str | None, norm: str | None, eps: str | None, recipe: "Recipe | None") -> "Threat":
    from hardy.threats import Threat, parse_budget, parse_threat

    if preset is not None:
        if norm is not None or eps is not None:
            raise ConfigError("--threat: already says norm and budget; leave out --norm and --eps.")
        return in_box(parse_threat(preset))
    own = recipe.evaluate if recipe is not None else None
    chosen = Threat(
        cast("Norm", norm or (own.norm if own else "linf")),
        parse_budget(eps) if eps is not None else (own.eps if own else 8 / 255),
    )
    return in_box(chosen)
