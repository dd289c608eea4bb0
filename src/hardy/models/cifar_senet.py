"""SENet-18 for small images: pre-activation ResNet-18 with squeeze-and-excitation.

Hu, Shen, Sun. "Squeeze-and-excitation networks". CVPR 2018. https://arxiv.org/abs/1709.01507
He, Zhang, Ren, Sun. "Identity mappings in deep residual networks". ECCV 2016. https://arxiv.org/abs/1603.05027
It is the net that papers on CIFAR call SENet-18: a 3x3 stem with norm and activation, stages of two blocks with 64,
128, 256 and 512 channels, gates with a sixteenth of the channels, and no norm behind the last block, which the second
paper has. 11,260,354 parameters for 10 classes of RGB images.

Modules are named as in torchvision's ResNet. The net takes images of any size and of any number of channels.
"""

from jaxtyping import Float
from torch import Tensor, nn

from hardy.models.cifar_layers import check_width, init_convs
from hardy.models.cifar_wrn import PreActBlock

__all__ = ["CifarSENet", "SEBlock", "SqueezeExcite", "cifar_senet18"]

REDUCTION = 16  # channels per channel inside a gate


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate in (0, 1) computed from the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inside = max(1, channels // REDUCTION)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, inside, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(inside, channels, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        gate: Tensor = self.sigmoid(self.fc2(self.relu(self.fc1(self.pool(x)))))
        return x * gate


class SEBlock(PreActBlock):
    """A pre-activation block whose branch ends in :class:`SqueezeExcite`."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, stride)
        self.se = SqueezeExcite(channels)

    def branch(self, activated: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Compute what is added to the shortcut."""
        residual: Tensor = self.se(super().branch(activated))
        return residual


class CifarSENet(nn.Module):
    """A 3x3 stem, four stages of two blocks, global average pooling, a linear layer; ``forward`` returns logits.

    Args:
        width: Channels of the stem and of the first stage; the last stage has 8 times as many.
        num_classes: Number of logits.
        in_channels: Channels of the images.

    Raises:
        ParameterError: the width is below 1.
    """

    def __init__(self, *, width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        check_width("senet", "width", width)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(SEBlock(width, width, 1), SEBlock(width, width, 1))
        self.layer2 = nn.Sequential(SEBlock(width, 2 * width, 2), SEBlock(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(SEBlock(2 * width, 4 * width, 2), SEBlock(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(SEBlock(4 * width, 8 * width, 2), SEBlock(8 * width, 8 * width, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(8 * width, num_classes)
        init_convs(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return logits


def cifar_senet18(*, num_classes: int, in_channels: int, width: int = 64) -> CifarSENet:
    """Build SENet-18; ``width`` is the number of channels of the first stage, the last has 8 times as many."""
    return CifarSENet(width=width, num_classes=num_classes, in_channels=in_channels)
