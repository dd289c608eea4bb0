"""Fingerprints: were these the same images, the same weights?"""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hardy.attacks.passes import sealed_rng

__all__ = ["behaviour_digest", "images_digest", "weights_digest"]

FEW = 8  # images that a net is asked about


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


def behaviour_digest(model: nn.Module, x: Float[Tensor, "n c h w"]) -> bytes:
    """Hash what a net is and does: its structure, weights, and answers and gradients on a few images; 16 bytes.

    Answers and gradients are rounded to bfloat16, so that another number of threads does not make another net. A net
    that answers at random is asked with one seed.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{type(model).__module__}.{type(model).__qualname__} {model!r} {weights_digest(model)}".encode())
    with sealed_rng(x.device, 0), torch.inference_mode(False), torch.enable_grad():
        leaf = x[:FEW].clone().requires_grad_()
        z = model(leaf)
        total = (z.float() * torch.arange(1, 1 + z.shape[1], device=z.device)).sum()
        gradient = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
    for value in (z.detach(), torch.zeros_like(leaf) if gradient is None else gradient):
        digest.update(_bytes(value.to(torch.bfloat16)))
    return digest.digest()


def _bytes(values: Tensor) -> memoryview:
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
