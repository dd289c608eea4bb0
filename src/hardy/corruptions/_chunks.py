"""Work on a batch in pieces that fit a processor's cache; what each row becomes does not depend on the pieces."""

from collections.abc import Callable

import torch
from jaxtyping import Shaped
from torch import Tensor

__all__ = ["in_chunks"]

CACHED = 2**18  # values at once on a CPU: 1 MiB of float32, 2 MiB of the int64 of a keyed draw
ELSEWHERE = 2**25  # on an accelerator, where few large kernels are fastest; 256 MiB of int64


def in_chunks(
    function: Callable[..., Tensor],
    x: Shaped[Tensor, "n ..."],
    *rows: Shaped[Tensor, "n ..."],
    multiple: int = 1,
) -> Shaped[Tensor, "n ..."]:
    """Apply a function of rows to a few rows at a time.

    Args:
        function: Takes equal slices of ``x`` and ``rows`` along the first dimension, returns one like that of ``x``.
        x: The batch; its rows' size decides how many go at once.
        rows: More tensors with one entry per row of ``x``, as the keys.
        multiple: How many rows go at least, and in multiples of which.

    Returns:
        The results one after the other, like ``x``.
    """
    values = CACHED if x.device.type == "cpu" else ELSEWHERE
    size = max(1, values // max(1, x[:1].numel() * multiple)) * multiple
    out = torch.empty_like(x)
    for start in range(0, len(x), size):
        at = slice(start, start + size)
        out[at] = function(x[at], *(row[at] for row in rows))
    return out
