"""Random rectangles of Random Erasing: Zhong et al., AAAI 2020, https://arxiv.org/abs/1708.04896, Algorithm 1."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hardy import seeding

__all__ = ["TRIES", "boxes", "misfit"]

TRIES = 10


def boxes(
    key: Int[Tensor, "n"],
    num_channels: int,
    size: tuple[int, int],
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
    stripes: bool = False,
) -> Bool[Tensor, "n c h w"]:
    """Draw one box for each row and channel.

    The area is uniform in ``area`` times the map, the aspect uniform in ``aspect``, the place uniform where the box
    fits; sides are rounded, to at least one pixel. The first of a few draws that is smaller than the map in both
    directions counts, and none leaves the channel free.

    Args:
        key: Source of randomness, one per row; draw number 3 is used.
        num_channels: Boxes of each row.
        size: Height and width of the map.
        area: Smallest and largest share of the map that a box covers, in (0, 1].
        aspect: Smallest and largest height divided by width of a box, above 0.
        stripes: Give what comes of a box (top, left, height, width) when its rows are sliced twice, first from left to
            left + height and then, within these, from top to top + width, as the released code of LFM does: full rows
            from left + top to the smaller of left + top + width and left + height, and none if top >= height.

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
    if stripes:
        inside = (rows >= (top + left)[..., None]) & (rows < (left + torch.minimum(top + width, height))[..., None])
        return (inside & some[..., None])[..., None].expand(n, num_channels, h, w)
    in_rows = (rows >= top[..., None]) & (rows < (top + height)[..., None]) & some[..., None]
    in_columns = (columns >= left[..., None]) & (columns < (left + width)[..., None])
    return (in_rows[..., :, None] & in_columns[..., None, :]).reshape(n, num_channels, h, w)


def misfit(size: tuple[int, int], *, area: tuple[float, float], aspect: tuple[float, float]) -> float:
    """Compute the probability that no draw of a box fits into a map, so that it stays as it is: a sum over a grid."""
    middle = (torch.arange(256) + 0.5) / 256
    s = (area[0] + (area[1] - area[0]) * middle[:, None]) * (size[0] * size[1])
    q = aspect[0] + (aspect[1] - aspect[0]) * middle
    fits = (torch.round(torch.sqrt(s * q)) < size[0]) & (torch.round(torch.sqrt(s / q)) < size[1])
    return (1 - fits.double().mean().item()) ** TRIES
