"""The section of classes and channels: a heat map for every layer, how many channels are used, and which are shared."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hardy.diagnosis.record import CORRELATION, Diagnosis, Part
from hardy.records import Score
from hardy.reporting.diagnosis_maps import CLASSES, map_picture, most_confused
from hardy.reporting.diagnosis_numbers import bars, lines
from hardy.reporting.diagnosis_parts import Block, LayerMap, LayerMaps, Legible, Named
from hardy.reporting.numbers import percent

__all__ = ["channels"]

STRONGEST = 3  # channels of a class that are named
LAYER_FACTS = ("constant", "silent")
EXPLAINED = (
    "The deeper the colour, the more the score of the class (row) depends on the channel (column); every row is "
    "relative to its own largest value. Few dark cells in a row: the class relies on few channels. The same dark "
    "cells in two rows: both classes rely on the same channels."
)


def channels(diagnosis: Diagnosis, part: Part) -> list[Named]:
    """Write the part ``channels``: maps first, then how many channels are used, then what confused classes share."""
    layers = [name.removeprefix(CORRELATION) for name in part.tensors if name.startswith(CORRELATION)]
    layers.sort(key=diagnosis.layers.index)
    made: list[Named] = [("maps", _maps(diagnosis, part, layers)), *_by_layer(part, layers)]
    classes = [s for s in part.scores if s.series == "effective channels of a class in the last layer"]
    if classes:
        some = len(classes) > CLASSES
        which = f"The {CLASSES} of {len(classes)} classes that use most channels" if some else "Channels of each class"
        made.append(
            ("bars", bars(
                sorted(classes, key=lambda s: -s.value)[:CLASSES], title=f"{which}, in effect, in {layers[-1]}",
                head="Class", name=lambda s: diagnosis.class_names[int(str(s.details["class"]))], folded=True,
            ))
        )  # fmt: skip
    pairs = [s for s in part.scores if s.series == "shared strongest channels"]
    if pairs:
        made.append(("bars", _shared(diagnosis, part, pairs, layers[-1])))
    return made


def _maps(diagnosis: Diagnosis, part: Part, layers: Sequence[str]) -> LayerMaps:
    """Draw all layers, the last of which is shown first."""
    counts = next((p.tensors["confusion"] for p in diagnosis.parts if "confusion" in p.tensors), None)
    classes = len(diagnosis.class_names)
    chosen = most_confused(counts, classes)
    why = "the first" if counts is None else "those of the pairs that are confused most often"
    which = f" Shown are {len(chosen)} of {classes:,} classes, {why}." if len(chosen) < classes else ""
    return LayerMaps(
        title="Which class depends on which channel",
        question=f"{EXPLAINED}{which} Choose a layer:",
        layers=tuple(_layer_map(diagnosis, part, layer, chosen, last=layer == layers[-1]) for layer in layers),
    )


def _shared(diagnosis: Diagnosis, part: Part, pairs: Sequence[Score], layer: str) -> Block:
    """Draw what confused pairs share, next to what a pair shares by chance."""
    overlap, count = part.tensors["overlap"], part.tensors[CORRELATION + layer].shape[1]
    above = torch.triu(torch.ones_like(overlap, dtype=torch.bool), diagonal=1)
    median = float(overlap[above & ~overlap.isnan()].median())
    names = diagnosis.class_names

    def name(score: Score) -> str:
        return f"{names[int(str(score.details['a']))]} and {names[int(str(score.details['b']))]}"

    return bars(
        pairs, title=f"What the most confused pairs of classes share in {layer}", head="Pair", name=name,
        sub=lambda s: f"confused in {s.details.get('confused images')} images",
        mark=max(1, count // 4) / count, mark_text="chance",
        notes=[
            "Share of the strongest quarter of the channels of one class that is also in the strongest quarter of the "
            f"other. Chance: of two random quarters. The median pair of classes shares {percent(median)} %.",
        ],
    )  # fmt: skip


def _by_layer(part: Part, layers: Sequence[str]) -> list[Named]:
    """Draw how many channels a class uses, layer by layer, and count the dead ones."""
    curves = [s for s in part.scores if s.level is not None and "layer" in s.details]
    made = list[Named]()
    if len({s.level for s in curves}) > 1:
        made.append(
            ("lines", lines(
                curves, name="sparsity", title="Share of the channels that a class uses, layer by layer",
                level_name=part.level_name, ticks=(),
                question="Mean over the classes. Effective: how many channels of equal weight would be as spread out.",
            ))
        )  # fmt: skip
    rows = []
    for number, layer in enumerate(layers):
        counts = [_marked(part, f"{kind} {layer}") for kind in LAYER_FACTS]
        width = part.tensors[CORRELATION + layer].shape[1]
        used = {s.series: f"{percent(s.value)} %" for s in curves if s.details["layer"] == layer}
        means = [used.get(each, "not known") for each in ("effective channels", "channels that carry 90 %")]
        rows.append((layer, str(number), f"{width:,}", *means, *map(str, counts)))
    heads = ("Layer", "Place", "Channels", "Used in effect", "Carry 90 %", "Constant", "Silent")
    notes = (
        "Used in effect and carry 90 %: share of the channels, mean over the classes. Constant: the channel has one "
        "value on all images. Silent: no class's score depends on it.",
    )
    made.append(("table", Legible(title="Layer by layer", heads=heads, rows=tuple(rows), notes=notes, folded=True)))
    return made


def _layer_map(diagnosis: Diagnosis, part: Part, layer: str, chosen: Sequence[int], *, last: bool) -> LayerMap:
    map_ = part.tensors[CORRELATION + layer].float()
    names = diagnosis.class_names
    constant, silent = (_marked(part, f"{kind} {layer}") for kind in LAYER_FACTS)
    dead = [f"{count} {word}" for count, word in ((constant, "never change"), (silent, "matter to no class")) if count]
    facts = ", ".join([f"{map_.shape[1]:,} channels", *dead])
    none = [names[c] for c in chosen if map_[c].isnan().any()]
    notes = [f"Gray, without a map, as no image was classified right: {', '.join(none)}."] if none else []
    pictures = tuple(map_picture(map_, names, layer=layer, sort=sort, chosen=chosen) for sort in (True, False))
    table = _layer_table(diagnosis, part, layer, map_, chosen)
    return LayerMap(name=layer, facts=facts, pictures=pictures, table=table, notes=tuple(notes), chosen=last)


def _layer_table(
    diagnosis: Diagnosis, part: Part, layer: str, map_: Float[Tensor, "k c"], chosen: Sequence[int]
) -> Legible:
    """List how many channels each class uses in a layer, and which most."""
    place, counts = diagnosis.layers.index(layer), [part.tensors[key] for key in ("effective", "carrying")]
    rows = []
    for c in chosen:
        known = not map_[c].isnan().any() and bool(map_[c].any())
        used = [f"{float(count[place, c]):.0f}" if known else "not known" for count in counts]
        most = map_[c].topk(min(STRONGEST, map_.shape[1])).indices.tolist() if known else []
        rows.append((diagnosis.class_names[c], *used, ", ".join(map(str, most))))
    heads = ("Class", "Channels used in effect", "Channels that carry 90 %", "Strongest channels")
    return Legible(title="Class by class", heads=heads, rows=tuple(rows), folded=True)


def _marked(part: Part, name: str) -> int:
    found = part.tensors.get(name)
    return 0 if found is None else int(found.sum())
