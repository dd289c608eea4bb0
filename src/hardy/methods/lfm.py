"""Local Feature Masking (LFM): fill random boxes of random channels of an early feature map, during training.

Gong, Zhang, Hou, Chen, Jiang. "Beyond dropout: robust convolutional neural networks based on local feature masking".
IJCNN 2024, https://arxiv.org/abs/2407.13646. Only the abstract and the released training code
were readable; the three independent draws (which images, which channels, which boxes) are from the abstract, the sizes
from the code.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.errors import AttachError, ParameterError
from hardy.methods._card import Card
from hardy.methods._checks import in_range
from hardy.methods._places import early
from hardy.taps import KeyedLayer

__all__ = ["CARD", "LocalFeatureMask2d", "LocalFeatureMasking", "boxes", "local_feature_mask"]

TRIES = 10

CARD = Card(
    name="lfm",
    summary="Fill random boxes of random channels of the first feature map with noise while training, so that the net "
    "cannot rely on any one local feature. Nothing changes at test time.",
    paper="Gong et al., IJCNN 2024",
    url="https://arxiv.org/abs/2407.13646",
    kind="layer",
    live=False,
    attaches="the output of the first convolution of the main path, before any norm",
    deviations=(
        "The paper's body and tables were not readable: what is not in the abstract follows the released code.",
        "The released code masks full-width stripes by a slicing slip, only the first 8 images of a batch, draws "
        "channels with replacement and gates whole batches; this preset ('paper') does what was meant: boxes, all "
        "images, distinct channels, a gate per image.",
        f"A box that does not fit is redrawn up to {TRIES} times instead of 100; then the channel stays as it is.",
    ),
    notes=("The released code carries no licence; nothing of it was copied.",),
)


def local_feature_mask(
    x: Float[Tensor, "n c h w"],
    *,
    p: float,
    channel_ratio: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
    fill: float | Literal["uniform"],
    training: bool,
    key: Int[Tensor, "n"],
) -> Float[Tensor, "n c h w"]:
    """Fill one random box in each of some random channels of some random images; nothing is rescaled.

    Args:
        x: Feature map; any real values.
        p: Probability that an image is masked at all, in [0, 1].
        channel_ratio: Share of the channels that get a box, in [0, 1]; at least one does if it is above 0.
        area: Smallest and largest share of the map that a box covers, in (0, 1].
        aspect: Smallest and largest height divided by width of a box, above 0.
        fill: What a box is filled with: one value, or "uniform": one number from [0, 1) for each box.
        training: Return ``x`` unchanged when False.
        key: Source of randomness, one per row.

    Returns:
        ``x`` with the boxes filled; all other values are bit-equal. Gradients are zero inside the boxes.
    """
    if not training or p == 0 or channel_ratio == 0:
        return x
    gate = seeding.uniform(key, 0, ()) < p
    if torch.compiler.is_compiling():  # a fixed number of rows, so that nothing is recompiled
        return _fill_boxes(x, gate, key, channel_ratio=channel_ratio, area=area, aspect=aspect, fill=fill)
    (rows,) = gate.nonzero(as_tuple=True)
    if len(rows) == 0:
        return x
    filled = _fill_boxes(
        x[rows], gate[rows], key[rows], channel_ratio=channel_ratio, area=area, aspect=aspect, fill=fill
    )
    return x.clone().index_copy_(0, rows, filled)  # the out-of-place one does not keep the memory format


def _fill_boxes(
    x: Tensor,
    gate: Tensor,
    key: Tensor,
    *,
    channel_ratio: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
    fill: float | Literal["uniform"],
) -> Tensor:
    _, c, h, w = x.shape
    rank = torch.argsort(seeding.permutation(key, 1, c), dim=1)  # each channel's place in a random order
    chosen = (rank < max(1, round(channel_ratio * c))) & gate[:, None]
    inside = boxes(key, c, (h, w), area=area, aspect=aspect) & chosen[:, :, None, None]
    value = seeding.uniform(key, 2, (c,)).to(x.dtype)[:, :, None, None] if fill == "uniform" else x.new_tensor(fill)
    inside = torch.empty_like(x, dtype=torch.bool).copy_(inside)  # in the memory format of x, which where() then keeps
    return torch.where(inside, value, x)


def boxes(
    key: Int[Tensor, "n"],
    num_channels: int,
    size: tuple[int, int],
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Bool[Tensor, "n c h w"]:
    """Draw one box for each row and channel, as Random Erasing does (Zhong et al., AAAI 2020, Algorithm 1).

    The area is uniform in ``area`` times the map, the aspect uniform in ``aspect``, the place uniform where the box
    fits; sides are rounded, to at least one pixel. The first of a few draws that is smaller than the map in both
    directions counts, and none leaves the channel free.

    Returns:
        True inside the boxes.
    """
    (h, w), n = size, len(key)
    u = seeding.uniform(key, 3, (4, TRIES, num_channels))
    s = (area[0] + (area[1] - area[0]) * u[:, 0]) * (h * w)
    q = aspect[0] + (aspect[1] - aspect[0]) * u[:, 1]
    height, width = (torch.round(torch.sqrt(side)).clamp(min=1) for side in (s * q, s / q))
    fits = (height < h) & (width < w)
    first = fits.int().argmax(dim=1, keepdim=True)  # (n, 1, c): the first draw that fits
    some = fits.any(dim=1)
    height, width, top, left = (t.gather(1, first)[:, 0] for t in (height, width, u[:, 2], u[:, 3]))
    top, left = torch.floor(top * (h - height + 1)), torch.floor(left * (w - width + 1))
    rows, columns = torch.arange(h, device=key.device), torch.arange(w, device=key.device)
    in_rows = (rows >= top[..., None]) & (rows < (top + height)[..., None]) & some[..., None]
    in_columns = (columns >= left[..., None]) & (columns < (left + width)[..., None])
    return (in_rows[..., :, None] & in_columns[..., None, :]).reshape(n, num_channels, h, w)


class LocalFeatureMask2d(KeyedLayer):
    """:func:`local_feature_mask` as a layer: active in training mode, identity in evaluation mode."""

    def __init__(self, spec: "LocalFeatureMasking", *, seed: int, purpose: str = CARD.name) -> None:
        super().__init__(seed=seed, purpose=purpose)
        self.spec = spec

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if not self.training:
            return x
        s = self.spec
        return local_feature_mask(
            x,
            p=s.p,
            channel_ratio=s.channel_ratio,
            area=s.area,
            aspect=s.aspect,
            fill=s.fill,
            training=True,
            key=self.row_keys(x),
        )

    def extra_repr(self) -> str:
        return repr(self.spec)


@dataclass(frozen=True, kw_only=True)
class LocalFeatureMasking:
    """LFM as a method; the defaults are the preset ``paper``.

    Attributes:
        p: Probability that a training image is masked, in [0, 1] (released code: 0.15).
        channel_ratio: Share of the channels that get a box, in [0, 1] (released code: 32 of 64).
        area: Share of the map that a box covers: lowest and highest, in (0, 1] (released code: of Random Erasing).
        aspect: Height divided by width of a box: lowest and highest, above 0 (likewise).
        fill: "uniform": one number from [0, 1) for each box (released code), or one constant for all.
        sites: Stage names (their first convolution) or modules; "stem": the first convolution of the net.
    """

    p: float = 0.15
    channel_ratio: float = 0.5
    area: tuple[float, float] = (0.02, 0.4)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    fill: float | Literal["uniform"] = "uniform"
    sites: tuple[str, ...] = ("stem",)

    def __post_init__(self) -> None:
        in_range("LocalFeatureMasking", "p", self.p, 0, 1)
        in_range("LocalFeatureMasking", "channel_ratio", self.channel_ratio, 0, 1)
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ParameterError(f"LocalFeatureMasking: area must be 0 < low <= high <= 1; got {self.area}.")
        if not (0 < self.aspect[0] <= self.aspect[1] and math.isfinite(self.aspect[1])):
            raise ParameterError(f"LocalFeatureMasking: aspect must be 0 < low <= high; got {self.aspect}.")
        if not isinstance(self.fill, int | float) and self.fill != "uniform":
            raise ParameterError(f"LocalFeatureMasking: fill must be a number or 'uniform'; got {self.fill!r}.")

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Mask the outputs of ``sites`` while training; no parameters, no state-dict keys."""

        def layer(name: str, y: Tensor) -> LocalFeatureMask2d:
            if y.ndim != 4 or min(y.shape[2:]) < 2:
                raise AttachError(f"lfm: {name} must give (n, c, h, w) with h, w > 1; got {tuple(y.shape)}.")
            return LocalFeatureMask2d(self, seed=seed, purpose=f"{CARD.name}:{name}")

        sites = early(model, example, self.sites)
        held = surgery.Insert(self, seed=seed)
        return surgery.after(model, sites, layer, method=CARD.name, example=example, held=held)
