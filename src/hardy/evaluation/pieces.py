"""Into how many pieces a question is cut: what one process works on at a time, and what several processes share.

The pieces depend on the question alone. A piece is computed in the same batches by whoever works on it, so answers are
the same to the last bit with one process or many, and a stopped evaluation goes on with another number of them.
"""

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["interleaved", "pieces"]

LARGEST = 4  # batches of images that an attack works on before they are written down
ROWS = 8  # rows of a piece for every piece: small batches are slow
MOST = 16  # pieces, unless they would be larger than LARGEST


def pieces(n: int, batch_size: int, device: torch.device) -> int:
    """Say into how many pieces ``n`` images are cut: a power of two, at most :data:`MOST`, unless they are many more.

    Two from 32 images on, four from 128, eight from 512, sixteen from 2048. On an accelerator, where a part of a batch
    takes as long as a whole, no piece is smaller than a batch.
    """
    least, count = (1 if device.type == "cpu" else batch_size), 1
    while count < MOST and n >= least * 2 * count and ROWS * (2 * count) ** 2 <= n:
        count *= 2
    return max(count, -(-n // (LARGEST * batch_size)))


def interleaved(index: Int[Tensor, "m"], count: int) -> tuple[list[Int[Tensor, "_"]], Int[Tensor, "m"]]:
    """Deal rows out like cards, as images that stand together are often equally hard.

    Returns:
        The rows of every piece, and the order that puts the joined pieces back into the order of ``index``.
    """
    places = torch.arange(len(index), device=index.device)
    return [index[i::count] for i in range(count)], torch.cat([places[i::count] for i in range(count)]).argsort()
