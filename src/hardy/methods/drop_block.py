"""DropBlock: drop square blocks of a feature map, during training.

Ghiasi, Lin, Le. "DropBlock: a regularization method for convolutional networks". NeurIPS 2018,
https://arxiv.org/abs/1810.12890 (Algorithm 1, Equation 1).

Blocks lie wholly inside the map, so a value is covered by as many possible blocks as fit around it: k * k in the
middle, one in a corner. With a chance ``gamma`` for each block, a value under m possible ones is dropped with
probability 1 - (1 - gamma)^m. The paper's gamma takes this for gamma * m, as if blocks never overlapped, and drops
less than asked; the rate "exact" solves the equation for each size of map.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.errors import AttachError, ParameterError
from hardy.methods._card import Card
from hardy.methods._checks import in_range, one_of, sites_given, some
from hardy.methods._places import after_norm
from hardy.taps import KeyedLayer

__all__ = ["CARD", "PRESETS", "DropBlock", "DropBlock2d", "drop_block", "drop_rate", "seed_rate"]

Rate = Literal["exact", "paper"]

CARD = Card(
    name="drop_block",
    summary="Drop square blocks of each channel at random while training, as a net can guess single dropped values "
    "from their neighbours.",
    paper="Ghiasi et al., NeurIPS 2018",
    url="https://arxiv.org/abs/1810.12890",
    kind="layer",
    live=False,
    attaches="the outputs of convolutions with a kernel above 1 in the second half of the stages, after their norm",
    defaults_from="p 0.1, blocks of 3, each channel by itself, no schedule: the baseline in the released code of "
    "defective convolution (blocks 3, 4); the paper's blocks are larger (7 on ImageNet).",
    deviations=(
        "The share that is dropped is p exactly, on maps of any size; rate='paper' takes the formula of the paper, "
        "which drops less where blocks overlap: asked for 0.1 (blocks of 7, 14x14 map) 0.093, for 0.5 0.36.",
        "What is kept is scaled by 1 / (1 - the expected share). The paper counts the mask of the whole batch, which "
        "tends to that; but a row must not depend on the others. scale='row' counts each row's own mask.",
        "p is constant; the paper raises it from 0 during training and also drops the shortcuts.",
        "The baseline drops the second convolution of a block before its norm; the preset 'repo' does so too, with the "
        "rate of the paper, as that of the baseline is not known to us.",
        "Blocks are cut to the map where it is smaller; then whole channels go, as in SpatialDropout.",
    ),
    notes=(
        "What others drop when asked for 0.1: timm 0.14 (8x8 map, blocks of 3), 0.25 (4x4, 3), 0.21 (14x14, 7), 0.93 "
        "(7x7, 7), as it lets blocks cross the border at a rate meant for blocks inside; torchvision 0.093 to 0.1, by "
        "the paper's formula, but it refuses even blocks, and so 2x2 and 4x4 maps with larger blocks.",
        "The share is an average over the map: pixels at the border are dropped less often than those in the middle.",
    ),
)


def drop_block(
    x: Float[Tensor, "n c h w"],
    *,
    gamma: float,
    block_size: int,
    shared: bool,
    scale: float | None,
    training: bool,
    key: Int[Tensor, "n"],
) -> Float[Tensor, "n c h w"]:
    """Zero random blocks of each row and scale what is left.

    Args:
        x: Feature map; any real values.
        gamma: Chance of each block that fits into the map, in [0, 1], from :func:`seed_rate`.
        block_size: Side of a block in pixels, at least 1; cut to the height and width of the map.
        shared: Whether all channels of a row lose the same blocks.
        scale: Factor of what is kept; None: all values / kept values of the row's own mask (Algorithm 1, line 6).
        training: Return ``x`` unchanged when False.
        key: Source of randomness, one per row.

    Returns:
        A tensor of the same shape, dtype and memory format; zeros where nothing of a row is kept.

    Example:
        >>> key = seeding.keys(seeding.root(0, "demo"), torch.arange(1))
        >>> gamma = seed_rate((4, 4), p=0.5, block_size=2, rate="exact")
        >>> x = torch.ones(1, 1, 4, 4)
        >>> drop_block(x, gamma=gamma, block_size=2, shared=False, scale=2.0, training=True, key=key).unique()
        tensor([0., 2.])
    """
    if not training or gamma == 0:
        return x
    n, c, h, w = x.shape
    kh, kw = min(block_size, h), min(block_size, w)
    seeds = seeding.uniform(key, 0, (1 if shared else c, h - kh + 1, w - kw + 1)) < gamma  # line 4: M
    kept = ~_spread(_spread(seeds, kh, dim=2), kw, dim=3)  # line 5: a seed is the first corner of its block
    mask = (x.new_empty(n, 1, h, w) if shared else torch.empty_like(x)).copy_(kept)  # in the memory format of x
    if scale is not None:
        return x * mask * scale  # scaled at last, by a number that half precision cannot round
    count = kept.flatten(1).sum(1)
    factor = torch.where(count > 0, kept[0].numel() / count.clamp(min=1), 0.0) if n else count.float()
    return (x * mask * factor[:, None, None, None]).to(x.dtype)  # the product in float32: no factor is rounded


def _spread(seeds: Bool[Tensor, "n c i j"], by: int, *, dim: int) -> Bool[Tensor, "n c h w"]:
    """Spread each True over ``by`` places from its own on; on a CPU five to ten times as fast as max pooling."""
    if by == 1:
        return seeds
    size = list(seeds.shape)
    size[dim] += by - 1
    wide = seeds.new_zeros(size)
    for step in range(by):
        wide.narrow(dim, step, seeds.shape[dim]).logical_or_(seeds)
    return wide


def drop_rate(size: tuple[int, int], *, gamma: float, block_size: int) -> float:
    """Compute the share of a map that :func:`drop_block` drops on average.

    Args:
        size: Height and width of the map.
        gamma: Chance of each block, in [0, 1].
        block_size: Side of a block in pixels, at least 1.
    """
    rows, columns = (_covers(side, min(block_size, side)) for side in size)
    kept = sum(a * b * (1 - gamma) ** (i * j) for i, a in rows.items() for j, b in columns.items())
    return 1 - kept / (size[0] * size[1])


def _covers(side: int, block: int) -> Counter[int]:
    """Count by how many of the blocks on a line a pixel is covered: multiplicity -> number of pixels."""
    last = side - block
    return Counter(min(i, last) - max(0, i - block + 1) + 1 for i in range(side))


def seed_rate(size: tuple[int, int], *, p: float, block_size: int, rate: Rate) -> float:
    """Compute the chance ``gamma`` of each block that fits into a map.

    "paper" is Equation 1, ``p h w / (k^2 (h - k + 1) (w - k + 1))``. "exact" is the one with which the expected share
    of dropped values is ``p``, found by bisection.

    Args:
        size: Height and width of the map.
        p: Share to drop, in [0, 1] (1 - keep_prob in the paper).
        block_size: Side k of a block in pixels, at least 1; cut to the height and width of the map.
        rate: Which.

    Example:
        >>> round(seed_rate((7, 7), p=0.1, block_size=7, rate="exact"), 9)  # one block: the whole map
        0.1
    """
    (h, w), (kh, kw) = size, (min(block_size, side) for side in size)
    if rate == "paper":
        return p * h * w / (kh * kw * (h - kh + 1) * (w - kw + 1))
    low, high = 0.0, 1.0
    if p in {low, high}:
        return p
    for _ in range(60):
        middle = (low + high) / 2
        if drop_rate(size, gamma=middle, block_size=block_size) < p:
            low = middle
        else:
            high = middle
    return high


class DropBlock2d(KeyedLayer):
    """:func:`drop_block` as a layer: active in training mode, identity in evaluation mode.

    Rate and scale of the map ``size`` are computed at once, those of other sizes when they come.
    """

    def __init__(self, spec: "DropBlock", *, size: tuple[int, int], seed: int, purpose: str = CARD.name) -> None:
        super().__init__(seed=seed, purpose=purpose)
        self.spec = spec
        self.rates = {size: self._rates(size)}

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if not self.training:
            return x
        size = (x.shape[2], x.shape[3])
        if size not in self.rates:
            self.rates[size] = self._rates(size)
        gamma, scale = self.rates[size]
        k, shared = self.spec.block_size, self.spec.shared
        return drop_block(x, gamma=gamma, block_size=k, shared=shared, scale=scale, training=True, key=self.row_keys(x))

    def _rates(self, size: tuple[int, int]) -> tuple[float, float | None]:
        s = self.spec
        gamma = seed_rate(size, p=s.p, block_size=s.block_size, rate=s.rate)
        kept = 1 - drop_rate(size, gamma=gamma, block_size=s.block_size)
        return gamma, None if s.scale == "row" else 1 / kept if kept > 0 else 0.0

    def extra_repr(self) -> str:
        return repr(self.spec)


@dataclass(frozen=True, kw_only=True)
class DropBlock:
    """DropBlock as a method.

    Attributes:
        p: Share of the values to drop, in [0, 1].
        block_size: Side of a block in pixels of the feature map, at least 1; cut to smaller maps.
        rate: "exact": p is dropped on average; "paper": Equation 1, which drops a little less.
        shared: Whether all channels lose the same blocks; each by itself is Algorithm 1, which the paper found better.
        scale: "expected": kept values times 1 / (1 - expected share); "row": all / kept values of the row's mask.
        sites: Stage names (see the card) or modules.
    """

    p: float = 0.1
    block_size: int = 3
    rate: Rate = "exact"
    shared: bool = False
    scale: Literal["expected", "row"] = "expected"
    sites: tuple[str, ...] = ("top",)

    def __post_init__(self) -> None:
        sites_given("DropBlock", self.sites)
        in_range("DropBlock", "p", self.p, 0, 1)
        if self.block_size < 1:
            raise ParameterError(f"DropBlock: block_size must be at least 1; got {self.block_size}.")
        one_of("DropBlock", "rate", self.rate, ("exact", "paper"))
        one_of("DropBlock", "scale", self.scale, ("expected", "row"))

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Drop blocks of the outputs of ``sites`` while training; no parameters, no state-dict keys."""
        whole: list[str] = []

        def layer(name: str, y: Tensor) -> DropBlock2d:
            if y.ndim != 4:
                raise AttachError(f"drop_block: {name} must give (n, c, h, w); got {tuple(y.shape)}.")
            size = (y.shape[2], y.shape[3])
            if max(size) <= self.block_size:
                whole.append(f"{name} ({size[0]}x{size[1]})")
            return DropBlock2d(self, size=size, seed=seed, purpose=f"{CARD.name}:{name}")

        sites, notes = after_norm(model, example, self.sites)
        held = surgery.Insert(self, seed=seed)
        attachment = surgery.after(model, sites, layer, method=CARD.name, example=example, held=held)
        small = f"whole channels go where the map is not larger than the block: {some(whole)}"
        held.notes = (*notes, small) if whole else notes
        return attachment


PRESETS = {
    "repo": DropBlock(  # the baseline in the code of defective convolution, on nets with the names of ResNet-18
        rate="paper", scale="row", sites=("layer3.*.bn1", "layer3.*.conv2", "layer4.*.bn1", "layer4.*.conv2")
    )
}
