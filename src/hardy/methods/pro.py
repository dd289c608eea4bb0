r"""Pattern-based robustness optimisation (PRO): features of a class shall have one pattern of relative sizes.

Hu, Ye, Feng, Yang, Liu, Yu, Jia, Song. "Improving adversarial robustness via feature pattern consistency constraint".
IJCAI 2024, https://arxiv.org/abs/2406.08829. One of the three parts of FPCC, see :mod:`hardy.methods.fpcc`.

With the pooled features :math:`v_b` of image b at layer l, its pattern is their z-score over the channels d,
:math:`u_b = (v_b - \mathrm{mean}_d v_b) / (\mathrm{std}_d v_b + 10^{-5})`, and with a pattern :math:`P_{l,c}` for every
class c the pattern consistency loss of the layer is the mean of :math:`|u_{b,d} - P_{l,y_b,d}|` over b and d.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.errors import AttachError, ShapeError
from hardy.methods._blocks import BLOCKS, places
from hardy.methods._card import Card
from hardy.methods._checks import in_range, one_of, sites_given, some
from hardy.methods.mixup import class_count, soft_labels
from hardy.taps import Tap

__all__ = ["CARD", "PatternConsistency", "PatternInsert", "PatternTap", "feature_pattern", "pattern_distances"]

NORMALISE, DISTANCES, PATTERNS = ("zscore", "minmax"), ("l1", "l2", "cosine"), ("learned", "ema")
TINY = 1e-5  # beside the standard deviation: the released code's

CARD = Card(
    name="pro",
    summary="Pull the relative sizes of the channels towards a pattern of the image's class, at many layers, by a loss "
    "term while training. One of the three parts of FPCC.",
    paper="Hu et al., IJCAI 2024",
    url="https://arxiv.org/abs/2406.08829",
    kind="loss",
    live=False,
    attaches="'blocks', the default: the last convolution of each residual branch and convolutions on shortcuts, "
    "before any norm; in nets without, all convolutions of the main path but the first, and hidden linear layers; "
    "never depthwise convolutions, logits, or fewer than 8 channels",
    defaults_from="z-score, L1, learned patterns that start as standard normal numbers and are decayed like weights, "
    "weight 1: the released code. Its places differ from net to net; the rule for any CNN is ours.",
    deviations=(
        "The paper's body could not be read; all is from the released code and summaries.",
        "Labels come with the batch through hardy.Objective; the released code passes them through every forward.",
        "Of soft labels, the loss is the mean over the classes, weighted by their shares.",
    ),
    notes=(
        "The term is a mean over channels and a sum over layers: it grows with the depth of the net.",
        "Patterns are parameters below _hardy, or buffers with patterns = 'ema'; strip() removes them.",
        "Moving averages over several processes are those of the images of the first.",
        "The released code carries no licence; nothing of it was copied.",
    ),
)


def feature_pattern(x: Float[Tensor, "n c *map"], *, normalise: Literal["zscore", "minmax"]) -> Float[Tensor, "n c"]:
    """Compute how large each channel is beside the others: pooled over the map, then normalised over the channels.

    Args:
        x: Feature map (n, c, h, w) or features (n, c); any real values, at least 2 channels.
        normalise: "zscore": mean 0 and (unbiased) standard deviation 1; "minmax": from 0 to 1.

    Returns:
        Patterns, in float32 at least.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    # a copy, as backward needs it and a net may overwrite x
    v = x.mean(dim=(2, 3), dtype=dtype) if x.ndim == 4 else x.to(dtype, copy=True)
    if normalise == "minmax":
        low, high = v.amin(1, keepdim=True), v.amax(1, keepdim=True)
        return (v - low) / (high - low + TINY)
    return (v - v.mean(1, keepdim=True)) / (v.std(1, keepdim=True) + TINY)


