"""Residual nets for small images: ResNet-18 with a 3x3 stem, and the family of ResNet-20.

He, Zhang, Ren, Sun. "Deep residual learning for image recognition". CVPR 2016. https://arxiv.org/abs/1512.03385
ResNet-18 is section 4.1 with the stem that everybody uses on CIFAR: a 3x3 convolution of stride 1 and no max pooling;
11,173,962 parameters for 10 classes. ResNet-8, 14, 20, 32, 44, 56 and 110 are section 4.2: depth 6 n + 2, three stages
of n blocks with 16, 32 and 64 channels, shortcuts without parameters (option A); 0.27 million parameters for depth 20.

Modules are named as in torchvision's ResNet. The nets take images from 8x8 up, of any number of channels.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hardy.errors import ParameterError

__all__ = ["DEPTHS", "BasicBlock", "CifarResNet", "PadShortcut", "Shortcut", "cifar_resnet18", "cifar_resnet_6n2"]

Shortcut = Literal["pad", "projection"]
DEPTHS = (8, 14, 20, 32, 44, 56, 110)  # of the family with three stages


class PadShortcut(nn.Module):
    """Take every ``stride``-th pixel and add channels of zeros, half before and half behind (option A)."""

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        self.before = extra_channels // 2
        self.behind = extra_channels - self.before
        self.stride = stride

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.behind))

    def extra_repr(self) -> str:
        return f"before={self.before}, behind={self.behind}, stride={self.stride}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them; ``forward`` returns the activated sum."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = (
                PadShortcut(channels - in_channels, stride)
                if shortcut == "pad"
                else nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
            )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        activated: Tensor = self.relu(residual + (x if self.downsample is None else self.downsample(x)))
        return activated


class CifarResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks, global average pooling, a linear layer; ``forward`` returns logits.

    Args:
        blocks: Number of blocks of each stage; the first stage has stride 1, each other one halves the image.
        channels: Channels of each stage.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        shortcut: What stands in for the identity where the shape changes: "pad" (option A) or "projection" (B).
    """

    def __init__(
        self, blocks: Sequence[int], channels: Sequence[int], *, num_classes: int, in_channels: int, shortcut: Shortcut
    ) -> None:
        super().__init__()
        if shortcut not in get_args(Shortcut):
            raise ParameterError(f"resnet: shortcut must be 'pad' or 'projection'; got {shortcut!r}.")
        if min(channels) < 1:
            raise ParameterError(f"resnet: width must be at least 1; got {channels[0]}.")
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu = nn.ReLU(inplace=True)
        last = channels[0]
        for number, (depth, width) in enumerate(zip(blocks, channels, strict=True), start=1):
            strides = [1 if number == 1 else 2] + [1] * (depth - 1)
            stage = [BasicBlock(last if i == 0 else width, width, s, shortcut) for i, s in enumerate(strides)]
            self.add_module(f"layer{number}", nn.Sequential(*stage))
            last = width
        self.stage_names = tuple(f"layer{number}" for number in range(1, len(blocks) + 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(last, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        x = self.relu(self.bn1(self.conv1(x)))
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return logits


def cifar_resnet18(*, num_classes: int, in_channels: int, width: int = 64) -> CifarResNet:
    """Build ResNet-18 with a 3x3 stem; ``width`` is the number of channels of the first stage, the last has 8 times."""
    channels = [width, 2 * width, 4 * width, 8 * width]
    return CifarResNet([2, 2, 2, 2], channels, num_classes=num_classes, in_channels=in_channels, shortcut="projection")


def cifar_resnet_6n2(
    depth: int, *, num_classes: int, in_channels: int, width: int = 16, shortcut: Shortcut = "pad"
) -> CifarResNet:
    """Build a net of section 4.2 of the paper.

    Args:
        depth: Number of layers with weights, 6 n + 2.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        width: Channels of the first stage; the last stage has 4 times as many.
        shortcut: "pad" as in the paper, or "projection": 1x1 convolutions, which structured pruning can cut.

    Raises:
        ParameterError: the depth is not 6 n + 2, or the width is below 1.
    """
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        raise ParameterError(f"resnet: depth must be 6 n + 2 with n >= 1, such as {DEPTHS}; got {depth}.")
    channels = [width, 2 * width, 4 * width]
    return CifarResNet([n] * 3, channels, num_classes=num_classes, in_channels=in_channels, shortcut=shortcut)
