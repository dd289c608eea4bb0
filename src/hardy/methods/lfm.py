"""Local Feature Masking (LFM): fill random boxes of random channels of an early feature map, during training.

Gong, Zhang, Hou, Chen, Jiang. "Beyond dropout: robust convolutional neural networks based on local feature masking".
IJCNN 2024, https://arxiv.org/abs/2407.13646. Only the abstract and the released training code
were readable; the three independent draws (which images, which channels, which boxes) are from the abstract, the sizes
from the code.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.errors import AttachError, ParameterError
from hardy.methods._boxes import TRIES, boxes, misfit
from hardy.methods._card import Card
from hardy.methods._checks import box_ranges, in_range, one_of, sites_given
from hardy.methods._places import early
from hardy.taps import KeyedLayer

__all__ = ["CARD", "PRESETS", "LocalFeatureMask2d", "LocalFeatureMasking", "local_feature_mask"]

SCOPES = ("sample", "batch")
REGION_SCOPES = ("sample_channel", "sample", "batch")
SHAPES = ("box", "stripe", "channel")

CARD = Card(
    name="lfm",
    summary="Fill random boxes of random channels of the first feature map with noise while training, so that the net "
    "cannot rely on any one local feature. Nothing changes at test time.",
    paper="Gong et al., IJCNN 2024",
    url="https://arxiv.org/abs/2407.13646",
    kind="layer",
    live=False,
    attaches="the output of the first convolution of the main path, before any norm; also the tensor that enters the "
    "first stage ('before_stage1'), the pooled features ('pooled', whole channels only), any stage or module",
    defaults_from="p 0.15, 32 of 64 channels, area 0.02 to 0.4, aspect 0.3 to 3.33 and the uniform fill are the "
    "released code's; a gate and channels for each image are how we read the abstract.",
    deviations=(
        "The paper's body and tables were not readable: what is not in the abstract follows the released code, in "
        "which the call is commented out, so that we do not know which variant gave the paper's numbers.",
        "The released code masks full-width stripes by a slicing slip, only the first 8 images of a batch, draws "
        "channels with replacement, the same for all images, and gates whole batches. Preset 'paper', the default, "
        "does what was meant: boxes, all images, distinct channels of each image, a gate for each image.",
        "Preset 'repo' keeps the gate, the shared channels and the replacement of the released code; 'repo-bugcompat' "
        "its stripes as well. No preset stops after 8 images. 'repo-before-stage1', 'repo-all-channels' and "
        "'repo-deep' are its commented variants; the last draws its channels, where the code takes the first 512. "
        "That their gate and channels are drawn as in 'repo' is our reading.",
        f"A box that does not fit is drawn up to {TRIES} times instead of 100; then the channel stays as it is. With "
        "the default area and aspect that happens to fewer than one box in 10^8 on square maps from 4x4 and at 128x64.",
    ),
    notes=(
        "The released code carries no licence; nothing of it was copied.",
        "What a batch shares (gate, channel_scope, region_scope = 'batch') comes from the key of its first image, and "
        "depends on the composition of the batch by definition.",
        "Where the first kernel is the sum of several (RepVGG, MobileOne), its widest branch alone is masked.",
    ),
)


def local_feature_mask(
    x: Float[Tensor, "n c *map"],
    *,
    p: float,
    num_channels: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    fill: float | Literal["uniform"],
    gate: Literal["sample", "batch"],
    channel_scope: Literal["sample", "batch"],
    region_scope: Literal["sample_channel", "sample", "batch"],
    shape: Literal["box", "stripe", "channel"],
    replacement: bool,
    training: bool,
    key: Int[Tensor, "n"],
) -> Float[Tensor, "n c *map"]:
    """Fill one random region in each of some random channels of some random images; nothing is rescaled.

    What is drawn once for the whole batch comes from the key of its first row; all else of a row from its own key only.

    Args:
        x: Feature map (n, c, h, w), or (n, c) with ``shape="channel"``; any real values.
        p: Probability that an image (or, see ``gate``, the batch) is masked at all, in [0, 1].
        num_channels: Number of channel draws, from 0.
        area: Smallest and largest share of the map that a box covers, in (0, 1].
        aspect: Smallest and largest height divided by width of a box, above 0.
        fill: What a region is filled with: one value, or "uniform": one number from [0, 1) for each draw of a channel
            of an image.
        gate: Whether each image or the whole batch is masked or not.
        channel_scope: Whether each image has its own channels or the batch shares them.
        region_scope: One region for each channel of each image, for each image, or for the batch.
        shape: Boxes; stripes as the released code makes of them (see ``boxes``); or whole channels.
        replacement: Whether a channel may be drawn twice; it then has two regions, the later one on top.
        training: Return ``x`` unchanged when False.
        key: Source of randomness, one per row.

    Returns:
        ``x`` with the regions filled; all other values are bit-equal. Gradients are zero inside the regions.
    """
    if not training or p == 0 or num_channels == 0:
        return x
    first = key[:1]  # of the whole batch, not of its masked rows
    active = (seeding.uniform(first if gate == "batch" else key, 0, ()) < p).expand(len(x))

    def filled(x: Tensor, key: Tensor) -> Tensor:
        maps = x[..., None, None] if x.ndim == 2 else x
        c, h, w = maps.shape[1:]
        slots = num_channels if replacement else c  # without replacement, a slot for each channel
        if shape == "channel":
            regions = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=x.device)
        else:
            owner, count = first if region_scope == "batch" else key, slots if region_scope == "sample_channel" else 1
            regions = boxes(owner, count, (h, w), area=area, aspect=aspect, stripes=shape == "stripe")
        value = seeding.uniform(key, 2, (slots,))
        shared = first if channel_scope == "batch" else key
        if replacement:
            inside, value = _stack(regions, value, _with_replacement(shared, c, slots).expand(len(x), slots), c)
        else:
            inside, value = regions & _distinct(shared, c, num_channels)[..., None, None], value[..., None, None]
        # in the memory format of x, which where() then keeps
        inside = torch.empty_like(maps, dtype=torch.bool).copy_(inside)
        value = value.to(x.dtype) if fill == "uniform" else x.new_tensor(fill)
        return torch.where(inside, value, maps).reshape(x.shape)

    if torch.compiler.is_compiling():  # a fixed number of rows, so that nothing is recompiled
        return torch.where(active.reshape(-1, *[1] * (x.ndim - 1)), filled(x, key), x)
    (rows,) = active.nonzero(as_tuple=True)
    if len(rows) == 0:
        return x
    if len(rows) == len(x):
        return filled(x, key)
    # the out-of-place index_copy does not keep the memory format
    return x.clone().index_copy_(0, rows, filled(x[rows], key[rows]))


def _distinct(key: Int[Tensor, "m"], num_channels: int, count: int) -> Bool[Tensor, "m c"]:
    """Choose ``count`` different channels: true for the first ones of a random order."""
    return torch.argsort(seeding.permutation(key, 1, num_channels), dim=1) < count


def _with_replacement(key: Int[Tensor, "m"], num_channels: int, count: int) -> Int[Tensor, "m k"]:
    """Draw ``count`` channel numbers."""
    return torch.floor(seeding.uniform(key, 1, (count,)) * num_channels).long()


def _stack(
    regions: Bool[Tensor, "#n #k h w"], value: Float[Tensor, "n k"], target: Int[Tensor, "n k"], num_channels: int
) -> tuple[Bool[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
    """Put the region of draw number k onto channel ``target[:, k]``, later ones on top: where, and which value."""
    (n, k), (h, w) = target.shape, regions.shape[2:]
    number = torch.arange(1, k + 1, device=target.device)[:, None, None] * regions  # 0: outside
    top = number.new_zeros(n, num_channels, h, w).scatter_reduce(
        1, target[..., None, None].expand(n, k, h, w), number.expand(n, k, h, w), "amax"
    )
    return top > 0, value.gather(1, (top - 1).clamp(min=0).flatten(1)).reshape(top.shape)


class LocalFeatureMask2d(KeyedLayer):
    """:func:`local_feature_mask` as a layer: active in training mode, identity in evaluation mode."""

    def __init__(self, spec: "LocalFeatureMasking", *, seed: int, purpose: str = CARD.name) -> None:
        super().__init__(seed=seed, purpose=purpose)
        self.spec = spec

    def forward(self, x: Float[Tensor, "n c *map"]) -> Float[Tensor, "n c *map"]:
        if not self.training:
            return x
        s = self.spec
        return local_feature_mask(
            x,
            p=s.p,
            num_channels=s.count(x.shape[1]),
            area=s.area,
            aspect=s.aspect,
            fill=s.fill,
            gate=s.gate,
            channel_scope=s.channel_scope,
            region_scope=s.region_scope,
            shape=s.shape,
            replacement=s.replacement,
            training=True,
            key=self.row_keys(x),
        )

    def extra_repr(self) -> str:
        return repr(self.spec)


@dataclass(frozen=True, kw_only=True)
class LocalFeatureMasking:
    """LFM as a method; the defaults are the preset ``paper``, ``PRESETS`` has the others.

    Attributes:
        p: Probability that a training image (or, see ``gate``, the batch) is masked, in [0, 1] (released code: 0.15).
        channel_ratio: Share of the channels that are masked, in [0, 1], at least one if above 0 (released code: 32 of
            64).
        num_channels: The same as a number, from 1 up to the channels of the site; replaces ``channel_ratio``.
        area: Share of the map that a box covers: lowest and highest, in (0, 1] (released code: of Random Erasing).
        aspect: Height divided by width of a box: lowest and highest, above 0 (likewise).
        fill: "uniform": one number from [0, 1) for each region (released code), or one constant for all.
        gate: "sample": each image is masked or not (the abstract, as we read it); "batch": all or none (released code).
        channel_scope: "sample": each image has its own channels; "batch": all share them (released code).
        region_scope: One region for each channel of each image ("sample_channel", released code), for each image
            ("sample"), or for the batch ("batch").
        shape: "box"; "stripe": what the released code makes of a box by slicing rows twice; "channel": whole channels.
        replacement: Draw channels with replacement, so that fewer different ones are masked (released code).
        sites: "stem": the first convolution of the net; "before_stage1": what enters that stage; "pooled": the features
            before the last linear layer; other stage names (their first convolution) or modules.
    """

    p: float = 0.15
    channel_ratio: float = 0.5
    num_channels: int | None = None
    area: tuple[float, float] = (0.02, 0.4)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    fill: float | Literal["uniform"] = "uniform"
    gate: Literal["sample", "batch"] = "sample"
    channel_scope: Literal["sample", "batch"] = "sample"
    region_scope: Literal["sample_channel", "sample", "batch"] = "sample_channel"
    shape: Literal["box", "stripe", "channel"] = "box"
    replacement: bool = False
    sites: tuple[str, ...] = ("stem",)

    def __post_init__(self) -> None:
        sites_given("LocalFeatureMasking", self.sites)
        me = type(self).__name__
        in_range(me, "p", self.p, 0, 1)
        in_range(me, "channel_ratio", self.channel_ratio, 0, 1)
        if self.num_channels is not None and self.num_channels < 1:
            raise ParameterError(f"{me}: num_channels must be at least 1; got {self.num_channels}.")
        if self.num_channels is not None and self.channel_ratio != type(self).channel_ratio:
            raise ParameterError(
                f"{me}: channel_ratio and num_channels say the same thing; got {self.channel_ratio} and "
                f"{self.num_channels}. Give one of them."
            )
        box_ranges(me, area=self.area, aspect=self.aspect)
        if self.fill != "uniform" if isinstance(self.fill, str) else not math.isfinite(self.fill):
            raise ParameterError(f"{me}: fill must be a finite number or 'uniform'; got {self.fill!r}.")
        one_of(me, "gate", self.gate, SCOPES)
        one_of(me, "channel_scope", self.channel_scope, SCOPES)
        one_of(me, "region_scope", self.region_scope, REGION_SCOPES)
        one_of(me, "shape", self.shape, SHAPES)
        if "pooled" in self.sites and self.shape != "channel":
            raise ParameterError(
                f"{me}: pooled features have no rows and columns, so shape must be 'channel' there; got {self.shape!r}."
            )

    def count(self, channels: int) -> int:
        """Tell how many of ``channels`` channels are drawn."""
        if self.num_channels is not None:
            return self.num_channels
        return max(1, round(self.channel_ratio * channels)) if self.channel_ratio > 0 else 0

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Mask ``sites`` while training; no parameters, no state-dict keys.

        Raises:
            AttachError: a site has no map to put regions on, or fewer channels than ``num_channels``.
        """

        def layer(name: str, y: Tensor) -> LocalFeatureMask2d:
            if y.ndim not in (2, 4):
                raise AttachError(f"lfm: {name} must give (n, c, h, w) or (n, c); got {tuple(y.shape)}.")
            if self.shape != "channel" and (y.ndim == 2 or min(y.shape[2:]) < 2):
                raise AttachError(
                    f"lfm: {name} must give (n, c, h, w) with h, w > 1 for shape={self.shape!r}; got {tuple(y.shape)}. "
                    "Use shape='channel' there, or another site."
                )
            if self.num_channels is not None and self.num_channels > y.shape[1]:
                raise AttachError(
                    f"lfm: num_channels must be at most the channels of {name}, {y.shape[1]}; got {self.num_channels}. "
                    "Lower it, or use channel_ratio."
                )
            if self.shape != "channel":
                free = misfit((y.shape[2], y.shape[3]), area=self.area, aspect=self.aspect)
                if free > 0.01:
                    notes.append(f"boxes often do not fit {name} ({y.shape[2]}x{y.shape[3]}): {free:.0%} stay away")
            return LocalFeatureMask2d(self, seed=seed, purpose=f"{CARD.name}:{name}")

        notes: list[str] = []
        sites = early(model, example, self.sites)
        held = surgery.Insert(self, seed=seed)
        attachment = surgery.after(model, sites, layer, method=CARD.name, example=example, held=held)
        held.notes = tuple(notes)
        return attachment


_REPO = LocalFeatureMasking(gate="batch", channel_scope="batch", replacement=True)

PRESETS: Mapping[str, LocalFeatureMasking] = MappingProxyType(
    {
        "paper": LocalFeatureMasking(),
        "repo": _REPO,
        "repo-bugcompat": replace(_REPO, shape="stripe"),
        "repo-before-stage1": replace(_REPO, sites=("before_stage1",)),
        "repo-all-channels": replace(_REPO, p=0.05, channel_ratio=1.0, replacement=False),
        "repo-deep": replace(_REPO, p=0.5, channel_ratio=0.25, fill=0.0, shape="channel", sites=("pooled",)),
    }
)
