"""Axis ``ood``: does the model notice images that are none of its classes?

Scores of pytorch-ood: the largest logit (Hendrycks et al., ICML 2022), the energy (Liu et al., NeurIPS 2020), and on
the features before the classifier the Mahalanobis distance (Lee et al., NeurIPS 2018) and the distance to the k-th
nearest training image (Sun et al., ICML 2022); the latter two need training images. AUROC is the chance that an image
of the other data is scored as stranger than one of the evaluated images, ties counting half. It is uncertain by both
sets, so nothing is kept per evaluated image: two models are not compared as if the other images were fixed.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from hardy.errors import DataError, ShapeError
from hardy.evaluation.context import Context, Measured, NotMeasured
from hardy.evaluation.features import feature_sites
from hardy.evaluation.fingerprint import images_digest
from hardy.ranks import Rows
from hardy.records import Axis, Score
from hardy.stats import wilson
from hardy.surgery import capture

__all__ = ["HEADLINE", "auroc", "check_images", "measure"]

HEADLINE = "mean AUROC (energy)"
NEIGHBOURS = 50  # of kNN; the value of its paper for CIFAR-10
Z95 = 1.959964
Strangeness = Callable[[Tensor, Tensor], npt.NDArray[np.float64]]  # of features and logits
Values = npt.NDArray[np.float64]
Seen = tuple[Tensor, Tensor]  # features (n, d) and logits (n, k)
Details = dict[str, str | int | float | bool | None]


def measure(context: Context) -> Measured | NotMeasured:
    """Score the evaluated images and those of other data; nothing is fitted to the other data."""
    others = context.material.other
    if not others:
        return NotMeasured("ood", "no other data were given", "Give images that are none of the classes (--other).")
    check_images(context)
    with torch.no_grad():
        sites = feature_sites(context.model, context.x[:1])
    train = context.material.train
    fit = None if train is None else _seen(context, sites, train[0])
    own = _seen(context, sites, context.x)
    seen = {name: _seen(context, sites, x) for name, x in others.items()}
    for name, found in [("the evaluated images", own), *seen.items(), *([("train", fit)] if fit else [])]:
        if not all(bool(part.isfinite().all()) for part in found):
            return NotMeasured("ood", f"the model's answers to {name} are not finite", "See the check logits.")
    detectors = _detectors(fit, None if train is None else train[1])
    scores, energies = [], []
    for kind, strange in detectors.items():
        inside = strange(*own)
        for name, found in seen.items():
            made, values = _score(f"{kind} on {name}", inside, strange(*found), series=name)
            scores.append(made)
            energies += [values] if kind == "energy" else []
    mean: Values = np.mean(energies, axis=0)
    spreads: list[object] = [s.details["spread_of_others"] for s in scores if s.label.startswith("energy on ")]
    low, high = _bounds(mean, spreads, min(len(x) for x in others.values()))
    head = Score(
        label=HEADLINE, value=float(mean.mean()), kind="quality", n=len(context.x), low=low, high=high,
        details=_facts(context),
    )  # fmt: skip
    reason = "" if train is not None else "Mahalanobis and kNN need training images"
    axis = Axis(
        name="ood",
        question="Does it notice images that are none of its classes?" + (f" ({reason}.)" if reason else ""),
        headline=HEADLINE,
        scores=(head, *scores),
    )
    return Measured(axis=axis, outcomes={})


def check_images(context: Context) -> None:
    """Demand images in the size of the model, and a class for every training image.

    Raises:
        ShapeError: other sizes or channels, or no image.
        DataError: pixels that are not floats in [0, 1], or another number of classes than of training images.
    """
    want = tuple(context.x.shape[1:])
    train = {} if context.material.train is None else {"train": context.material.train[0]}
    for name, x in {**train, **context.material.other}.items():
        if tuple(x.shape[1:]) != want or len(x) == 0:
            raise ShapeError(f"ood: {name} must be n > 0 images of {want}; got {tuple(x.shape)}. Resize them.")
        if not (x.is_floating_point() and float(x.min()) >= 0 and float(x.max()) <= 1):
            raise DataError(
                f"ood: pixels of {name} must be floats in [0, 1]; got {x.dtype} in [{float(x.min()):g}, "
                f"{float(x.max()):g}]. Divide bytes by 255."
            )
    if context.material.train is not None and len(context.material.train[1]) != len(train["train"]):
        got = f"{len(train['train'])} images and {len(context.material.train[1])} classes"
        raise DataError(f"ood: train must have a class for every image; got {got}.")


def _facts(context: Context) -> Details:
    """Say which other images and training images the numbers are about."""
    others, train = context.material.other, context.material.train
    facts: Details = {
        "others": ", ".join(others),
        "others_digest": images_digest(torch.cat([x.float().cpu() for x in others.values()])).hex()[:12],
    }
    if train is not None:
        facts["train_digest"] = images_digest(train[0]).hex()[:12]
    return facts | ({"draws": 1} if context.draws > 1 else {})


def auroc(inside: Values, outside: Values) -> tuple[Values, Values]:
    """Compare every score with all scores of the other side.

    Args:
        inside: How strange the images of known classes are, shape (n,).
        outside: How strange the others are, shape (m,).

    Returns:
        For every image inside the share of outside images that are stranger, ties half, shape (n,), and for every image
        outside the share of inside images that are less strange, shape (m,). The mean of either is the AUROC.
    """
    return _below(-inside, -outside), _below(outside, inside)


def _below(values: Values, others: Values) -> Values:
    """Give the share of others that are below each value, ties half."""
    ranked = np.sort(others)
    low, high = (np.searchsorted(ranked, values, side=side) for side in ("left", "right"))
    share: Values = (low + high) / (2 * len(others))
    return share


def _score(label: str, inside: Values, outside: Values, *, series: str) -> tuple[Score, Values]:
    """Record an AUROC with DeLong's interval, and the share of others that pass where 95 % of the images do."""
    own, theirs = auroc(inside, outside)
    spread = float(theirs.var(ddof=1) / len(theirs)) if len(theirs) > 1 else math.inf
    low, high = _bounds(own, [spread], len(theirs))
    passing = float(np.mean(outside <= np.quantile(inside, 0.95)))
    details: Details = {
        "fpr_at_95_tpr": passing, "others": len(outside), "spread_of_others": spread if math.isfinite(spread) else None,
    }  # fmt: skip
    return Score(
        label=label, value=float(own.mean()), kind="quality", n=len(own), low=low, high=high, series=series,
        details=details,
    ), own  # fmt: skip


