"""GoogLeNet for small images.

Szegedy et al. "Going deeper with convolutions". CVPR 2015. https://arxiv.org/abs/1409.4842, table 1.
It is the net that papers on CIFAR call GoogLeNet. What differs from the table: one 3x3 convolution of 192 channels and
stride 1 is the stem; two 3x3 convolutions stand in for each 5x5 (Szegedy et al., "Rethinking the inception
architecture", CVPR 2016, https://arxiv.org/abs/1512.00567); batch normalisation follows every convolution (with bias);
there are no auxiliary heads and no dropout. 6,166,250 parameters for 10 classes of RGB images.

Modules are named as in torchvision's GoogLeNet. The net takes images of any size and of any number of channels.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hardy.models.cifar_layers import check_width, init_convs

__all__ = ["CifarGoogLeNet", "ConvNormAct", "Inception", "cifar_googlenet"]

# channels of the four branches: 1x1 | 1x1, 3x3 | 1x1, 3x3 twice ("5x5") | 1x1 behind the pooling
Widths = tuple[int, int, int, int, int, int]
STEM = 192
TABLE: dict[str, Widths] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class ConvNormAct(nn.Module):
    """Convolution with bias, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        activated: Tensor = self.relu(self.bn(self.conv(x)))
        return activated


class Inception(nn.Module):
    """Four branches side by side; ``forward`` returns their channels one behind the other.

    Args:
        in_channels: Channels that enter.
        widths: Channels inside, a row of ``TABLE``.
    """

    def __init__(self, in_channels: int, widths: Widths) -> None:
        super().__init__()
        one, three_in, three, five_in, five, pooled = widths
        self.branch1 = ConvNormAct(in_channels, one, 1)
        self.branch2 = nn.Sequential(ConvNormAct(in_channels, three_in, 1), ConvNormAct(three_in, three, 3))
        self.branch3 = nn.Sequential(
            ConvNormAct(in_channels, five_in, 1), ConvNormAct(five_in, five, 3), ConvNormAct(five, five, 3)
        )
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), ConvNormAct(in_channels, pooled, 1))
        self.channels = one + three + five + pooled

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class CifarGoogLeNet(nn.Module):
    """A 3x3 stem, nine inception modules in three stages, average pooling, a linear layer; ``forward`` gives logits.

    Args:
        width: Channels of the first branch of the first module, 64 in the paper; all others scale with it, rounded
            down, at least 1.
        num_classes: Number of logits.
        in_channels: Channels of the images.

    Raises:
        ParameterError: the width is below 1.
    """

    def __init__(self, *, width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        check_width("googlenet", "width", width)

        def scaled(channels: int) -> int:
            return max(1, channels * width // TABLE["3a"][0])

        last = scaled(STEM)
        self.conv1 = ConvNormAct(in_channels, last, 3)
        for name, (a, b, c, d, e, f) in TABLE.items():
            if name in ("4a", "5a"):
                self.add_module(f"maxpool{int(name[0]) - 1}", nn.MaxPool2d(3, 2, padding=1))
            module = Inception(last, (scaled(a), scaled(b), scaled(c), scaled(d), scaled(e), scaled(f)))
            self.add_module(f"inception{name}", module)
            last = module.channels
        self.body_names = tuple(name for name, _ in self.named_children())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(last, num_classes)
        init_convs(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        for name in self.body_names:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return logits


def cifar_googlenet(*, num_classes: int, in_channels: int, width: int = 64) -> CifarGoogLeNet:
    """Build GoogLeNet; ``width`` scales all its layers, 64 gives the published numbers of channels."""
    return CifarGoogLeNet(width=width, num_classes=num_classes, in_channels=in_channels)