def pattern_distances(
    pattern: Float[Tensor, "n c"], target: Float[Tensor, "n c"], *, distance: Literal["l1", "l2", "cosine"]
) -> Float[Tensor, "n"]:
    """Compare patterns row by row: mean absolute or squared difference over the channels, or 1 minus the cosine."""
    if distance == "cosine":
        return 1 - F.cosine_similarity(pattern, target, dim=1)
    difference = pattern - target
    return (difference.abs() if distance == "l1" else difference.square()).mean(1)


class Seen(list[tuple["PatternTap", Tensor]]):
    """Patterns of the latest forward pass of the objective; a copy of it, made by copying the model, is empty."""

    on = False
    gradients = False  # whether the pass that is on takes them

    def __reduce__(self) -> tuple[type["Seen"], tuple[()]]:
        return Seen, ()


class PatternTap(Tap):
    """Computes the patterns of one site, and compares them with those of the classes.

    Args:
        name: Module or input.
        calls: Which of its calls.
        total: How many it has.
        initial: Patterns of the classes at the beginning.
        spec: How to compare.
        seen: Where patterns wait for the labels.
    """

    patterns: Tensor
    known: Tensor

    def __init__(
        self,
        name: str,
        calls: tuple[int, ...],
        total: int,
        *,
        initial: Float[Tensor, "k c"],
        spec: "PatternConsistency",
        seen: Seen,
    ) -> None:
        super().__init__(name, calls, total)
        self.spec, self.seen, self.shape = spec, seen, initial.shape
        if spec.patterns == "ema":
            self.register_buffer("patterns", torch.zeros_like(initial))
            self.register_buffer("known", torch.zeros(len(initial), dtype=torch.bool))
        else:  # a vector is not decayed, by the rule of every optimizer in use
            self.patterns = nn.Parameter(initial if spec.weight_decay else initial.flatten())

    def act(self, y: Tensor, call: int) -> None:
        """Look, and change nothing."""
        if self.training:  # in backward too, where checkpointing wants to see the same operations again
            pattern = feature_pattern(y, normalise=self.spec.normalise)
            if self.seen.on and self.seen.gradients and not torch.is_grad_enabled():
                raise AttachError(
                    f"{self.name}: patterns need gradients, which reentrant activation checkpointing does not let "
                    "out. Use checkpoint(..., use_reentrant=False), or choose sites outside of it."
                )
            if self.seen.on:
                self.seen.append((self, pattern))

    def loss(self, pattern: Float[Tensor, "n c"], y: Int[Tensor, "n"] | Float[Tensor, "n k"]) -> Float[Tensor, ""]:
        """Compute the pattern consistency loss of the site, a mean over the images."""
        patterns = self.patterns.view(self.shape)
        if y.ndim == 1:
            distance = pattern_distances(pattern, patterns[y], distance=self.spec.distance)
            return (distance if self.spec.patterns == "learned" else distance * self.known[y]).mean()
        row, label = y.nonzero(as_tuple=True)
        distance = pattern_distances(pattern[row], patterns[label], distance=self.spec.distance) * y[row, label]
        return (distance if self.spec.patterns == "learned" else distance * self.known[label]).sum() / len(y)

    @torch.no_grad()
    def follow(self, pattern: Float[Tensor, "n c"], y: Int[Tensor, "n"] | Float[Tensor, "n k"]) -> None:
        """Move the averages of the classes that are in the batch; the first one of a class is taken as it is."""
        if self.spec.patterns == "learned":
            return
        share = soft_labels(y, self.shape[0]).to(pattern.dtype)
        total = share.sum(0)
        with torch.autocast(pattern.device.type, enabled=False):  # which would round the average
            mean = share.T @ pattern / total.clamp(min=torch.finfo(total.dtype).tiny)[:, None]
        mean = mean.to(self.patterns.dtype)
        moved = torch.where(self.known[:, None], torch.lerp(mean, self.patterns, self.spec.momentum), mean)
        self.patterns.copy_(torch.where((total > 0)[:, None], moved, self.patterns))
        self.known |= total > 0


