"""Scan-line drop: lose pixels along one of the four ways to read an image patch by patch.

Malik, Shamshad, Naseer, Nandakumar, Khan, Khan. "Towards evaluating the robustness of visual state space models". CVPR
workshops 2025, https://arxiv.org/abs/2406.09407, made for nets that read an image in these orders. In a CNN, which has
no such order, it asks whether one side of the image counts for more than the other.

Deviations from its released code: there all images of a batch lose the same pixels, which come from NumPy's generator
without a seed, and dropped pixels are black. Here every image has its own pixels, drawn from its key, and the fill is
free. Where the number of patches is odd, that code drops more than asked in the middle; here the middle is the peak.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hardy import seeding
from hardy.corruptions.patch_drop import drop_patches, exact, first_patches
from hardy.errors import ParameterError, ShapeError, did_you_mean

__all__ = ["ORDERS", "PROFILES", "drop_counts", "scan_line_drop", "scan_order"]

ORDERS = ("rows", "columns", "rows_reversed", "columns_reversed")
PROFILES = ("ramp", "peak", "valley", "whole", "even")


def scan_line_drop(
    x: Float[Tensor, "n c h w"],
    *,
    rate: float,
    profile: str,
    order: str,
    grid: int,
    fill: Float[Tensor, "n c h w"],
    key: Int[Tensor, "n"],
    counter: int = 0,
) -> Float[Tensor, "n c h w"]:
    """Replace as many random pixels of every patch as the profile says; all channels of a pixel go together.

    With the same key, the pixels that one profile drops of a patch at one count are among those that any other profile,
    order or rate drops of it at a larger count.

    Args:
        x: Images.
        rate: Largest share of the pixels of a patch that is dropped ("whole": share of the patches), in [0, 1].
        profile: How the loss changes along the order: one of :data:`PROFILES`; see :func:`drop_counts`.
        order: How the image is read: one of :data:`ORDERS`; see :func:`scan_order`.
        grid: Patches per side; must divide height and width.
        fill: What is seen instead; of the shape of ``x``.
        key: One int64 per row, the source of its pixels.
        counter: Which draw of these keys.

    Returns:
        Images: the values of ``fill`` in the dropped pixels, those of ``x`` elsewhere, unchanged.

    Raises:
        ParameterError: rate outside [0, 1], unknown profile or order, a grid below 1.
        ShapeError: the grid does not divide height or width.
    """
    n, _, h, w = x.shape
    sequence = scan_order(order, grid, device=x.device)
    if h % grid or w % grid:
        raise ShapeError(f"scan_line_drop: grid must divide height and width; got {grid} for {h}x{w}. Change it.")
    pixels = (h // grid) * (w // grid)
    counts = drop_counts(profile, rate=rate, patches=grid * grid, pixels=pixels)
    if profile == "whole":  # all pixels or none: nothing to draw
        return drop_patches(
            x, dropped=first_patches(sequence.expand(n, -1), counts.count(pixels)), grid=grid, fill=fill
        )
    of_patch = torch.tensor(counts, device=x.device)[sequence.argsort()]
    rank = seeding.uniform(key, counter, (grid * grid, pixels)).argsort(dim=2, stable=True).argsort(dim=2)
    mask = (rank < of_patch[:, None]).reshape(n, grid, grid, h // grid, w // grid)
    return torch.where(mask.transpose(2, 3).reshape(n, 1, h, w), fill, x)


def drop_counts(profile: str, *, rate: float, patches: int, pixels: int) -> tuple[int, ...]:
    r"""Count the pixels that each patch of the sequence loses.

    With :math:`P` patches of :math:`n` pixels, the rate :math:`d` and :math:`i = 0, \dots, P - 1`:

    - "ramp": :math:`\lfloor n d (i + 1) / P \rfloor`, more and more;
    - "peak": :math:`\lfloor n d \min(i + 1, P - i) / \lceil P / 2 \rceil \rfloor`, most in the middle;
    - "valley": :math:`\lfloor n d \rfloor` less the peak, least in the middle;
    - "whole": all :math:`n` in the first :math:`\lfloor P d \rfloor` patches, none in the others;
    - "even": :math:`\lfloor n d \rfloor` in every patch, whatever the order: the control.

    The first three lose about half of what the last two lose at the same rate.

    Args:
        profile: One of :data:`PROFILES`.
        rate: :math:`d`, in [0, 1].
        patches: :math:`P`, at least 1.
        pixels: :math:`n`, at least 1.

    Returns:
        One count per place in the sequence, from 0 to ``pixels``.

    Raises:
        ParameterError: rate outside [0, 1], or an unknown profile.

    Example:
        >>> drop_counts("ramp", rate=1.0, patches=4, pixels=8), drop_counts("peak", rate=0.5, patches=4, pixels=8)
        ((2, 4, 6, 8), (2, 4, 4, 2))
    """
    if profile not in PROFILES:
        raise ParameterError(f"scan_line_drop: unknown profile {profile!r}; {did_you_mean(profile, PROFILES)}")
    share, places, half = exact(rate), range(patches), (patches + 1) // 2
    most, whole = share * pixels, int(share * patches)
    peak = [int(most * min(i + 1, patches - i) / half) for i in places]
    made = {
        "ramp": [int(most * (i + 1) / patches) for i in places],
        "peak": peak,
        "valley": [int(most) - count for count in peak],
        "whole": [pixels if i < whole else 0 for i in places],
        "even": [int(most)] * patches,
    }
    return tuple(made[profile])


def scan_order(order: str, grid: int, *, device: torch.device | None = None) -> Int[Tensor, "p"]:
    """List the patches of a grid, numbered row by row from the top left, as they are read.

    Args:
        order: "rows" from the top left, row by row; "columns" from there, column by column; "rows_reversed" and
            "columns_reversed" the same from the end, at the bottom right.
        grid: Patches per side, at least 1.
        device: Of the result.

    Raises:
        ParameterError: an unknown order, or a grid below 1.

    Example:
        >>> scan_order("columns", 2).tolist(), scan_order("rows_reversed", 2).tolist()
        ([0, 2, 1, 3], [3, 2, 1, 0])
    """
    if order not in ORDERS:
        raise ParameterError(f"scan_line_drop: unknown order {order!r}; {did_you_mean(order, ORDERS)}")
    if grid < 1:
        raise ParameterError(f"scan_line_drop: grid must be at least 1; got {grid}.")
    number = torch.arange(grid * grid, device=device).reshape(grid, grid)
    read = (number.T if order.startswith("columns") else number).flatten()
    return read.flip(0) if order.endswith("reversed") else read
