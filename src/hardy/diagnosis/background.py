"""Does it need the background: what is left of its answers when the background, or the object, is taken away?

Where the objects are must be known (masks). Two questions are asked. Of maps: how much of the attention map (Grad-CAM)
and of the gradient by the pixels falls on the background, next to the background's share of the area. Of answers: how
many are right with the background painted over, with the background of an image of another class, and with the object
painted over, where nothing better than chance should be left.

Observation 3 of Model Doctor (Feng et al., AAAI 2022, https://arxiv.org/abs/2112.04934), that images of low confidence
look at the background, is asked by comparing sure and unsure images. Painting and swapping by masks is Hardy's own; a
painted area is itself something that no net was trained on, and its outline still shows the shape of what was there.
"""

import torch
from torch import Tensor

from hardy.diagnosis.attacked import indices
from hardy.diagnosis.attention import attention_maps, difference, groups
from hardy.diagnosis.backgrounds import background_share, donors, mean_colour, paint, swap_backgrounds, usable
from hardy.diagnosis.case import Case
from hardy.diagnosis.grad_cam import available, last_features, shares
from hardy.diagnosis.record import Finding, Part
from hardy.errors import DataError
from hardy.evaluation.attribution import saliency
from hardy.records import Score, mean_score
from hardy.stats import paired_bootstrap, paired_p, wilson

__all__ = ["measure"]

FEW = 10  # images with an object and a background below which nothing is measured
SHOWN = 8  # pictures
LEVEL = 0.05  # of the sign test beside an interval
PLAIN, ALONE, WITHOUT, SWAPPED = (
    "plain",
    "background painted over",
    "object painted over",
    "background of another class",
)


def measure(case: Case) -> Part:
    """Measure on all images that have an object and a background.

    Returns:
        Tensors: ``pictures`` of some images, ``pictures ALTERED`` of the same ones painted or swapped, and ``index``,
        their places among the images of the case.

    Raises:
        DataError: no masks, or fewer than 10 images that have an object and a background.
    """
    if case.masks is None:
        raise DataError("diagnose: the part 'background' must know where the objects are; got no masks. Give masks.")
    masks = case.masks.to(case.x.device)
    index = usable(masks)
    if len(index) < FEW:
        raise DataError(
            f"diagnose: the part 'background' needs at least {FEW} images with an object and a background; masks mark "
            f"{len(index)}. Leave the part out, or give masks of more images."
        )
    altered, giver = _altered(case, index, masks[index])
    found = {name: case.context().predict(x) for name, x in altered.items()}
    found[PLAIN] = case.predictions()[index]
    answers = _answers(case, index, found, giver)
    maps, passes, notes = _maps(case, masks)
    shown = indices(found[PLAIN] == case.y[index])[:SHOWN]
    tensors = {"pictures": case.x[index[shown]], **{f"pictures {name}": x[shown] for name, x in altered.items()}}
    pictures = {name: (x * 255).round().to(torch.uint8).cpu() for name, x in tensors.items()}
    left = len(case.x) - len(index)
    return Part(
        name="background",
        question="Does it need the background, and does it look at it?",
        scores=(*answers, *maps),
        findings=_findings([*answers, *maps], chance=_chance(case.y[index])),
        tensors={**pictures, "index": index[shown].cpu()},
        notes=(
            "What is painted over has the mean colour of the images. Paint is new to the net too, and its outline "
            "keeps the shape of what it covers.",
            *notes,
            *((f"{left} of {len(case.x)} images have no mark, or no background, and are left out.",) if left else ()),
        ),
        passes={"forward": len(index) * len(altered) + passes, "backward": passes},
    )


