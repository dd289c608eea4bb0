"""Fingerprints: were these the same images, the same weights?"""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["images_digest", "weights_digest"]


def images_digest(x: Float[Tensor, "n c h w"]) -> bytes:
    """Hash the float32 pixels of all images, in order: 16 bytes of BLAKE2b."""
    return hashlib.blake2b(_bytes(x.float()), digest_size=16).digest()


def weights_digest(model: nn.Module) -> str:
    """Hash names, dtypes, shapes and values of the state dict, in order: 16 hex characters of BLAKE2b.

    What is not in the state dict (the code of the net, methods without weights) does not count, so two nets of one
    fingerprint may still compute different functions.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
            digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(values: Tensor) -> memoryview:
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
