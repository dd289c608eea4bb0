"""Corruptions of images: batched, keyed functions of tensors.

:func:`corrupt` makes the 15 common corruptions and the 4 further ones of CIFAR-10-C and ImageNet-C by their published
names, the keys of :data:`CORRUPTIONS`. The other functions here take a free strength instead of five severities:
:func:`gaussian_noise` with its sigma is not the published corruption of that name. What hides parts of an image is in
``fills``, ``patch_drop`` and ``scan_line``.
"""

from hardy.corruptions.common import ALEXNET_ERRORS, CORRUPTIONS, FAMILIES, Corruption, Family, corrupt, scale_of
from hardy.corruptions.frequency_filter import high_pass, low_pass
from hardy.corruptions.gaussian_noise import gaussian_noise
from hardy.corruptions.patch_shuffle import patch_shuffle
from hardy.corruptions.salt_pepper import salt_pepper
from hardy.corruptions.scale import Scale
from hardy.corruptions.uniform_noise import uniform_noise

__all__ = [
    "ALEXNET_ERRORS",
    "CORRUPTIONS",
    "FAMILIES",
    "Corruption",
    "Family",
    "Scale",
    "corrupt",
    "gaussian_noise",
    "high_pass",
    "low_pass",
    "patch_shuffle",
    "salt_pepper",
    "scale_of",
    "uniform_noise",
]
