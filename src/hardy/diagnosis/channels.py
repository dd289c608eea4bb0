"""Part ``channels``: which channels each class uses, how many, which ones confused classes share, and which are dead.

The maps are those of :mod:`hardy.diagnosis.correlation`. The words of the findings, and the thresholds below, are
Hardy's own: the paper shows maps and gives no limits.
"""

import statistics
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hardy import surgery
from hardy.attacks.passes import sealed_rng
from hardy.attacks.precision import full_precision
from hardy.diagnosis.case import Case
from hardy.diagnosis.correlation import Correlations, class_channel_map
from hardy.diagnosis.predictions import confused_pairs, confusion
from hardy.diagnosis.record import CORRELATION, Finding, Part
from hardy.diagnosis.sparsity import carrying, effective_channels, shared, silent
from hardy.errors import ParameterError
from hardy.inserts import Insert
from hardy.records import Score
from hardy.taps import Tap

__all__ = ["channel_ranges", "measure"]

QUARTER = 4  # a class's strongest channels are the strongest quarter
PAIRS = 3  # of classes that are spoken of
LEAST = 5  # images that must be confused before a pair is spoken of
SPARSE, DENSE = 0.5, 0.9  # share of the channels of the last layer that a class uses in effect
MANY_DEAD = 0.1  # of a layer
ALIKE = 0.8  # overlap of the strongest channels of two classes, in the median pair


def measure(case: Case) -> Part:
    """Map classes to channels in every layer of the case.

    Returns:
        Scores: ``effective channels, LAYER`` and ``channels that carry 90 %, LAYER`` as shares of the channels, mean
        over classes, at level 0, 1, ... in model order; ``effective channels of CLASS`` in the last layer, and
        ``shared by A and B``. Tensors: ``correlation LAYER`` (k, c); ``effective`` and ``carrying`` (layers, k), in
        channels; ``channels`` (layers,); ``overlap`` (k, k) in the last layer; ``pairs`` (p, 2), the classes that are
        confused most; ``images`` (k,) behind each class; ``index``, their places among the images of the map;
        ``constant LAYER`` and ``silent LAYER`` (c,), where there is such a channel.
    """
    x, y, rows = case.on_map()
    own = case.map_x is None
    found = class_channel_map(
        case.model, x, y, layers=case.layers, top=case.top, logits=case.logits() if own else None, sign=case.sign,
        draws=case.draws, sigma=case.sigma, joint=case.joint, rows=rows, seed=case.seed, batch_size=case.batch_size,
    )  # fmt: skip
    maps = {site: value.cpu() for site, value in found.maps.items()}
    ranges = channel_ranges(case.model, x, list(maps), batch_size=case.batch_size, seed=case.seed)
    constant = {site: (low == high).cpu() for site, (low, high) in ranges.items()}
    dead = {site: silent(map_) for site, map_ in maps.items() if case.sign == "absolute"}
    pairs = confused_pairs(confusion(case.y, case.predictions(), case.num_classes).cpu())[:PAIRS]
    last = list(maps)[-1]
    overlap = shared(maps[last], _quarter(maps[last]))
    tensors = {CORRELATION + site: map_ for site, map_ in maps.items()}
    tensors |= {
        "effective": torch.stack([effective_channels(map_) for map_ in maps.values()]),
        "carrying": torch.stack([carrying(map_) for map_ in maps.values()]),
        "channels": torch.tensor([map_.shape[1] for map_ in maps.values()]),
        "overlap": overlap,
        "pairs": torch.tensor([[a, b] for a, b, _ in pairs], dtype=torch.int64).reshape(-1, 2),
        "images": found.images.cpu(),
        "index": found.index.cpu(),
    }
    tensors |= {f"constant {site}": marks for site, marks in constant.items() if marks.any()}
    tensors |= {f"silent {site}": marks for site, marks in dead.items() if marks.any()}
    findings = (
        *_images(case, found.images),
        *_sparsity(last, maps[last]),
        *_sharing(case, last, maps[last], overlap, pairs),
        *_dead(constant, dead),
    )
    return Part(
        name="channels",
        question="Which channels does each class use?",
        scores=(
            *_curves(maps, len(found.index)),
            *_classes(case, maps[last], found.images),
            *_pairs(case, overlap, pairs),
        ),
        findings=findings,
        tensors=tensors,
        level_name="layer, from the image to the answer",
        notes=_notes(case, found),
        passes=found.passes | {"forward": found.passes["forward"] + len(x)},
    )


