"""One evaluation as ``hardy evaluate`` runs it: in this process alone, or in each of several."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hardy.errors import ConfigError

if TYPE_CHECKING:
    from hardy.cli.targets import Target
    from hardy.data import ArrayData
    from hardy.evaluation import Budget
    from hardy.evaluation.suite import Suite
    from hardy.results import Result
    from hardy.threats import Threat

__all__ = ["Job", "measured"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked: the options, read and checked as far as that goes without data and nets; can be pickled."""

    model: str
    data: str | None
    split: str
    limit: int | None
    size: int | None
    download: bool
    skip_bad: bool
    weights: str | None
    axes: tuple[str, ...]
    threat: "Threat"
    suite: "Suite"
    budget: "Budget"
    budget_texts: list[str] | None
    checks: Literal["derived", "full"]
    source: list[str] | None
    sibling: list[str] | None
    base: str | None
    twin: str | None
    cue_conflict: str | None
    corrupted: str | None
    mce_reference: str | None
    other: list[str] | None
    seed: int
    device: str
    batch_size: str
    resume: bool
    overwrite: bool
    save_adversarial: Path | None
    path: Path
    command: str
    quiet: bool


def measured(job: Job) -> "Result":
    """Evaluate and, in rank 0, write the result; all ranks get it.

    Nothing is computed unless all ranks are ready.

    Raises:
        HardyError: as the options, the data, the nets and the evaluation say.
    """
    from hardy.cli.outcome import without_images
    from hardy.cli.progress import evaluation_progress
    from hardy.evaluation import evaluate
    from hardy.ranks import together

    with _joined(job.device) as (first_here, device), together() as ranks, ExitStack() as stack:
        first = ranks.rank == 0
        with ranks.agree():  # one process of a machine fetches what has to be fetched
            if job.download and first_here and ranks.size > 1:
                _images(job)
        with ranks.agree():
            images = _images(job)
            target, facts = _asked(job, images, device)
            if first:
                stack.enter_context(_journal(job, target, images))
        on_progress = stack.enter_context(evaluation_progress(quiet=job.quiet or not first, name=target.name))
        result = evaluate(
            target.model,
            images.images().to(device),
            images.y.to(device),
            rows=images.index.to(device),
            journal=_folder(job),
            on_progress=on_progress,
            **facts,
        )
        if first:
            result = without_images(result, job.save_adversarial)
            result.save(job.path)
    return result


def _images(job: Job) -> "ArrayData":
    from hardy.cli.targets import open_data, recipe_of

    return open_data(
        job.data,
        recipe_of(job.model),
        split=job.split,
        limit=job.limit,
        size=job.size,
        seed=job.seed,
        model=job.model,
        download=job.download,
        skip_bad=job.skip_bad,
    )


def _asked(job: Job, images: "ArrayData", device: str) -> "tuple[Target, dict[str, Any]]":
    """Open the nets and the material, and give what ``evaluate`` is asked."""
    from hardy.cli.common import batch_size_of
    from hardy.cli.material import material_of
    from hardy.cli.targets import open_target, recipe_of

    target = open_target(job.model, images, device=device, weights=job.weights)
    material = material_of(
        images, recipe_of(job.model), data=job.data, cue_conflict=job.cue_conflict, corrupted=job.corrupted,
        reference=job.mce_reference, other=job.other or (), device=device, download=job.download,
        skip_bad=job.skip_bad,
    )  # fmt: skip

    def opened(texts: list[str] | None) -> list[tuple[str, Any]]:
        return [(t.name, t.model) for t in (open_target(text, images, device=device) for text in texts or ())]

    base, twin = opened([job.base] if job.base else None), opened([job.twin] if job.twin else None)
    facts = {
        "threat": job.threat,
        "axes": job.axes,
        "suite": job.suite,
        "budget": job.budget,
        "material": material,
        "checks": job.checks,
        "sources": opened(job.source),
        "siblings": opened(job.sibling),
        "base": base[0][1] if base else None,
        "twin": twin[0][1] if twin else None,
        "seed": job.seed,
        "batch_size": batch_size_of(job.batch_size, shape=images.shape),
        "keep_adversarial": job.save_adversarial is not None,
        "model_name": target.name,
        "data_name": _name(images),
        "class_names": images.class_names,
        "methods": target.methods,
        "training_passes": target.passes,
        "command": job.command,
    }
    return target, facts


@contextmanager
def _journal(job: Job, target: "Target", images: "ArrayData") -> Iterator[Path]:
    """Guard the result that is there, and keep finished images until the new one is written."""
    from hardy.cli.kept import kept

    if not job.overwrite:
        _keep_more(job.path, target.name, _name(images), len(images), job.threat, job.axes)
    question = {"model": job.model, "data": _name(images), "images": len(images), "threat": str(job.threat)}
    question |= {"axes": list(job.axes), "suite": str(job.suite), "checks": job.checks, "seed": job.seed}
    question |= {"--budget": job.budget_texts, "--source": job.source, "--sibling": job.sibling, "--base": job.base}
    question |= {"--twin": job.twin}
    with kept(_folder(job), question, resume=job.resume, overwrite=job.overwrite) as folder:
        yield folder


def _folder(job: Job) -> Path:
    return job.path.with_suffix(".partial")


def _name(images: "ArrayData") -> str:
    return f"{images.name} {images.split}"


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


@contextmanager
def _joined(device: str) -> Iterator[tuple[bool, str]]:
    """Join the processes that ``torchrun`` or ``--devices`` started, if this is one of them.

    Yields:
        Whether this is the first process of its machine, and its own device.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield True, device
        return
    import torch
    import torch.distributed as dist

    from hardy.ranks import meet

    local = int(os.environ["LOCAL_RANK"])
    if device.partition(":")[0] == "cuda":
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    meet("gloo")
    try:
        yield local == 0, device
    finally:
        dist.destroy_process_group()
