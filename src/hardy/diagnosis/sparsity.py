"""How a map of class and channel is filled: how many channels a class uses, and which ones two classes share."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy.errors import ParameterError

__all__ = ["carrying", "effective_channels", "shared", "silent", "strongest"]


def effective_channels(map_: Float[Tensor, "k c"]) -> Float[Tensor, "k"]:
    """Count the channels that each class uses, by the exponential of the entropy of its row divided by its sum.

    Returns:
        In [1, c]: 1 where one channel is all, c where all are alike; NaN for a row of NaN, and where all are 0.

    Example:
        >>> effective_channels(torch.tensor([[1.0, 1.0, 0.0], [0.0, 5.0, 0.0]]))
        tensor([2., 1.])
    """
    p = map_.double() / map_.double().sum(1, keepdim=True)
    entropy: Tensor = torch.special.entr(p).sum(1)
    return entropy.exp().to(map_.dtype)


def carrying(map_: Float[Tensor, "k c"], share: float = 0.9) -> Int[Tensor, "k"]:
    """Count the fewest channels of each class that carry a share of its sum.

    Returns:
        In [1, c]; 0 for a row of NaN, and where all are 0.

    Raises:
        ParameterError: a share outside (0, 1].

    Example:
        >>> carrying(torch.tensor([[6.0, 3.0, 1.0, 0.0]]), 0.9)
        tensor([2])
    """
    if not 0 < share <= 1:
        raise ParameterError(f"carrying: share must be in (0, 1]; got {share}.")
    whole = map_.double().sum(1, keepdim=True)
    most = map_.double().sort(dim=1, descending=True).values.cumsum(1)
    enough = most >= share * whole * (1 - 1e-12)  # a share that is met but for rounding is met
    found = enough.int().argmax(1) + 1
    return torch.where(whole[:, 0] > 0, found, torch.zeros_like(found))


def strongest(map_: Float[Tensor, "k c"], top: int) -> Bool[Tensor, "k c"]:
    """Mark the ``top`` channels that each class depends on most; none for a row of NaN or zeros.

    Of equal ones the first are taken.
    """
    order = torch.argsort(map_.nan_to_num(0), dim=1, descending=True, stable=True)[:, :top]
    marked = torch.zeros_like(map_, dtype=torch.bool).scatter(1, order, value=True)
    return marked & (map_ > 0)


def shared(map_: Float[Tensor, "k c"], top: int) -> Float[Tensor, "k k"]:
    """Give the share of the ``top`` channels of one class that are also among those of another.

    Returns:
        In [0, 1], symmetric; by chance ``top / c``. NaN for classes without a map.

    Raises:
        ParameterError: ``top`` outside 1 .. c.
    """
    if not 1 <= top <= map_.shape[1]:
        raise ParameterError(f"shared: top must be in 1 .. {map_.shape[1]}; got {top}.")
    marked = strongest(map_, top).to(map_.dtype)
    known = (map_.sum(1) > 0).to(map_.dtype)
    return torch.where(torch.outer(known, known) > 0, marked @ marked.T / top, torch.nan)


def silent(map_: Float[Tensor, "k c"]) -> Bool[Tensor, "c"]:
    """Mark the channels that no class with a map depends on at all; none where no class has a map."""
    known = ~map_.isnan().any(1)
    return (map_[known] == 0).all(0) & known.any()
