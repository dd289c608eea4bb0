"""Axis ``ood``: does the model notice images that are none of its classes?

Scores of pytorch-ood: the largest logit (Hendrycks et al., ICML 2022), the energy (Liu et al., NeurIPS 2020), and on
the features before the classifier the Mahalanobis distance (Lee et al., NeurIPS 2018) and the distance to the k-th
nearest training image (Sun et al., ICML 2022); the latter two need training images. AUROC is the chance that an image
of the other data is scored as stranger than one of the evaluated images, ties counting half: a mean over the evaluated
images, so that two models can be compared image by image.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from hardy.errors import ShapeError
from hardy.evaluation.context import Context, Measured, NotMeasured
from hardy.evaluation.features import feature_sites, features
from hardy.records import Axis, Score

__all__ = ["HEADLINE", "auroc", "check_images", "measure"]

HEADLINE = "mean AUROC (energy)"
NEIGHBOURS = 50  # of kNN; the value of its paper for CIFAR-10
Z95 = 1.959964
Strangeness = Callable[[Tensor, Tensor], npt.NDArray[np.float64]]  # of features and logits
Values = npt.NDArray[np.float64]


def measure(context: Context) -> Measured | NotMeasured:
    """Score the evaluated images and those of other data; nothing is fitted to the other data."""
    others = context.material.other
    if not others:
        return NotMeasured("ood", "no other data were given", "Give images that are none of the classes (--other).")
    check_images(context)
    with torch.no_grad():
        sites = feature_sites(context.model, context.x[:1])
    detectors = _detectors(context, sites)
    own = _seen(context, sites, context.x)
    seen = {name: _seen(context, sites, x) for name, x in others.items()}
    scores, arrays, energies = [], {}, []
    for kind, strange in detectors.items():
        inside = strange(*own)
        for name, found in seen.items():
            made, values = _score(f"{kind} on {name}", inside, strange(*found), series=name)
            scores.append(made)
            arrays[made.label] = torch.from_numpy(values).float()
            energies += [values] if kind == "energy" else []
    mean: Values = np.mean(energies, axis=0)
    low, high = _bounds(mean, [s.details["spread_of_others"] for s in scores if s.label.startswith("energy on ")])
    head = Score(label=HEADLINE, value=float(mean.mean()), kind="quality", n=len(context.x), low=low, high=high)
    arrays[HEADLINE] = torch.from_numpy(mean).float()
    reason = "" if context.material.train is not None else "Mahalanobis and kNN need training images"
    axis = Axis(
        name="ood",
        question="Does it notice images that are none of its classes?" + (f" ({reason}.)" if reason else ""),
        headline=HEADLINE,
        scores=(head, *scores),
    )
    return Measured(axis=axis, outcomes={}, arrays=arrays)


def check_images(context: Context) -> None:
    """Demand images in the size of the model.

    Raises:
        ShapeError: other sizes or channels, or no image.
    """
    want = tuple(context.x.shape[1:])
    train = {} if context.material.train is None else {"train": context.material.train[0]}
    for name, x in {**train, **context.material.other}.items():
        if tuple(x.shape[1:]) != want or len(x) == 0:
            raise ShapeError(f"ood: {name} must be n > 0 images of {want}; got {tuple(x.shape)}. Resize them.")


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
    low, high = _bounds(own, [spread])
    passing = float(np.mean(outside <= np.quantile(inside, 0.95)))
    details: dict[str, str | int | float | bool | None] = {
        "fpr_at_95_tpr": passing, "others": len(outside), "spread_of_others": spread if math.isfinite(spread) else None,
    }  # fmt: skip
    return Score(
        label=label, value=float(own.mean()), kind="quality", n=len(own), low=low, high=high, series=series,
        details=details,
    ), own  # fmt: skip


def _bounds(own: Values, spreads: list[object]) -> tuple[float | None, float | None]:
    """Add the variance over the evaluated images to that over the others (DeLong et al. 1988); independent sets."""
    known = [s for s in spreads if isinstance(s, float)]
    if len(own) < 2 or len(known) < len(spreads):
        return None, None
    half = Z95 * math.sqrt(float(own.var(ddof=1)) / len(own) + sum(known) / len(known) ** 2)
    return max(0.0, float(own.mean()) - half), min(1.0, float(own.mean()) + half)


def _detectors(context: Context, sites: tuple[str, ...]) -> dict[str, Strangeness]:
    from pytorch_ood.detector import KNN, EnergyBased, Mahalanobis, MaxLogit  # slow to import

    made: dict[str, Strangeness] = {
        "max logit": lambda _, logits: _array(MaxLogit.score(logits)),
        "energy": lambda _, logits: _array(EnergyBased.score(logits)),
    }
    if context.material.train is None:
        return made
    x, y = context.material.train
    z = _seen(context, sites, x.to(context.x))[0]
    dense = torch.unique(y.to(z.device), return_inverse=True)[1]  # numbers without gaps
    gauss = Mahalanobis(None).fit_features(z, dense)
    nearest = KNN(None, k=min(NEIGHBOURS, len(z))).fit_features(z, dense)
    made["Mahalanobis"] = lambda features_, _: _array(gauss.predict_features(features_))
    made["kNN"] = lambda features_, _: _array(nearest.predict_features(features_))
    return made


def _seen(
    context: Context, sites: tuple[str, ...], x: Float[Tensor, "n c h w"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
    """Give features and logits, batch by batch."""
    found = []
    with torch.no_grad():
        for batch in torch.split(x.to(context.x), context.batch_size):
            z = features(context.model, sites, batch)
            found.append((z, context.model(batch).float()))
    return torch.cat([z for z, _ in found]), torch.cat([logits for _, logits in found])


def _array(values: Tensor) -> Values:
    made: Values = values.detach().cpu().numpy().astype(np.float64)
    return made