def _bounds(own: Values, spreads: list[object], others: int) -> tuple[float | None, float | None]:
    """Add the variance over the evaluated images to that over the others (DeLong et al. 1988); independent sets.

    Where both are 0, Wilson's interval of as many images as the smaller set has.
    """
    known = [s for s in spreads if isinstance(s, float)]
    if len(own) < 2 or len(known) < len(spreads):
        return None, None
    value, variance = float(own.mean()), float(own.var(ddof=1)) / len(own) + sum(known) / len(known) ** 2
    if variance == 0:
        least = min(len(own), others)
        return wilson(round(value * least), least)
    half = Z95 * math.sqrt(variance)
    return max(0.0, value - half), min(1.0, value + half)


def _detectors(fit: Seen | None, y: Tensor | None) -> dict[str, Strangeness]:
    from pytorch_ood.detector import KNN, EnergyBased, Mahalanobis, MaxLogit  # slow to import

    made: dict[str, Strangeness] = {
        "max logit": lambda _, logits: _array(MaxLogit.score(logits)),
        "energy": lambda _, logits: _array(EnergyBased.score(logits)),
    }
    if fit is None or y is None:
        return made
    z = fit[0]
    dense = torch.unique(y.to(z.device), return_inverse=True)[1]  # numbers without gaps
    gauss = Mahalanobis(None).fit_features(z, dense)
    nearest = KNN(None, k=min(NEIGHBOURS, len(z))).fit_features(z, dense)
    made["Mahalanobis"] = lambda features_, _: _array(gauss.predict_features(features_))
    made["kNN"] = lambda features_, _: _array(nearest.predict_features(features_))
    return made


def _seen(
    context: Context, sites: tuple[str, ...], x: Float[Tensor, "n c h w"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
    """Give features (the logits where there are no sites) and logits, both of one pass, batch by batch."""

    def work(places: Tensor) -> Rows:
        with torch.no_grad(), capture(context.model, sites) as held:
            logits = context.model(x[places.to(x.device)].to(context.x)).float()
        z = [value.flatten(1).float() for value in held.values()]
        return {"features": torch.cat(z, dim=1) if z else logits, "logits": logits}

    found = context.share(context.batches(len(x)), work)
    return torch.cat([part["features"] for part in found]), torch.cat([part["logits"] for part in found])


def _array(values: Tensor) -> Values:
    made: Values = values.detach().cpu().numpy().astype(np.float64)
    return made
