"""Axis ``corruptions``: how often is the model still right under common corruptions (noise, blur, weather, digital)?

Points are the corruptions at their severities, scores the means over them. The headline is the mean accuracy over the
15 common corruptions, the number of RobustBench's corruption boards; the 4 further ones have a mean of their own.

mCE and relative mCE: Hendrycks, Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261, section 4: the error of the
model, summed over severities, divided by that of a reference net, averaged over the common corruptions; the relative
one takes errors beyond those on clean images. In percent: the reference net has 100.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hardy.corruptions.common import ALEXNET_ERRORS, CORRUPTIONS, FAMILIES, corrupt, scale_of
from hardy.corruptions.scale import SEVERITIES
from hardy.errors import DataError, ParameterError, ShapeError, did_you_mean
from hardy.evaluation.context import Context, Measured, NotMeasured, record
from hardy.results import Axis, Point, Score, ScoreKind, mean_score

__all__ = ["check_copies", "check_reference", "measure"]

CLEAN = "clean"  # key of the reference's error on clean images
SAMPLE = 8  # copies per severity that are looked at before anything is computed
LEAST = 1e-3  # that the reference must lose to a corruption for a ratio of losses to mean something
Details = dict[str, str | int | float | bool | None]


@dataclass
class _Found:
    """What was seen so far: points, outcomes by label, and the mean of the outcomes by corruption."""

    points: list[Point] = field(default_factory=list)
    outcomes: dict[str, Tensor] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def measure(context: Context) -> Measured | NotMeasured:
    """Classify the images under every corruption of ``budget.corruptions`` at every one of ``budget.severities``.

    The corruptions are generated, with the constants that :func:`~hardy.corruptions.scale_of` chooses and new random
    numbers for every severity, or read from ``material.corrupted``. A corruption that cannot be made of images of this
    size is left out and named. Means: "mean accuracy" over the common corruptions (over all that were asked for, if
    none of them is common), "noise", "blur", "weather" and "digital" over the common ones of the family, "extra" over
    the further ones. With ``material.reference_errors`` also "mCE" and, if it has "clean", "relative mCE"; both need
    all five severities, and over fewer than the 15 common corruptions the label says of how many. The numbers behind a
    mean, one per image, are in ``arrays``.

    Raises:
        ParameterError: an unknown name in the reference errors, such an error out of range, or errors of a net on
            other constants.
        DataError: the published copies are damaged, or are not of these images.
    """
    check_reference(context.material.reference_errors, min(context.x.shape[2:]))
    names, source = _names(context), context.material.corrupted
    if context.x.shape[1] not in {1, 3}:
        return NotMeasured("corruptions", f"images have {context.x.shape[1]} channels", "Give gray or RGB images.")
    if not names:
        there = "" if source is None else ", ".join(source.corruptions)
        return NotMeasured("corruptions", f"the copies hold none of those asked for, but {there}", "Ask for those.")
    found = _Found()
    for name in names:
        reason = _reason_against(context, name)
        if reason is None:
            _measure_one(context, name, found)
        else:
            found.left_out[name] = reason
    if not found.points:
        reason = next(iter(found.left_out.values()))
        return NotMeasured("corruptions", f"none can be made of these images ({reason})", "Give larger images.")
    return _measured(context, found)


def _names(context: Context) -> list[str]:
    """Choose the corruptions, in the order of the table."""
    asked, source = context.budget.corruptions, context.material.corrupted
    chosen = [name for name in CORRUPTIONS if not asked or name in asked]
    return chosen if source is None else [name for name in chosen if name in source.corruptions]


def _reason_against(context: Context, name: str) -> str | None:
    """Try the first image at every severity, so that what cannot work fails before anything is computed."""
    for severity in context.budget.severities:
        try:
            got = _images(context, name, severity, torch.tensor([0], device=context.x.device))
        except ShapeError as error:
            return str(error)
        _check_size(context, name, got)
    return None


def check_copies(context: Context) -> None:
    """Read some copies of the first corruption at every severity, if copies were given, before anything is computed.

    Raises:
        DataError: they are damaged, of another size, or not of these images.
    """
    source, names = context.material.corrupted, _names(context)
    if source is None or not names:
        return
    n = len(context.x)
    some = torch.linspace(0, n - 1, min(n, SAMPLE), device=context.rows.device).long()
    for severity in context.budget.severities:
        _check_size(context, names[0], source.images(names[0], severity, context.rows[some], context.y[some]))


def _check_size(context: Context, name: str, made: Tensor) -> None:
    shape, got = tuple(context.x.shape[1:]), tuple(made.shape[1:])
    if got != shape:
        raise DataError(
            f"corruptions: the copies must have the size of the images, {shape}; got {got} for {name}. "
            f"Load the images in that size."
        )


def _measure_one(context: Context, name: str, found: _Found) -> None:
    """Classify the images under one corruption at every severity."""
    right = []
    facts: Details = {"family": CORRUPTIONS[name].family, "common": CORRUPTIONS[name].common, **_origin(context)}
    for severity in context.budget.severities:
        label = f"{name} {severity}"
        make = partial(_images, context, name, severity)
        found.outcomes[label] = context.predict_made(make, len(context.x)) == context.y
        right.append(found.outcomes[label])
        passes = {"forward": len(context.x) * context.draws}
        found.points.append(record(label, right[-1], level=float(severity), series=name, passes=passes, details=facts))
    found.means[name] = _mean(right)


def _images(context: Context, name: str, severity: int, part: Tensor) -> Float[Tensor, "m c h w"]:
    """Give the corrupted copies of some images."""
    source = context.material.corrupted
    if source is not None:
        return source.images(name, severity, context.rows[part], context.y[part]).to(context.x)
    key = context.keys(f"corruptions:{name}:{severity}")[part]
    return corrupt(context.x[part], name, severity=severity, key=key)


def _measured(context: Context, found: _Found) -> Measured:
    """Average the outcomes and write everything down."""
    common = [name for name in found.means if CORRUPTIONS[name].common]
    groups = {"mean accuracy": common or list(found.means)}
    groups |= {family: [name for name in common if CORRUPTIONS[name].family == family] for family in FAMILIES}
    groups["extra"] = [name for name in found.means if name not in common]
    facts = _facts(context, found)
    scores, arrays = [], {}
    for label, members in groups.items():
        if members:
            arrays[label] = _mean([found.means[name] for name in members])
            details: Details = {**_named(members), **facts}
            series = "" if label == "mean accuracy" else "group"
            scores.append(_score(label, arrays[label], "accuracy", series=series, details=details))
    for label, values, details in _relative_to_reference(context, {name: found.means[name] for name in common}):
        arrays[label] = values
        scores.append(_score(label, values, "error", unit="%", details={**details, **facts}))
    axis = Axis(
        name="corruptions",
        question="How often is it still right under common corruptions: noise, blur, weather, digital?",
        headline="mean accuracy",
        points=tuple(found.points),
        level_name="severity",
        scores=tuple(scores),
    )
    return Measured(axis=axis, outcomes=found.outcomes, arrays=arrays)


def _score(label: str, values: Tensor, kind: ScoreKind, **facts: object) -> Score:
    return mean_score(label, values.cpu().numpy(), kind=kind, **facts)


def _facts(context: Context, found: _Found) -> Details:
    """Say what was measured, for every mean."""
    reference = context.material.reference_errors
    facts: Details = {
        "severities": ", ".join(str(severity) for severity in context.budget.severities),
        **_origin(context),
    }
    if found.left_out:
        facts["left_out"] = "; ".join(f"{name} ({reason})" for name, reason in found.left_out.items())
    if reference is not None and set(context.budget.severities) != set(SEVERITIES):
        facts["no_mCE"] = "it needs all five severities"
    return facts


def _origin(context: Context) -> Details:
    """Say where the corrupted images come from, and made with whose constants, if that is known."""
    source = context.material.corrupted
    if source is not None:
        return {"images_from": source.name}
    return {"images_from": "generated", "scale": scale_of(context.x.shape[2], context.x.shape[3])}


def _named(members: list[str]) -> Details:
    return {"corruptions": len(members), "names": ", ".join(members)}


def _relative_to_reference(
    context: Context, means: Mapping[str, Float[Tensor, "n"]]
) -> Iterator[tuple[str, Float[Tensor, "n"], Details]]:
    """Give label, numbers per image and details of the mCE and the relative mCE, if they are defined."""
    reference = context.material.reference_errors or {}
    names = [name for name in means if name in reference]
    if not names or set(context.budget.severities) != set(SEVERITIES):
        return
    details: Details = {"reference": context.material.reference_name or "not named", **_named(names)}
    details["reference_error"] = sum(reference[name] for name in names) / len(names)
    every = sum(each.common for each in CORRUPTIONS.values())
    of = "" if len(names) == every else f" of {len(names)} corruption{'s' if len(names) > 1 else ''}"
    yield f"mCE{of}", 100 * _mean([(1 - means[name]) / reference[name] for name in names]), details
    clean = reference.get(CLEAN, 1.0)
    if any(reference[name] - clean < LEAST for name in names):  # nothing to be relative to
        return
    right = context.correct.float()
    ratios = [(right - means[name]) / (reference[name] - clean) for name in names]
    yield f"relative mCE{of}", 100 * _mean(ratios), {**details, "reference_clean_error": clean}


def check_reference(errors: Mapping[str, float] | None, side: int | None = None) -> None:
    """Look at the errors of the reference net before anything is computed.

    Args:
        errors: By corruption, and by "clean".
        side: The shorter side of the images in pixels; None: not looked at.

    Raises:
        ParameterError: an unknown name, an error outside (0, 1] ("clean": outside [0, 1]), or the published errors of
            AlexNet, which are on ImageNet-C, for images so small that they get the constants of CIFAR-10-C.
    """
    if errors is not None and side is not None and scale_of(side, side) == "cifar" and errors == ALEXNET_ERRORS:
        raise ParameterError(
            f"corruptions: ALEXNET_ERRORS are errors on ImageNet-C; images of {side} pixels get the constants of "
            f"CIFAR-10-C. Give reference_errors that were measured on such images."
        )
    for name, error in (errors or {}).items():
        if name not in CORRUPTIONS and name != CLEAN:
            known = [*CORRUPTIONS, CLEAN]
            raise ParameterError(f"corruptions: unknown name {name!r} in reference_errors; {did_you_mean(name, known)}")
        if not (0 < error <= 1 or (name == CLEAN and error == 0)):
            allowed = "[0, 1]" if name == CLEAN else "(0, 1]"
            raise ParameterError(f"corruptions: reference_errors must be in {allowed}; got {error} for {name}.")


def _mean(values: list[Bool[Tensor, "n"]] | list[Float[Tensor, "n"]]) -> Float[Tensor, "n"]:
    return torch.stack([each.float() for each in values]).mean(dim=0)
