"""One evaluation: guards, axes, checks, record."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hardy.attacks.guards import check_eval, check_precision
from hardy.attacks.passes import sealed_rng
from hardy.attacks.state import Progress
from hardy.environment import environment
from hardy.errors import ParameterError, did_you_mean
from hardy.evaluation.adaptive import twin_of
from hardy.evaluation.axes import AXES, check_material
from hardy.evaluation.budget import Budget
from hardy.evaluation.checks import DERIVED, FULL
from hardy.evaluation.context import DRAWS, AxisProgress, Context, Measured, Source
from hardy.evaluation.fingerprint import images_digest
from hardy.evaluation.guards import guards
from hardy.evaluation.inputs import Batches, Nets, device_of, identities, images, sources_of
from hardy.evaluation.journal import Journal
from hardy.evaluation.material import Material
from hardy.evaluation.pictures import pictures
from hardy.evaluation.suite import Suite, check_suite, resolve, suite_run
from hardy.evaluation.verdicts import verdict
from hardy.evaluation.versus import versus
from hardy.ranks import Ranks, together
from hardy.results import Check, Result, Versus
from hardy.threats import Threat

__all__ = ["AXES", "evaluate"]


def evaluate(
    model: nn.Module,
    x: Tensor | Batches,
    y: Tensor | None = None,
    *,
    threat: Threat = Threat("linf", 8 / 255),  # noqa: B008  (frozen)
    axes: Sequence[str] | None = None,
    suite: Suite = "standard",
    sources: Nets = (),
    siblings: Nets = (),
    base: nn.Module | None = None,
    twin: nn.Module | None = None,
    rows: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 128,
    budget: Budget | None = None,
    material: Material = Material(),  # noqa: B008  (frozen)
    checks: Literal["derived", "full"] = "derived",
    journal: str | Path | None = None,
    keep_adversarial: bool = False,
    model_name: str = "model",
    data_name: str = "data",
    class_names: Sequence[str] = (),
    methods: Sequence[str] = (),
    training_passes: Mapping[str, float] | None = None,
    command: str = "",
    alone: bool = False,
    on_progress: Callable[[AxisProgress], None] | None = None,
) -> Result:
    """Measure a classifier on every axis of robustness, with the reasons to distrust each number.

    Where ``torch.distributed`` has been set up, its processes share the work: all must call this with the same
    arguments, each with the model and the images on its own device, and all get the same result, to the last bit where
    they compute alike (same machine type, same number of threads). ``journal`` should then be a folder that all see.

    Args:
        model: Returns logits (n, k) for pixels in [0, 1]; in eval mode, which is not switched here.
        x: Images (n, c, h, w), float in [0, 1]; or a loader of (x, y) batches.
        y: True classes (n,); None with a loader.
        threat: Norm and budget of ``white_box`` and ``transfer``.
        axes: Names of axes (``hardy.evaluation.AXES``); default all. An axis that lacks its inputs becomes a check that
            says "not_run".
        suite: Attacks of ``white_box``: "standard" (AutoAttack-standard), "quick" or "full"; or a list of names in
            ``hardy.attacks.ATTACKS``, attacks such as ``PGD(steps=100)``, and callables ``(model, x, y) -> x_adv``.
        sources: Independently trained nets for transfer, or (name, net) pairs.
        siblings: Nets made by the same method from another seed (gray-box), or (name, net) pairs.
        base: The same net before hardening: another source, named "base", and the net that the verdict
            ``Result.versus`` compares with, measured by the same protocol on every axis (which doubles the time).
        twin: A differentiable stand-in for a net with operations that let no gradient through; the attacks of the suite
            look for gradients there too and are judged on the model. Hardy's own methods bring theirs.
        rows: Identity of each image (n,), such as its place in the data set; the source of its randomness. Default: its
            place in ``x``.
        seed: Seed of everything random.
        batch_size: Rows per pass, at least 1; does not change results.
        budget: How hard the other axes try; default ``Budget()``, or with the suite "quick" ``Budget.quick()``.
        material: What some axes need besides: cue-conflict images, corrupted copies, other data.
        checks: "derived": guards and what the attacks saw; "full": more attacks, on at most 64 images still robust.
        journal: Folder for finished parts of attacks. What is found there and would come out the same is not computed
            again, so that a stopped evaluation goes on. Who made the folder removes it.
        keep_adversarial: Keep the image that ``white_box`` found for every image in ``arrays`` (``adversarial/x_adv``,
            float32; the plain image where every attack failed at once).
        model_name: For the record.
        data_name: For the record.
        class_names: For the record; default "0", "1", ...
        methods: For the record.
        training_passes: For the record: ``forward_passes`` and ``backward_passes`` per training image.
        command: For the record.
        alone: Work in this process alone, though others are in its job, which need not call this.
        on_progress: Called before every axis and as its attacks go on; with several processes by the first of them.

    Returns:
        The record. Outcomes of every image are under ``"axis/label"``; in ``arrays`` labels, predictions (-1 where the
        logits are NaN), pictures, and the digests ``images`` (16 bytes) and ``model_weights`` (8 bytes).

    Raises:
        ParameterError: train mode, unknown axis or suite, an attack that is not defined for the norm, two nets of one
            name, wrong number of class names.
        DataError: pixels outside [0, 1], labels outside the outputs, no images, weights in half precision.
        ShapeError: ``x`` is not n c h w, ``y`` is not (n,), the model does not return (n, k), or ``material`` is of
            another size.
        RankError: another process of the job has ended, or did not come within ten minutes.
    """
    began = time.perf_counter()
    names = _axis_names(axes)
    if not isinstance(threat, Threat):
        raise ParameterError(f'evaluate: threat must be a Threat, such as Threat("linf", 8 / 255); got {threat!r}.')
    if checks not in {"derived", "full"}:
        raise ParameterError(f'evaluate: checks must be "derived" or "full"; got {checks!r}.')
    check_suite(suite, threat)
    nets = sources_of(sources, siblings, base)
    for net in (model, *(source.model for source in nets), *([twin] if twin is not None else [])):
        check_eval(net, "evaluate")
        check_precision(net, "evaluate")
    x, y = images(x, y, device_of(model))
    with contextlib.nullcontext(Ranks()) if alone else together() as ranks, sealed_rng(x.device, seed):
        progress = _Reporter(on_progress if ranks.rank == 0 else None, len(names), len(x))
        found, num_classes = ranks.tell(guards(model, x, y, threat=threat))
        if class_names and len(class_names) != num_classes:
            raise ParameterError(f"evaluate: class_names must name all {num_classes} outputs; got {len(class_names)}.")
        draws = DRAWS if any(c.code == "deterministic" and c.status != "pass" for c in found) else 1
        stand_in = twin if twin is not None else twin_of(model)
        for other in nets if stand_in is None else (*nets, Source("twin", stand_in, "base")):
            _check_classes(other, x, num_classes)
        found = found if stand_in is None else tuple(map(_through_twin, found))
        label, attacks = resolve(suite, threat, num_classes=num_classes, draws=draws)
        if stand_in is not None and label in attacks:
            label = "custom"  # a single attack, once on the net and once through the twin
        plain = Context(
            model=model,
            x=x,
            y=y,
            rows=identities(rows, y),
            predictions=y,
            num_classes=num_classes,
            threat=threat,
            suite=attacks,
            suite_name=label,
            sources=nets,
            twin=stand_in,
            draws=draws,
            budget=(Budget.quick() if label == "quick" else Budget()) if budget is None else budget,
            material=material,
            seed=seed,
            batch_size=batch_size,
            ranks=ranks,
            journal=None if journal is None else Journal(Path(journal)),
            on_attack=progress.attack,
        )
        check_material(plain)
        context = plain.answered()
        missing = _measure(context, names, progress)
        found += missing + _derived(context, checks)
        verdicts, of_base = _versus(context, progress)
        arrays = {
            "labels": _array(y),
            "predictions": _array(context.predictions),
            "images": np.frombuffer(images_digest(x), np.uint8),
            "model_weights": np.frombuffer(bytes.fromhex(context.weights), np.uint8),
            **{f"{n}/{key}": _array(value) for n, m in context.seen.items() for key, value in m.arrays.items()},
            **pictures(context, context.seen),
        }
        if keep_adversarial and "white_box" in context.seen:
            arrays["adversarial/x_adv"] = _array(suite_run(context).x_adv)
    return Result(
        model=model_name,
        num_classes=num_classes,
        class_names=tuple(class_names) or tuple(str(i) for i in range(num_classes)),
        data=data_name,
        n=len(x),
        threat=threat,
        seed=seed,
        axes=tuple(measured.axis for measured in context.seen.values()),
        checks=found,
        versus=verdicts,
        methods=tuple(methods),
        training_passes=dict(training_passes or {}),
        command=command,
        environment=environment(x.device),
        seconds=time.perf_counter() - began,
        outcomes_by_point={
            f"{n}/{label}": _array(right)
            for n, outcomes in [*((n, m.outcomes) for n, m in context.seen.items()), ("base", of_base)]
            for label, right in outcomes.items()
            if right.dtype == torch.bool
        },
        arrays=arrays | {f"base/{name}": _array(v) for name, v in of_base.items() if v.dtype != torch.bool},
    )


class _Reporter:
    """Adds the axis at work, and how much stands, to the progress of its attacks."""

    def __init__(self, listener: Callable[[AxisProgress], None] | None, total: int, n: int) -> None:
        self.listener, self.total, self.n, self.axis, self.done = listener, total, n, "", 0

    def begin(self, axis: str, done: int) -> None:
        self.axis, self.done = axis, done
        self._tell(None, None)

    def attack(self, progress: Progress, standing: int | None) -> None:
        self._tell(progress, None if standing is None else (standing - progress.broken) / self.n)

    def _tell(self, progress: Progress | None, robust: float | None) -> None:
        if self.listener is not None:
            self.listener(AxisProgress(self.axis, self.done, self.total, progress, robust))


def _axis_names(axes: Sequence[str] | None) -> list[str]:
    """Check the names and put them into the order of the table."""
    if isinstance(axes, str):
        raise ParameterError(f"evaluate: axes must be a list of names; got {axes!r}. Write [{axes!r}].")
    names = list(AXES) if axes is None else list(axes)
    for name in names:
        if name not in AXES:
            raise ParameterError(f"evaluate: unknown axis {name!r}; {did_you_mean(name, AXES)}")
    if not names:
        raise ParameterError("evaluate: axes must name at least one axis; got none. Leave it out for all.")
    return [name for name in AXES if name in names]


def _measure(context: Context, names: Sequence[str], progress: _Reporter) -> tuple[Check, ...]:
    """Measure the axes into ``context.seen``; name what lacked its inputs."""
    missing: list[Check] = []
    for done, name in enumerate(names):
        progress.begin(name, done)
        measured = AXES[name](context)
        if isinstance(measured, Measured):
            context.seen[name] = measured
        else:
            missing.append(
                verdict("not_measured", "not_run", f"{measured.name}: {measured.reason}", remedy=measured.remedy)
            )
    progress.begin("checks", len(names))
    return tuple(missing)


def _derived(context: Context, checks: Literal["derived", "full"]) -> tuple[Check, ...]:
    made = [check(context, context.seen) for check in DERIVED.values()]
    for code, check in FULL.items():
        if checks == "full":
            made.append(check(context, context.seen))
        else:
            made.append(verdict(code, "not_run", 'checks="derived" attacks nothing anew', 'Use checks="full".'))
    return tuple(made)


def _check_classes(net: Source, x: Tensor, num_classes: int) -> None:
    """Demand that another net has the outputs of the model, before anything is attacked."""
    with torch.no_grad():
        z = net.model(x[:2])
    got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
    if got != (len(x[:2]), num_classes):
        raise ParameterError(
            f"evaluate: {net.name} must return logits of the model's {num_classes} classes, (n, {num_classes}); got "
            f"{got}. Compare nets of the same classes."
        )


def _through_twin(check: Check) -> Check:
    """Soften what a guard says of the net's own gradients: the attacks have those of the twin."""
    if check.code not in {"gradient_slope", "border_gradient"} or check.status != "fail":
        return check
    return dataclasses.replace(check, status="warn", evidence=f"{check.evidence}; the suite has its twin")


def _versus(context: Context, progress: _Reporter) -> tuple[tuple[Versus, ...], dict[str, Tensor]]:
    """Compare with the base, if there is one."""
    bases = [source for source in context.sources if source.kind == "base"]
    if not bases:
        return (), {}
    progress.begin("base", progress.total)
    return versus(context, bases[0], AXES)


def _array(values: Tensor) -> npt.NDArray[Any]:
    return values.cpu().numpy()
