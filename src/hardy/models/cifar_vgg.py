"""VGG-16 and VGG-19 with batch normalisation for small images.

Simonyan, Zisserman. "Very deep convolutional networks for large-scale image recognition". ICLR 2015.
https://arxiv.org/abs/1409.1556, table 1, columns D and E. As everybody does on CIFAR, each convolution (with bias) is
followed by batch normalisation, and one linear layer stands in for the three of the paper: 14,728,266 and 20,040,522
parameters for 10 classes of RGB images.

The convolutional part is named as in torchvision's ``vgg16_bn``: ``features.N``. The five poolings keep the last row
and column of a map with an odd side (``ceil_mode``), so that images of 28 px fit; where all sides are even, as from
32 px, this changes nothing. Global average pooling makes larger images fit.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from hardy.errors import ShapeError
from hardy.models.cifar_layers import check_width, init_convs

__all__ = ["LEAST_SIDE", "CifarVGG", "cifar_vgg16", "cifar_vgg19"]

LEAST_SIDE = 17  # pixels; below, a pooling has nothing left to pool
GROWTH = (1, 2, 4, 8, 8)  # channels of the five stages per channel of the first


class CifarVGG(nn.Module):
    """Five stages of 3x3 convolutions with a max-pooling behind each, then one linear layer; ``forward`` gives logits.

    Args:
        convs: Number of convolutions of each stage.
        width: Channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        num_classes: Number of logits.
        in_channels: Channels of the images.

    Raises:
        ParameterError: the width is below 1.
        ShapeError: (``forward``) an image is smaller than ``LEAST_SIDE`` pixels.
    """

    def __init__(self, convs: Sequence[int], *, width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        check_width("vgg", "width", width)
        self.features = nn.Sequential()
        last = in_channels
        for depth, growth in zip(convs, GROWTH, strict=True):
            for _ in range(depth):
                conv = nn.Conv2d(last, growth * width, 3, padding=1)
                last = growth * width
                self.features.extend([conv, nn.BatchNorm2d(last), nn.ReLU(inplace=True)])
            self.features.append(nn.MaxPool2d(2, ceil_mode=True))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(last, num_classes)
        init_convs(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        if min(x.shape[2:]) < LEAST_SIDE:
            raise ShapeError(
                f"vgg: images must have at least {LEAST_SIDE}x{LEAST_SIDE} pixels for five poolings; "
                f"got {x.shape[2]}x{x.shape[3]}. Enlarge them, or take a cifar_resnet."
            )
        logits: Tensor = self.classifier(self.flatten(self.avgpool(self.features(x))))
        return logits


def cifar_vgg16(*, num_classes: int, in_channels: int, width: int = 64) -> CifarVGG:
    """Build VGG-16; ``width`` is the number of channels of the first stage, the last has 8 times as many."""
    return CifarVGG([2, 2, 3, 3, 3], width=width, num_classes=num_classes, in_channels=in_channels)


def cifar_vgg19(*, num_classes: int, in_channels: int, width: int = 64) -> CifarVGG:
    """Build VGG-19; ``width`` is the number of channels of the first stage, the last has 8 times as many."""
    return CifarVGG([2, 2, 4, 4, 4], width=width, num_classes=num_classes, in_channels=in_channels)
