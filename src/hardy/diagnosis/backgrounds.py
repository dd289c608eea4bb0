"""Images without their background, without their object, or with the background of another image, by masks."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hardy import seeding
from hardy.diagnosis.attacked import indices

__all__ = ["background_share", "donors", "mean_colour", "paint", "swap_backgrounds", "usable"]


def usable(masks: Bool[Tensor, "n h w"]) -> Int[Tensor, "m"]:
    """Give the places of images that have both an object and a background."""
    flat = masks.flatten(1)
    return indices(flat.any(1) & ~flat.all(1))


def background_share(maps: Float[Tensor, "n h w"], masks: Bool[Tensor, "n h w"]) -> Float[Tensor, "n"]:
    """Measure which share of a map of at least 0 is not on the object, in [0, 1]; NaN of a map that is 0 everywhere."""
    maps = maps.double()
    return ((maps * ~masks).sum((1, 2)) / maps.sum((1, 2))).float()


def mean_colour(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "c"]:
    """Give the mean of each channel over all images."""
    return x.double().mean((0, 2, 3)).float()


def paint(x: Float[Tensor, "n c h w"], where: Bool[Tensor, "n h w"], colour: Float[Tensor, "c"]) -> Tensor:
    """Paint pixels over with one colour; the others stay bit for bit."""
    return torch.where(where[:, None], colour[:, None, None].to(x), x)


def swap_backgrounds(
    x: Float[Tensor, "n c h w"], masks: Bool[Tensor, "n h w"], giver: Int[Tensor, "n"]
) -> Float[Tensor, "n c h w"]:
    """Put each object before the background of another image.

    Where the giver has its own object, its background is continued by its mean colour, so that no part of the giver's
    object is seen.

    Args:
        x: Images, each with an object and a background.
        masks: True where the object is.
        giver: The place of the image that gives the background.

    Returns:
        Images like ``x``: inside the mask those of ``x`` bit for bit.
    """
    behind = ~masks
    mean = (x.double() * behind[:, None]).sum((2, 3)) / behind.sum((1, 2))[:, None]
    empty = torch.where(masks[:, None], mean[:, :, None, None].to(x.dtype), x)
    return torch.where(masks[:, None], x, empty[giver])


def donors(y: Int[Tensor, "n"], key: Int[Tensor, "n"], rows: Int[Tensor, "n"]) -> Int[Tensor, "n"] | None:
    """Draw for each image one of another class.

    Each image draws by its own key among all images of other classes, in the order of their identities, so that the
    draw does not depend on the order of the images. An image may give several times.

    Args:
        y: Classes.
        key: One int64 per image.
        rows: Identities.

    Returns:
        Places; None where there is but one class.
    """
    if len(torch.unique(y)) < 2:
        return None
    order = torch.argsort(rows, stable=True)
    drawn = seeding.uniform(key, 0, ()).double()
    giver = torch.empty_like(y)
    for c in torch.unique(y):
        others = order[y[order] != c]
        mine = indices(y == c)
        giver[mine] = others[(drawn[mine] * len(others)).long().clamp_max(len(others) - 1)]
    return giver