def _altered(case: Case, index: Tensor, masks: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
    """Make the images that are asked about."""
    x, colour = case.x[index], mean_colour(case.x)
    made = {ALONE: paint(x, ~masks, colour), WITHOUT: paint(x, masks, colour)}
    giver = donors(case.y[index], case.keys("background")[index], case.rows[index])
    if giver is not None:
        made[SWAPPED] = swap_backgrounds(x, masks, giver)
    return made, giver


def _answers(case: Case, index: Tensor, found: dict[str, Tensor], giver: Tensor | None) -> list[Score]:
    """Count right answers, and compare them with those to the plain images, image by image."""
    y = case.y[index]
    right = {name: found[name] == y for name in (PLAIN, ALONE, WITHOUT, SWAPPED) if name in found}
    made = [_share(f"accuracy, {name}", ok, series="accuracy", kind="accuracy") for name, ok in right.items()]
    for name in (ALONE, WITHOUT, SWAPPED):
        if name in right:
            pair = (right[name].cpu().numpy(), right[PLAIN].cpu().numpy())
            value, low, high = paired_bootstrap(*pair, seed=case.seed)
            made.append(
                Score(
                    label=f"accuracy, {name} minus plain", value=value, kind="description", n=len(y), low=low,
                    high=high, series="difference", details={"p": paired_p(*pair)},
                )
            )  # fmt: skip
    if right[PLAIN].any():
        kept = right[WITHOUT][right[PLAIN]]
        made.append(_share(f"right answers kept, {WITHOUT}", kept, series="kept", kind="description"))
    if giver is not None:
        follows = found[SWAPPED] == y[giver]
        made.append(
            _share("answers that name the class of the background", follows, series="follows", kind="description")
        )
    return made


def _share(label: str, ok: Tensor, *, series: str, kind: str) -> Score:
    n, count = len(ok), int(ok.sum())
    low, high = wilson(count, n)
    return Score(label=label, value=count / n, kind=kind, n=n, low=low, high=high, series=series)  # type: ignore[arg-type]  # two words


def _maps(case: Case, masks: Tensor) -> tuple[list[Score], int, tuple[str, ...]]:
    """Measure what of the maps falls on the background, of sure and unsure images that have a mark.

    Returns:
        Scores, passes, notes.
    """
    flat = masks.flatten(1)
    known = flat.any(1) & ~flat.all(1)
    chosen = dict(zip(("sure", "unsure"), groups(case.logits()[known], case.y[known]), strict=True))
    places = indices(known)
    asked, made = ("gradient", "attention") if available() else ("gradient",), []
    for kind in asked:
        over = {}
        for name, inside in chosen.items():
            index = places[inside]
            maps = _map(case, index, kind)
            share, area = background_share(maps, masks[index]), (~masks[index]).float().mean((1, 2))
            over[name] = (share - area)[~share.isnan()].double().cpu().numpy()
            made += _shares_of(kind, name, share[~share.isnan()], area[~share.isnan()])
        if all(len(values) for values in over.values()):
            value, low, high = difference(over["unsure"], over["sure"])
            made.append(
                Score(
                    label=f"{kind} on the background beyond its area, unsure minus sure", value=value,
                    kind="description", n=sum(map(len, over.values())), low=low, high=high, series=kind,
                )
            )  # fmt: skip
    notes = ["Maps are of the predicted class, of the images that it is surest and least sure of, class by class."]
    notes += [
        "Grad-CAM is enlarged from the last feature map: near its edge an object shares its map with the background."
    ]
    if not available():
        notes = [notes[0], "Without captum (pip install 'hardy[attention]') there is no attention map."]
    return made, len(asked) * sum(map(len, chosen.values())), tuple(notes)


def _map(case: Case, index: Tensor, kind: str) -> Tensor:
    if kind == "attention":
        return attention_maps(case, index, last_features(case.model, case.x))
    if not len(index):
        return case.x.new_zeros(0, *case.x.shape[2:])
    target = case.logits()[index].argmax(1)
    parts = torch.split(torch.arange(len(index), device=case.x.device), case.batch_size)
    return shares(torch.cat([saliency(case.model, case.x[index[p]], target[p]) for p in parts]))


def _shares_of(kind: str, name: str, share: Tensor, area: Tensor) -> list[Score]:
    """Record the share of the map, of the area, and their difference, of one group."""
    if not len(share):
        return []
    values = {
        f"{kind} on the background, {name} images": share,
        f"area of the background, {name} images ({kind})": area,
        f"{kind} on the background beyond its area, {name} images": share - area,
    }
    return [
        mean_score(label, value.double().cpu().numpy(), kind="description", series=kind)
        for label, value in values.items()
    ]


def _chance(y: Tensor) -> float:
    """Give the accuracy of always naming the class that is most common among the images."""
    return float(torch.bincount(y).max()) / len(y)


def _findings(scores: list[Score], *, chance: float) -> tuple[Finding, ...]:
    """Say whether the answers, and the maps, rest on the background."""
    by = {score.label: score for score in scores}
    made = []
    remedy = (
        "Treat it with the space-wise constraint and these masks (hardy treat), or train on images whose backgrounds "
        "are swapped."
    )
    swapped, alone = by.get(f"accuracy, {SWAPPED} minus plain"), by[f"accuracy, {ALONE} minus plain"]
    for code, score, what in (
        ("needs_its_background", swapped, "with the background of an image of another class"),
        ("needs_a_background", alone, "with the background painted over"),
    ):
        if score is not None and score.high is not None and score.high < 0 and _tested(score):
            bounds = f"{100 * (score.low or 0.0):+.1f} to {100 * score.high:+.1f}"
            text = (
                f"{what.capitalize()} its accuracy changes by {100 * score.value:+.1f} points ({bounds}); edges of the "
                "paste and the paint count in this."
            )
            made.append(Finding(code=code, severity="problem", text=text, remedy=remedy))
    rest = by[f"accuracy, {WITHOUT}"]
    if rest.low is not None and rest.low > chance:
        text = (
            f"With the object painted over it is still right on {rest.value:.1%} ({rest.low:.1%} to {rest.high:.1%}; "
            f"always naming the most common class: {chance:.1%}). The background, or the outline of the paint, tells "
            "the class."
        )
        made.append(Finding(code="background_tells_the_class", severity="problem", text=text, remedy=remedy))
    for kind in ("attention", "gradient"):
        made += _looks(by, kind, remedy)
    plain = by[f"accuracy, {PLAIN}"]
    if not any(finding.severity == "problem" for finding in made) and (plain.low or 0.0) <= chance:
        text = "On these images it is no better than always naming the most common class: nothing can be said of what "
        text += "its answers rest on."
        made.append(Finding(code="background_not_told", severity="note", text=text))
    elif not any(finding.severity == "problem" for finding in made):
        text = "Its answers do not measurably rest on the background of these images."
        made.append(Finding(code="no_background_reliance", severity="good", text=text))
    return tuple(made)


def _tested(score: Score) -> bool:
    p = score.details.get("p")
    return isinstance(p, float) and p < LEVEL


def _looks(by: dict[str, Score], kind: str, remedy: str) -> list[Finding]:
    """Say where a map is, next to the area."""
    sure = by.get(f"{kind} on the background beyond its area, sure images")
    gap = by.get(f"{kind} on the background beyond its area, unsure minus sure")
    made = []
    if sure is not None and sure.low is not None and sure.low > 0:
        share, area = (by[label].value for label in _labels(kind))
        text = f"Where it is sure, {share:.0%} of the {kind} map is on the background ({area:.0%} of the area)."
        made.append(Finding(code=f"{kind}_on_background", severity="note", text=text, remedy=remedy))
    if gap is not None and gap.low is not None and gap.low > 0:
        text = (
            f"Where it is unsure, {gap.value:.1%} more of its {kind} map is on the background than where it is sure "
            f"({gap.low:.1%} to {gap.high:.1%}), the areas allowed for."
        )
        made.append(Finding(code=f"unsure_{kind}_on_background", severity="note", text=text, remedy=remedy))
    return made


def _labels(kind: str) -> tuple[str, str]:
    return f"{kind} on the background, sure images", f"area of the background, sure images ({kind})"