class PatternInsert(surgery.Insert):
    """Adds the loss term."""

    def __init__(self, spec: Any, *, seed: int, term: str, weight: float) -> None:
        super().__init__(spec, seed=seed)
        self.term, self.weight, self.seen = term, weight, Seen()

    def listen(self, on: bool) -> None:
        if on:
            self.seen.clear()
        self.seen.on, self.seen.gradients = on, torch.is_grad_enabled()

    def terms(self, context: surgery.Context) -> dict[str, Tensor]:
        losses = []
        for tap, pattern in self.seen:
            if len(pattern) != len(context.y):
                raise ShapeError(
                    f"{self.term}: {tap.name} must give one row per image; got {len(pattern)} rows for "
                    f"{len(context.y)} labels. Choose other sites."
                )
            losses.append(tap.loss(pattern, context.y))
            tap.follow(pattern.detach(), context.y)
        self.seen.clear()
        return {self.term: self.weight * torch.stack(losses).sum()} if losses else {}

    def taps_at(
        self, model: nn.Module, sites: Sequence[str], spec: "PatternConsistency", *, example: Tensor
    ) -> list[Tap]:
        """Make a tap for each site, with patterns drawn from the seed.

        Raises:
            AttachError: a site has not at least 2 channels.
        """
        classes = class_count(model, example, self.term)

        def tap(name: str, calls: tuple[int, ...], total: int, y: Tensor) -> PatternTap:
            if y.ndim not in (2, 4) or y.shape[1] < 2:
                got = tuple(y.shape)
                raise AttachError(f"{self.term}: {name} must give (n, c, h, w) or (n, c), c > 1; got {got}.")
            key = seeding.keys(seeding.root(self.seed, f"{CARD.name}:{name}"), torch.arange(classes))
            initial = seeding.normal(key, 0, (y.shape[1],)).to(torch.promote_types(y.dtype, torch.float32))
            return PatternTap(name, calls, total, initial=initial, spec=spec, seen=self.seen)

        return surgery.taps_at(model, sites, tap, method=self.term, example=example)


@dataclass(frozen=True, kw_only=True)
class PatternConsistency:
    """PRO as a method; the defaults are the released code's.

    Attributes:
        weight: Of the sum of the losses of all sites, beside a cross-entropy of weight 1, at least 0 (lambda; released
            code: 1, with 10 in a comment).
        normalise: "zscore" (released code) or "minmax" (its comments): of pooled features, over the channels.
        distance: "l1" (released code), "l2" (mean squared) or "cosine".
        patterns: "learned": parameters; "ema": moving averages of the patterns of each class, which the loss of a class
            uses from the second batch that has it.
        momentum: Share of the old average that a batch leaves, in [0, 1); with "ema".
        weight_decay: Decay learned patterns like weights (released code); else they are left alone.
        sites: "blocks" (see the card), or modules.
    """

    weight: float = 1.0
    normalise: Literal["zscore", "minmax"] = "zscore"
    distance: Literal["l1", "l2", "cosine"] = "l1"
    patterns: Literal["learned", "ema"] = "learned"
    momentum: float = 0.9
    weight_decay: bool = True
    sites: tuple[str, ...] = (BLOCKS,)

    def __post_init__(self) -> None:
        me = "PatternConsistency"
        sites_given(me, self.sites)
        in_range(me, "weight", self.weight, 0, 1e6)
        one_of(me, "normalise", self.normalise, NORMALISE)
        one_of(me, "distance", self.distance, DISTANCES)
        one_of(me, "patterns", self.patterns, PATTERNS)
        in_range(me, "momentum", self.momentum, 0, 1 - 1e-6)

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Look at ``sites`` while training and add a loss term to ``Objective``; changes no layer.

        Raises:
            AttachError: a site has not at least 2 channels, or the net no place for "blocks".
        """
        held = PatternInsert(self, seed=seed, term=CARD.name, weight=self.weight)
        found = places(model, example, self.sites)
        taps = held.taps_at(model, found.put(self.sites, found.compare, CARD.name), self, example=example)
        held.notes = (*found.notes, f"patterns of {some([tap.name for tap in taps])}")
        return surgery.insert(model, held, method=CARD.name, taps=taps)