@torch.no_grad()
def channel_ranges(
    model: nn.Module, x: Float[Tensor, "n c h w"], sites: Sequence[str], *, batch_size: int = 128, seed: int = 0
) -> dict[str, tuple[Float[Tensor, "_"], Float[Tensor, "_"]]]:
    """Give the least and the largest value of each channel over all images and positions, by layer.

    Args:
        model: The plain net, in eval mode; it is left as it was.
        x: Images in [0, 1].
        sites: Of :func:`hardy.diagnosis.conv_sites`.
        batch_size: Images per pass.
        seed: Of a net that draws numbers of its own.
    """
    taps = [_Range(site) for site in sites]
    inserted = surgery.insert(model, Insert(None, seed=0), method="ranges", taps=taps)
    with inserted, full_precision(x.device), sealed_rng(x.device, seed):
        for part in torch.split(x, batch_size):
            model(part.clone())
    return {tap.site: tap.range() for tap in taps}


class _Range(Tap):
    """Keeps the least and the largest value of each channel of one call."""

    def __init__(self, site: str) -> None:
        name, _, call = site.partition("#")
        super().__init__(name, (int(call),) if call else (), total=2**31)
        self.site = site
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def range(self) -> tuple[Tensor, Tensor]:
        """Give both; NaN where a value is."""
        if self.low is None or self.high is None:
            raise ParameterError(
                f"channel_ranges: {self.site} must be called by the net; it is not. Name another layer."
            )
        return self.low, self.high

    def act(self, y: Tensor, call: int) -> None:  # noqa: ARG002  (a site is one call)
        """Look at one batch."""
        rows = y.flatten(2).transpose(0, 1).flatten(1) if y.ndim == 4 else y.T
        low, high = rows.aminmax(dim=1)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)


