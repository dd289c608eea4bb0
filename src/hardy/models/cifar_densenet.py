"""DenseNet-121 for small images: torchvision's with the stem that the paper has on CIFAR.

Huang, Liu, van der Maaten, Weinberger. "Densely connected convolutional networks". CVPR 2017.
https://arxiv.org/abs/1608.06993. The dense blocks are those of table 1 (6, 12, 24 and 16 layers, growth rate 32,
bottlenecks, compression 0.5); the stem is that of section 3, "implementation details": one 3x3 convolution with twice
the growth rate, without norm, activation and pooling. 6,956,298 parameters for 10 classes of RGB images.

Modules are named as in torchvision, which has ``features.norm0``, ``relu0`` and ``pool0`` besides. The net takes images
from 8x8 up, of any number of channels.
"""

from torch import nn

from hardy.models.cifar_layers import check_width

__all__ = ["cifar_densenet121"]


def cifar_densenet121(*, num_classes: int, in_channels: int, growth: int = 32) -> nn.Module:
    """Build DenseNet-121; the weights start as torchvision's do.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images.
        growth: Channels that each layer adds, the growth rate k of the paper; the stem has twice as many.

    Raises:
        ParameterError: the growth rate is below 1.
    """
    from torchvision.models import DenseNet  # only here: importing it takes longer than importing this library

    check_width("densenet", "growth", growth)
    net = DenseNet(growth, (6, 12, 24, 16), num_init_features=2 * growth, num_classes=num_classes)
    stem = nn.Conv2d(in_channels, 2 * growth, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight)  # as torchvision's other convolutions
    net.features.conv0 = stem
    for name in ("norm0", "relu0", "pool0"):
        delattr(net.features, name)
    return net
