"""``hardy evaluate``."""

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from hardy.cli.common import (
    BatchSize,
    Data,
    Device,
    Json,
    Limit,
    Out,
    Quiet,
    Seed,
    Size,
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
from hardy.errors import ConfigError, did_you_mean

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
    from hardy.cli.material import budget_of, material_of
    from hardy.cli.outcome import hold, show, without_images, write_record
    from hardy.cli.progress import evaluation_progress
    from hardy.cli.targets import open_data, open_target, recipe_of
    from hardy.environment import command_line
    from hardy.evaluation import evaluate

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
    chosen_budget = budget_of(budget or [], quick=attacks == "quick")
    if robustbench is not None and attacks not in {"standard", "full"}:
        raise ConfigError("--robustbench: needs AutoAttack-standard; use --suite standard or full.")
    where = device_of(device)
    images = open_data(
        data,
        recipe,
        split=split,
        limit=limit if limit is not None else (wish.limit if wish else None),
        size=size,
        seed=seed or 0,
        model=model,
    )
    target = open_target(model, images, device=where, weights=weights)
    material = material_of(
        images, recipe, data=data, cue_conflict=cue_conflict, corrupted=corrupted, reference=mce_reference,
        other=other or (), device=where,
    )  # fmt: skip
    named = {"sources": source, "siblings": sibling, "base": [base] if base else [], "twin": [twin] if twin else []}
    others = {
        key: [(t.name, t.model) for t in (open_target(text, images, device=where) for text in texts or ())]
        for key, texts in named.items()
    }
    path = out or (target.folder.result_file if target.folder is not None else Path("result.json"))
    data_name = f"{images.name} {images.split}"
    if not overwrite:
        _keep_more(path, target.name, data_name, len(images), chosen_threat, asked)
    question = {"model": model, "data": data_name, "images": len(images), "threat": str(chosen_threat)}
    question |= {"axes": list(asked), "suite": str(attacks), "checks": checks, "seed": seed or 0}
    question |= {"--budget": budget, "--source": source, "--sibling": sibling, "--base": base, "--twin": twin}
    with (
        _kept(path.with_suffix(".partial"), question, resume=resume, overwrite=overwrite) as journal,
        evaluation_progress(quiet=quiet, name=target.name) as on_progress,
    ):
        result = evaluate(
            target.model,
            images.images().to(where),
            images.y.to(where),
            threat=chosen_threat,
            axes=asked,
            suite=attacks,
            budget=chosen_budget,
            material=material,
            checks=_one_of("--checks", checks, ("derived", "full")),
            sources=others["sources"],
            siblings=others["siblings"],
            base=others["base"][0][1] if others["base"] else None,
            twin=others["twin"][0][1] if others["twin"] else None,
            seed=seed or 0,
            batch_size=batch_size_of(batch_size, shape=images.shape),
            rows=images.index.to(where),
            journal=journal,
            keep_adversarial=save_adversarial is not None,
            model_name=target.name,
            data_name=data_name,
            class_names=images.class_names,
            methods=target.methods,
            command=command_line(),
            on_progress=on_progress,
        )
        result = without_images(result, save_adversarial)
        result.save(path)
    if robustbench is not None:
        write_record(result, robustbench)
    if json:
        print_json(result.to_json())
    if not quiet:
        show(result)
        console().print(f"-> {path}", highlight=False)
    hold(result, _floors(fail_under or []))


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


@contextmanager
def _kept(folder: Path, question: dict[str, Any], *, resume: bool, overwrite: bool) -> "Iterator[Path]":
    """Keep finished images in a folder until the evaluation is written.

    Raises:
        ConfigError: it holds those of a stopped evaluation, and neither --resume nor --overwrite is given, or the
            stopped one asked something else.
    """
    import json

    from hardy.evaluation.journal import Journal
    from hardy.safefile import write_json

    note = folder / "question.json"
    if resume and not overwrite and note.is_file():
        before = json.loads(note.read_text(encoding="utf-8"))
        if other := [key for key in question if before.get(key) != question[key]]:
            raise ConfigError(
                f"{folder}: the stopped evaluation had another {', '.join(other)} ({before.get(other[0])!r}). "
                "Go on with the same, write elsewhere with --out, or begin anew with --overwrite."
            )
    if folder.is_dir() and not resume:
        if not overwrite:
            raise ConfigError(
                f"{folder}: an evaluation was stopped here. Go on with --resume, or begin anew with --overwrite."
            )
        Journal(folder).clear()
    write_json(note, question)
    try:
        yield folder
    except BaseException:
        if not any(folder.glob("*.npz")):
            Journal(folder).clear()
        else:
            console().print(f"Finished images are kept in {folder}: go on with --resume.", highlight=False)
        raise
    Journal(folder).clear()


def _keep_more(path: Path, model: str, data: str, n: int, threat: "Threat", axes: tuple[str, ...]) -> None:
    """Refuse to replace a result that says something this evaluation will not.

    Raises:
        ConfigError: ``path`` holds another model, or axes, images or a threat that would be lost.
    """
    from hardy.results import Result

    if not path.exists():
        return
    old = Result.read(path)
    lost = [axis.name for axis in old.axes if axis.name not in axes]
    reasons = [f"the model {old.model}"] if old.model != model else []
    reasons += [f"the axes {', '.join(lost)}"] if lost else []
    reasons += [f"{old.n} images of {old.data}"] if (old.data, old.n) != (data, n) else []
    reasons += [f"the threat {old.threat}"] if old.threat != threat else []
    if reasons:
        raise ConfigError(
            f"{path}: holds an evaluation with {' and '.join(reasons)}, which would be lost. "
            "Write elsewhere with --out, or give --overwrite."
        )


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