def _quarter(map_: Float[Tensor, "k c"]) -> int:
    return max(1, map_.shape[1] // QUARTER)


def _curves(maps: Mapping[str, Float[Tensor, "k _"]], n: int) -> list[Score]:
    """Give, by layer, the share of the channels that a class uses, mean over the classes that have a map."""
    made = []
    for level, (site, map_) in enumerate(maps.items()):
        channels = map_.shape[1]
        counted = {
            "effective channels": effective_channels(map_),
            "channels that carry 90 %": carrying(map_).float(),
        }
        for name, counts in counted.items():
            some = counts[counts > 0]
            if len(some):
                details: dict[str, str | int | float | bool | None] = {"layer": site, "channels": channels}
                made.append(
                    Score(
                        label=f"{name}, {site}", value=float(some.mean()) / channels, kind="description", n=n,
                        level=float(level), series=name, details=details | {"in channels": float(some.mean())},
                    )
                )  # fmt: skip
    return made


def _classes(case: Case, map_: Float[Tensor, "k c"], images: Int[Tensor, "k"]) -> list[Score]:
    """Give the channels of the last layer that each class uses in effect."""
    counts = effective_channels(map_)
    return [
        Score(
            label=f"effective channels of {_name(case, c)}", value=float(counts[c]), kind="description",
            n=int(images[c]), series="effective channels of a class in the last layer", unit="channels",
            details={"class": c},
        )
        for c in range(len(counts))
        if counts[c] > 0
    ]  # fmt: skip


def _pairs(case: Case, overlap: Float[Tensor, "k k"], pairs: Sequence[tuple[int, int, int]]) -> list[Score]:
    """Give what the confused pairs share in the last layer."""
    return [
        Score(
            label=f"shared by {_name(case, a)} and {_name(case, b)}", value=float(overlap[a, b]), kind="description",
            n=len(case.y), series="shared strongest channels", details={"a": a, "b": b, "confused images": count},
        )
        for a, b, count in pairs
        if not overlap[a, b].isnan()
    ]  # fmt: skip


def _images(case: Case, images: Int[Tensor, "k"]) -> list[Finding]:
    """Say which classes have no map, or one of few images."""
    none = [_name(case, c) for c in range(len(images)) if not images[c]]
    if not none:
        return []
    return [
        Finding(
            code="no_map",
            severity="note",
            text=f"No map of {_listed(none)}: of these classes no image among those given is classified right.",
            remedy="Give more images of these classes, or see why none of them is classified right.",
        )
    ]


def _sparsity(site: str, map_: Float[Tensor, "k c"]) -> list[Finding]:
    """Say whether classes use few channels of the last layer."""
    counts = effective_channels(map_)
    counts = counts[counts > 0]
    if not len(counts):
        return []
    share, channels = float(counts.mean()) / map_.shape[1], map_.shape[1]
    said = f"In {site} a class uses {float(counts.mean()):.0f} of {channels} channels in effect ({share:.0%})"
    if share > DENSE:
        remedy = "The channel-wise constraint holds a class to its own channels: hardy treat --how channel."
        return [Finding(code="dense_classes", severity="note", text=f"{said}: nearly all alike.", remedy=remedy)]
    if share < SPARSE:
        return [Finding(code="sparse_classes", severity="good", text=f"{said}.")]
    return [Finding(code="class_channels", severity="note", text=f"{said}.")]


def _sharing(
    case: Case,
    site: str,
    map_: Float[Tensor, "k c"],
    overlap: Float[Tensor, "k k"],
    pairs: Sequence[tuple[int, int, int]],
) -> list[Finding]:
    """Say what the confused pairs share, next to other pairs and to chance."""
    top = _quarter(map_)
    above = torch.triu(torch.ones_like(overlap, dtype=torch.bool), diagonal=1)
    known = overlap[above & ~overlap.isnan()].tolist()
    if not known:
        return []
    median, made = statistics.median(known), []
    if median > ALIKE and len(known) > 1:
        text = f"In {site} two classes share {median:.0%} of their {top} strongest channels in the median pair"
        made.append(Finding(code="classes_alike", severity="note", text=f"{text} (chance: {top / map_.shape[1]:.0%})."))
    for a, b, count in pairs:
        if count < LEAST or overlap[a, b].isnan() or overlap[a, b] <= max(median, top / map_.shape[1]):
            continue
        both = (map_[a] / map_[a].sum()).minimum(map_[b] / map_[b].sum())
        most = ", ".join(str(int(c)) for c in both.topk(min(PAIRS, top)).indices)
        text = (
            f"{_name(case, a)} and {_name(case, b)}, confused in {count} images, share {float(overlap[a, b]):.0%} of "
            f"their {top} strongest channels in {site} (median pair {median:.0%}, chance {top / map_.shape[1]:.0%}); "
            f"most of all {most}."
        )
        remedy = "The channel-wise constraint holds the score of the wrong class down: hardy treat --how channel."
        made.append(Finding(code="shared_channels", severity="note", text=text, remedy=remedy))
    return made


def _dead(constant: Mapping[str, Bool[Tensor, "_"]], dead: Mapping[str, Bool[Tensor, "_"]]) -> list[Finding]:
    """Say where channels never change, or matter to no class."""
    made = []
    for code, marked, what in (
        ("constant_channels", constant, "have one and the same value on all images"),
        ("silent_channels", dead, "change the score of no class on the images of its map"),
    ):
        some = {site: int(marks.sum()) for site, marks in marked.items() if marks.any()}
        if not some:
            continue
        total, of = sum(some.values()), sum(len(marks) for marks in marked.values())
        worst = max(some, key=lambda site: some[site] / len(marked[site]))
        share = some[worst] / len(marked[worst])
        text = f"{total} of {of} channels {what}; most in {worst}: {some[worst]} of {len(marked[worst])}."
        remedy = "They cost time and add nothing: remove them, or train with a lower rate or less weight decay."
        severity = "problem" if share >= MANY_DEAD else "note"
        made.append(Finding(code=code, severity=severity, text=text, remedy=remedy))  # type: ignore[arg-type]  # two words
    return made or [
        Finding(code="no_dead_channels", severity="good", text="No channel is dead in the layers looked at.")
    ]


def _notes(case: Case, found: Correlations) -> tuple[str, ...]:
    """Say what the maps are of."""
    counts = found.images.tolist()
    few = [f"{_name(case, c)} ({n})" for c, n in enumerate(counts) if 0 < n < case.top]
    said = "Eq. 3" if case.draws == 0 else f"Eq. 4, {case.draws} draws of normal noise of {case.sigma:g}"
    notes = [
        f"Maps: {said}, {case.sign} gradients of the label's logit; of each class the up to {case.top} images of which "
        "the net is surest, all classified right.",
        "A map is of the output of the module named, a convolution's before its normalisation and activation; sizes in "
        "different layers cannot be compared.",
    ]
    if case.joint and case.draws:
        notes.append("Noise on all layers at once: a deviation from the paper, which has noise on one layer at a time.")
    if few:
        notes.append(f"Classes with fewer images than asked for: {_listed(few)}.")
    if case.map_x is None:
        notes.append("The maps are of the images given; the paper takes training images.")
    return tuple(notes)


def _name(case: Case, c: int) -> str:
    return case.class_names[c]


def _listed(words: Sequence[str], most: int = 10) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
