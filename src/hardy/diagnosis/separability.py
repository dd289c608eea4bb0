"""How well are the classes apart in the features that enter the classifier, also on noisy and on attacked images?

The quantities are those of :mod:`hardy.diagnosis.class_geometry` (similarity within classes, distance between them) and
:mod:`hardy.diagnosis.interference` (gradients of pairs of images). They can be gamed by features that collapse, so
accuracy stands beside them.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hardy.attacks.goal import predicted
from hardy.attacks.passes import sealed_rng
from hardy.attacks.precision import full_precision
from hardy.corruptions import gaussian_noise
from hardy.diagnosis.attacked import Attacked, attacked, of_all
from hardy.diagnosis.case import Case
from hardy.diagnosis.class_geometry import (
    Estimate,
    Geometry,
    class_geometry,
    cross_similarity,
    paired_classes,
)
from hardy.diagnosis.interference import interference
from hardy.diagnosis.record import Finding, Part
from hardy.errors import DataError
from hardy.evaluation.features import feature_sites
from hardy.records import Score
from hardy.sites import INPUT
from hardy.stats import wilson
from hardy.surgery import capture

__all__ = ["SIGMA", "measure"]

SIGMA = 0.1  # of the noisy images, in pixels: the strongest Gaussian noise of CIFAR-10-C
HALF = 0.5
INTRA, INTER, WITHIN, RATIO = (
    "similarity within classes",
    "distance between classes",
    "spread within classes",
    "separability",
)


def measure(case: Case, *, sigma: float = SIGMA) -> Part:
    """Measure on at most 512 images, clean, with Gaussian noise, and attacked.

    Args:
        case: The case.
        sigma: Standard deviation of the noise, in pixels in [0, 1].

    Raises:
        DataError: fewer than two classes of at least two images, or features that are not finite.
        ParameterError: a negative sigma.
    """
    made, passes = attacked(case)
    keep = paired_classes(made.y)
    if len(torch.unique(made.y[keep])) < 2:
        raise DataError(
            "diagnose: the part 'separability' needs at least 2 classes of at least 2 images; "
            f"got {len(torch.unique(made.y[keep]))}. Leave the part out, or give more images."
        )
    noisy = gaussian_noise(made.x, sigma=sigma, key=case.keys("separability")[made.index])
    images = {"clean": made.x[keep], "noisy": noisy[keep], "attacked": made.x_adv[keep]}
    y = made.y[keep]
    sites = feature_sites(case.model, case.x[:1])
    seen = {name: _features(case, sites, x) for name, x in images.items()}
    found = {name: class_geometry(z, y) for name, (z, _) in seen.items()}
    cross = {name: cross_similarity(seen["clean"][0], seen[name][0], y) for name in ("noisy", "attacked")}
    scores = [score for name, geometry in found.items() for score in _geometry(name, geometry, len(y))]
    scores += [_accuracy(name, predicted(logits) == y) for name, (_, logits) in seen.items()]
    for name, each in cross.items():
        scores += [
            _score(f"cosine of an image and its {name} copy", each.own, len(y), name),
            _score(f"cosine of clean and {name} images of one class", each.same, len(y), name),
            _score(f"cosine of clean and {name} images of two classes", each.other, len(y), name),
        ]
    scores += [_score(f"{RATIO}, {name} minus clean", found[name].ratio.minus(found["clean"].ratio), len(y), "change")
               for name in ("noisy", "attacked")]  # fmt: skip
    pulls, note = _pulls(case, sites, seen["clean"], y)
    return Part(
        name="separability",
        question="How well are the classes apart in its features, also on noisy and on attacked images?",
        scores=tuple(_finite([*scores, *pulls])),
        findings=_findings(found),
        notes=(*_notes(sites, made, sigma, int((~keep).sum())), note, *of_all(case, made.index)),
        passes={"forward": passes["forward"] + len(images) * len(y), "backward": passes["backward"]},
    )


def _features(case: Case, sites: tuple[str, ...], x: Tensor) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
    """Give features, flattened (the logits where there are no sites), and logits, of one pass."""
    found, logits = [], []
    with torch.no_grad(), full_precision(x.device), sealed_rng(x.device, case.seed):
        for part in torch.split(x, case.batch_size):
            with capture(case.model, sites) as seen:
                z = case.model(part.clone()).float()
            logits.append(z)
            found.append(torch.cat([value.flatten(1).float() for value in seen.values()], dim=1) if sites else z)
    return torch.cat(found), torch.cat(logits)


@dataclass(frozen=True)
class _Head:
    bias: bool


def _head(model: nn.Module, sites: tuple[str, ...], z: Tensor, logits: Tensor) -> _Head | None:
    """Find the linear layer that makes the logits of the features; None where another step comes in between."""
    if len(sites) != 1:
        return None
    module = model.get_submodule(sites[0].partition("#")[0].removesuffix(INPUT))
    if not isinstance(module, nn.Linear) or z.shape[1] != module.in_features:
        return None
    with torch.no_grad():
        same = torch.allclose(module(z), logits, rtol=1e-3, atol=1e-3)
    return _Head(module.bias is not None) if same else None


def _pulls(case: Case, sites: tuple[str, ...], seen: tuple[Tensor, Tensor], y: Tensor) -> tuple[list[Score], str]:
    """Compare the gradients of the clean images."""
    head = _head(case.model, sites, *seen)
    if head is None:
        return [], "Interference is left out: the logits are not those of one linear layer of the features."
    found = interference(*seen, y, bias=head.bias)
    n, series = int(found.used.sum()), "interference"
    scores = [
        _score("cosine of gradients, one class", found.within, n, series),
        _score("cosine of gradients, two classes", found.between, n, series),
        _score("pairs of images whose gradients disagree", found.negative, n, series),
        Score(label="effective rank of the gradients", value=found.rank, kind="description", n=n, series=series,
              unit="directions"),
    ]  # fmt: skip
    return scores, f"Interference: gradients of the cross-entropy by the last linear layer, of {n} clean images."


def _geometry(name: str, found: Geometry, n: int) -> list[Score]:
    values = {INTRA: found.intra, INTER: found.inter, WITHIN: found.within, RATIO: found.ratio}
    return [_score(f"{what}, {name}", value, n, what) for what, value in values.items()]


def _score(label: str, value: Estimate, n: int, series: str) -> Score:
    low, high = value.bounds()
    return Score(label=label, value=value.value, kind="description", n=n, low=low, high=high, series=series)


def _accuracy(name: str, right: Tensor) -> Score:
    n, count = len(right), int(right.sum())
    low, high = wilson(count, n)
    return Score(
        label=f"accuracy, {name}", value=count / n, kind="accuracy", n=n, low=low, high=high, series="accuracy"
    )


def _finite(scores: list[Score]) -> list[Score]:
    """Leave out what there was nothing to take of."""
    return [score for score in scores if math.isfinite(score.value)]


def _notes(sites: tuple[str, ...], made: Attacked, sigma: float, alone: int) -> tuple[str, ...]:
    where = (
        f"what enters {', '.join(s.partition(INPUT)[0] for s in sites)}" if sites else "the logits, as no linear layer"
    )
    return (
        f"Features: {where}{'' if sites else ' makes them'}, scaled to length 1.",
        f"Noisy: Gaussian noise of {sigma:g}. Attacked: {made.attack}, the last point of its search; what was wrong "
        "before is not attacked.",
        "Separability is the distance between the means of classes over the spread within classes; it is large for "
        "features that collapse to one point a class, right or wrong, so read it beside the accuracy.",
        *((f"{alone} images have no other of their class and are left out.",) if alone else ()),
    )


def _findings(found: dict[str, Geometry]) -> tuple[Finding, ...]:
    """Say what noise and the attack leave of the separation."""
    clean, findings = found["clean"].ratio, []
    for name, what in (("noisy", "noise"), ("attacked", "the attack")):
        ratio = found[name].ratio
        low, high = ratio.minus(clean).bounds()
        if low is None or high is None or not clean.value > 0:
            continue
        left = ratio.value / clean.value
        text = (
            f"The classes are apart by {clean.value:.2f} (distance between over spread within) on clean images and by "
            f"{ratio.value:.2f} under {what}: {left:.0%} is left (change {low:+.2f} to {high:+.2f})."
        )
        if high < 0 and left < HALF:
            remedy = (
                "Train so that clean and perturbed images of a class keep like features: FPCC, or the noises and "
                "attacks that matter to you as training data."
            )
            findings.append(Finding(code=f"separability_lost_{name}", severity="problem", text=text, remedy=remedy))
        else:
            findings.append(Finding(code=f"separability_{name}", severity="note", text=text))
    return tuple(findings)
