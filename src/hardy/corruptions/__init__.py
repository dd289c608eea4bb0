"""Corruptions of images, one family per file: batched, keyed functions of tensors."""

from hardy.corruptions.gaussian_noise import gaussian_noise
from hardy.corruptions.patch_shuffle import patch_shuffle

__all__ = ["gaussian_noise", "patch_shuffle"]
