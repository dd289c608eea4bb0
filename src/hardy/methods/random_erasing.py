"""Random erasing: fill one random rectangle of a training image.

Zhong, Zheng, Kang, Li, Yang. "Random erasing data augmentation". AAAI 2020, https://arxiv.org/abs/1708.04896
(Algorithm 1). Here as a method, so that it is keyed and paired like the others.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy import seeding, surgery
from hardy.errors import ParameterError
from hardy.methods._boxes import TRIES, boxes
from hardy.methods._card import Card
from hardy.methods._checks import box_ranges, in_range

__all__ = ["CARD", "RandomErasing", "random_erasing"]

CARD = Card(
    name="random_erasing",
    summary="Fill one random rectangle of a training image with noise, so that the net sees occluded objects.",
    paper="Zhong et al., AAAI 2020",
    url="https://arxiv.org/abs/1708.04896",
    kind="input",
    live=False,
    attaches="the input, pixels in [0, 1]",
    defaults_from="p, area and aspect are the defaults of the paper's released code; random values for every pixel are "
    "what Algorithm 1 fills with (that code fills with the mean of the data).",
    deviations=(
        "Boxes lie in pixel space and are filled before normalisation.",
        "The aspect is uniform in its range, as in Algorithm 1; torchvision and timm draw its logarithm. A size that "
        f"fits is drawn first, in up to {TRIES} tries, and then a place where it fits, as in the released code.",
    ),
)


def random_erasing(
    x: Float[Tensor, "n c h w"],
    *,
    p: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
    fill: float | Literal["uniform"],
    key: Int[Tensor, "n"],
) -> Float[Tensor, "n c h w"]:
    """Fill one box in each of some random images.

    Args:
        x: Images, pixels in [0, 1].
        p: Probability that an image gets a box, in [0, 1].
        area: Smallest and largest share of the image that a box covers, in (0, 1].
        aspect: Smallest and largest height divided by width, above 0.
        fill: One value in [0, 1], or "uniform": a number from [0, 1) for every pixel and channel (RE-R of the paper).
        key: Source of randomness, one per row.

    Returns:
        A new tensor; pixels outside the boxes are bit-equal.
    """
    inside = boxes(key, 1, (x.shape[2], x.shape[3]), area=area, aspect=aspect)
    inside &= (seeding.uniform(key, 0, ()) < p)[:, None, None, None]
    value = seeding.uniform(key, 4, x.shape[1:]).to(x.dtype) if fill == "uniform" else x.new_tensor(fill)
    inside = torch.empty_like(x, dtype=torch.bool).copy_(inside)  # in the memory format of x, which where() then keeps
    return torch.where(inside, value, x)


class RandomErasingInsert(surgery.Insert):
    """Erases in training batches."""

    def inputs(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        s: RandomErasing = self.spec
        return random_erasing(x, p=s.p, area=s.area, aspect=s.aspect, fill=s.fill, key=key), y


@dataclass(frozen=True, kw_only=True)
class RandomErasing:
    """Random erasing as a method; the defaults are those of the released code, filled as in Algorithm 1.

    Attributes:
        p: Probability that an image gets a box, in [0, 1].
        area: Share of the image that a box covers: lowest and highest, in (0, 1].
        aspect: Height divided by width: lowest and highest, above 0.
        fill: One value in [0, 1], or "uniform".
    """

    p: float = 0.5
    area: tuple[float, float] = (0.02, 0.4)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    fill: float | Literal["uniform"] = "uniform"

    def __post_init__(self) -> None:
        in_range("RandomErasing", "p", self.p, 0, 1)
        box_ranges("RandomErasing", area=self.area, aspect=self.aspect)
        if not isinstance(self.fill, int | float) and self.fill != "uniform":
            raise ParameterError(f"RandomErasing: fill must be a number or 'uniform'; got {self.fill!r}.")
        if self.fill != "uniform":
            in_range("RandomErasing", "fill", self.fill, 0, 1)

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        """Erase in the batches that ``Objective`` gives to the model; changes no layer."""
        return surgery.insert(model, RandomErasingInsert(self, seed=seed), method=CARD.name)
