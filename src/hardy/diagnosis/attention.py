"""Where does it look: maps of what speaks for its answer, of images that it is sure of and of those that it is not.

Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra. "Grad-CAM: visual explanations from deep networks via gradient-based
localization". ICCV 2017, https://arxiv.org/abs/1610.02391, by captum (extra ``hardy[attention]``). The map is of the
last feature map before the classifier, for the class that the net predicts.

Model Doctor (Feng et al., AAAI 2022) observed that images of low confidence look at the background. Where the objects
are is the question of the part ``background``; here it is how concentrated the maps are, and whether the two groups
look at the same places.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from scipy.special import stdtrit
from torch import Tensor

from hardy.diagnosis.attacked import indices
from hardy.diagnosis.case import Case
from hardy.diagnosis.correlation import sure_images
from hardy.diagnosis.grad_cam import concentration, grad_cam, last_features, load_captum, overlap, shares
from hardy.diagnosis.record import Finding, Part
from hardy.records import Score, mean_score

__all__ = ["Groups", "attention_maps", "difference", "groups", "measure"]

PER_CLASS = 20  # images of a group, as many as the authors marked by hand
MOST_IMAGES = 200  # of a group, but for one of each class
SHOWN = 8  # pictures of a group
Groups = tuple[Int[Tensor, "m"], Int[Tensor, "m"]]


def measure(case: Case) -> Part:
    """Compare the maps of sure and unsure images.

    Returns:
        Tensors, for either group (``sure``, ``unsure``): ``GROUP pictures`` (uint8) and ``GROUP maps`` (sum 1, float32)
        of the 8 most extreme images, their places ``GROUP index``, ``GROUP predictions`` and ``GROUP confidence``; and
        ``GROUP mean map`` of all.

    Raises:
        ConfigError: captum is not installed.
    """
    load_captum()
    site, confidence = last_features(case.model, case.x), case.logits().softmax(1).amax(1)
    sure, unsure = groups(case.logits(), case.y)
    chosen = {"sure": sure, "unsure": unsure}
    found = {name: attention_maps(case, index, site) for name, index in chosen.items()}
    seen = {name: maps.sum((1, 2)) > 0 for name, maps in found.items()}
    values = {name: concentration(maps[seen[name]]) for name, maps in found.items()}
    scores = [
        mean_score(f"area that carries half of the map, {name} images", value.cpu().numpy(), kind="description")
        for name, value in values.items()
        if len(value)
    ]
    tensors: dict[str, Tensor] = {}
    for name, index in chosen.items():
        tensors |= _shown(case, name, index, found[name], confidence)
    findings: list[Finding] = []
    if all(len(value) for value in values.values()):
        means = [maps[seen[name]].mean(0) for name, maps in found.items()]
        n = sum(len(value) for value in values.values())
        label = "overlap of the mean maps of sure and unsure images"
        scores.append(Score(label=label, value=float(overlap(*means)), kind="description", n=n))
        scores.append(_spread(values["unsure"], values["sure"]))
        findings.append(_finding(scores))
    blank = sum(int((~mask).sum()) for mask in seen.values())
    count = sum(len(index) for index in chosen.values())
    return Part(
        name="attention",
        question="Where does it look, when it is sure and when it is not?",
        scores=tuple(scores),
        findings=tuple(findings),
        tensors=tensors,
        notes=(
            f"Grad-CAM of the predicted class on the output of {site} (captum), enlarged to the size of the images.",
            f"Sure: of each class at most {PER_CLASS} right images of the highest confidence ({len(sure)}); unsure: as "
            f"many others of the lowest, right or wrong ({len(unsure)}).",
            *((f"{blank} of {count} maps are 0 everywhere: nothing speaks for the class. Left out.",) if blank else ()),
        ),
        passes={"forward": count, "backward": count},
    )


def attention_maps(case: Case, index: Int[Tensor, "m"], site: str) -> Float[Tensor, "m h w"]:
    """Map the predicted classes of some images of a case; each map sums to 1, or is 0 everywhere."""
    target = case.logits()[index].argmax(1)
    maps = grad_cam(
        case.model, case.x[index], target, site=site, batch_size=case.batch_size, seed=case.seed
    )  # fmt: skip
    return shares(maps)


def groups(logits: Float[Tensor, "n k"], y: Int[Tensor, "n"]) -> Groups:
    """Choose, of each class, the right images that the net is surest of, and as many others that it is least sure of.

    At most 20 of a class, at most 200 in all (one of each class, where there are more classes), and at most half of the
    images of a class.

    Returns:
        The places of either, ascending. Their classes are the true ones; an unsure image may be right or wrong.
    """
    classes = len(torch.unique(y))
    top = max(1, min(PER_CLASS, MOST_IMAGES // max(classes, 1)))
    sure = sure_images(logits, y, top=top)
    ranked = logits.double().log_softmax(1).amax(1).nan_to_num(-math.inf)
    high, low = [], []
    for c in torch.unique(y):
        mine = indices(y == c)
        most = min(top, len(mine) // 2)
        best = sure[y[sure] == c]
        best = best[torch.argsort(ranked[best], descending=True, stable=True)][:most]
        rest = mine[~torch.isin(mine, best)]
        low.append(rest[torch.argsort(ranked[rest], stable=True)][: len(best)])
        high.append(best)
    return torch.cat(high).sort().values, torch.cat(low).sort().values


def difference(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> tuple[float, float | None, float | None]:
    """Bound mean(a) - mean(b) of other images by Welch's t interval, 95 %; no bounds where a group has one image."""
    value = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return value, None, None
    u, v = float(a.var(ddof=1)) / len(a), float(b.var(ddof=1)) / len(b)
    if u + v == 0:
        return value, None, None
    freedom = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(u + v)
    return value, value - half, value + half


