"""Randomness as a function: the same key and counter give the same numbers, whatever surrounds them.

A key is one int64 per row (image), a counter says which draw of that row this is. Nothing is stored and nothing is
consumed, so a row's numbers do not depend on its place in the batch, on the other rows, on the device or the process.

The hash is SplitMix64: Steele, Lea, Flood. "Fast splittable pseudorandom number generators". OOPSLA 2014.
It is not cryptographic.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["fold", "keys", "normal", "permutation", "root", "uniform"]

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2^64 / golden ratio, odd; written as a signed 64-bit integer
MIX1, MIX2 = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def root(seed: int, purpose: str) -> int:
    """Hash a seed and a purpose (``"drop_block:layer3"``) to a signed 64-bit integer, the same in every process."""
    digest = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def keys(root: int, rows: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Derive one key per row index from a :func:`root`; rows may be batch positions or data-set indices."""
    return _mix(_mix(rows.long()) + root)


def fold(key: Int[Tensor, "n"], data: int | Int[Tensor, ""] | Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Derive new keys from keys and a number: an epoch, a restart, or the :func:`root` of a purpose."""
    return _mix(_mix(key + GOLDEN) ^ data)


def uniform(key: Int[Tensor, "n"], counter: int | Int[Tensor, ""], shape: Sequence[int]) -> Float[Tensor, "n ..."]:
    """Draw uniform numbers in [0, 1), ``shape`` of them for each key.

    Args:
        key: One int64 per row, from :func:`keys`.
        counter: Which draw this is; a tensor on the key's device avoids recompilation under ``torch.compile``.
        shape: Shape of one row.

    Returns:
        float32 multiples of 2^-24, shape ``(n, *shape)``, on the key's device; bit-equal on all devices.

    Example:
        >>> key = keys(root(0, "demo"), torch.arange(3))
        >>> torch.equal(uniform(key, 7, (2,))[1:], uniform(key[1:], 7, (2,)))
        True
    """
    start = _mix(_mix(key) + counter)
    lanes = torch.arange(1, math.prod(shape) + 1, device=key.device)
    if torch.compiler.is_compiling():  # data, not an index: the compiler's exact integers do not wrap
        lanes = lanes + (start[:, None] & 0)
    bits = _mix(start[:, None] + lanes * GOLDEN)
    return (_shift(bits, 40).float() * 2.0**-24).reshape(len(key), *shape)


def normal(key: Int[Tensor, "n"], counter: int | Int[Tensor, ""], shape: Sequence[int]) -> Float[Tensor, "n ..."]:
    """Draw standard normal numbers by the Box-Muller transform; arguments as for :func:`uniform`.

    Returns:
        float32, shape ``(n, *shape)``, at most 5.9 in size; equal over devices up to rounding.
    """
    size = math.prod(shape)
    half = (size + 1) // 2
    u = uniform(key, counter, (2 * half,))
    radius = torch.sqrt(-2 * torch.log(u[:, :half] + 2.0**-25))  # the shift keeps the logarithm finite
    angle = 2 * math.pi * u[:, half:]
    both = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return both[:, :size].reshape(len(key), *shape)


def permutation(key: Int[Tensor, "n"], counter: int | Int[Tensor, ""], size: int) -> Int[Tensor, "n size"]:
    """Draw one random order of ``0 .. size - 1`` for each key, by sorting uniform numbers."""
    return torch.argsort(uniform(key, counter, (size,)), dim=1, stable=True)


def _shift(z: Int[Tensor, "..."], by: int) -> Int[Tensor, "..."]:
    """Shift right and fill with zeros; ``>>`` alone would copy the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _mix(z: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Apply the finaliser of SplitMix64, a bijection of the 64-bit integers; overflow wraps on purpose."""
    z = (z ^ _shift(z, 30)) * MIX1
    z = (z ^ _shift(z, 27)) * MIX2
    return z ^ _shift(z, 31)