def _spread(unsure: Tensor, sure: Tensor) -> Score:
    value, low, high = difference(*(part.double().cpu().numpy() for part in (unsure, sure)))
    return Score(
        label="area that carries half of the map, unsure minus sure", value=value, kind="description",
        n=len(unsure) + len(sure), low=low, high=high,
    )  # fmt: skip


def _shown(
    case: Case, name: str, index: Int[Tensor, "m"], maps: Float[Tensor, "m h w"], confidence: Float[Tensor, "n"]
) -> dict[str, Tensor]:
    """Keep the pictures and maps of the most extreme images."""
    if not len(index):
        return {}
    order = torch.argsort(confidence[index], descending=name == "sure", stable=True)[:SHOWN]
    places = index[order]
    kept = {
        "pictures": (case.x[places] * 255).round().to(torch.uint8),
        "maps": maps[order],
        "index": places,
        "labels": case.y[places],
        "predictions": case.logits()[places].argmax(1),
        "confidence": confidence[places],
        "mean map": maps.mean(0),
    }
    return {f"{name} {what}": value.detach().cpu().contiguous() for what, value in kept.items()}


def _finding(scores: list[Score]) -> Finding:
    """Say how the maps of unsure images differ."""
    by = {score.label: score for score in scores}
    areas = [by[f"area that carries half of the map, {name} images"].value for name in ("sure", "unsure")]
    gap = by["area that carries half of the map, unsure minus sure"]
    alike = by["overlap of the mean maps of sure and unsure images"].value
    said = (
        f"half of the map lies on {areas[0]:.0%} of the area where it is sure, and on {areas[1]:.0%} where it is not; "
        f"the mean maps overlap by {alike:.0%}."
    )
    if gap.low is not None and gap.low > 0:
        remedy = (
            "Look at the pictures. Where masks of the objects can be had, the part background says what it looks at."
        )
        return Finding(
            code="unsure_looks_around", severity="note", text=f"Unsure, it looks around: {said}", remedy=remedy
        )
    if gap.high is not None and gap.high < 0:
        return Finding(code="unsure_looks_closer", severity="note", text=f"Unsure, it looks at less: {said}")
    return Finding(code="looks_alike", severity="note", text=f"Sure or not, its maps are as wide: {said}")
