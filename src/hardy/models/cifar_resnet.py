"""Residual nets for small images: ResNet-18, 34 and 50 with a 3x3 stem, and the family of ResNet-20.

He, Zhang, Ren, Sun. "Deep residual learning for image recognition". CVPR 2016. https://arxiv.org/abs/1512.03385
ResNet-18, 34 and 50 are section 4.1 with the stem that everybody uses on CIFAR: a 3x3 convolution of stride 1 and no
max pooling; 11,173,962, 21,282,122 and 23,520,842 parameters for 10 classes of RGB images. ResNet-50 has its strides in
the 3x3 convolutions, as torchvision has, where the paper has them in the first 1x1 convolutions.
ResNet-8, 14, 20, 32, 44, 56 and 110 are section 4.2: depth 6 n + 2, three stages of n blocks with 16, 32 and 64
channels, shortcuts without parameters (option A); 0.27 million parameters for depth 20.

``bottom_scale`` and ``stem_width`` give nets of the predecessor of defective convolution, "Random mask: towards robust
convolutional neural networks", https://arxiv.org/abs/2007.14249: see there.

Modules are named as in torchvision's ResNet. The nets take images of any size and of any number of channels.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hardy.errors import ParameterError
from hardy.models.cifar_layers import check_width, init_convs

__all__ = [
    "DEPTHS",
    "BasicBlock",
    "Bottleneck",
    "CifarResNet",
    "PadShortcut",
    "Shortcut",
    "cifar_resnet18",
    "cifar_resnet34",
    "cifar_resnet50",
    "cifar_resnet_6n2",
]

Shortcut = Literal["pad", "projection"]
DEPTHS = (8, 14, 20, 32, 44, 56, 110)  # of the family with three stages


class PadShortcut(nn.Module):
    """Take every ``stride``-th pixel and add channels of zeros, half before and half behind (option A)."""

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        if extra_channels < 0:
            raise ParameterError(
                f"resnet: shortcut 'pad' adds channels and cannot take {-extra_channels} away. "
                f"Make the stem no wider than the first stage, or use shortcut='projection'."
            )
        self.before = extra_channels // 2
        self.behind = extra_channels - self.before
        self.stride = stride

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.behind))

    def extra_repr(self) -> str:
        return f"before={self.before}, behind={self.behind}, stride={self.stride}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them; ``forward`` returns the activated sum."""

    expansion = 1  # output channels per channel of the 3x3 convolutions

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _downsample(in_channels, channels, stride, shortcut)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        activated: Tensor = self.relu(residual + (x if self.downsample is None else self.downsample(x)))
        return activated


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut around them; ``forward`` returns the activated sum."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        wide = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, wide, stride, shortcut)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        activated: Tensor = self.relu(residual + (x if self.downsample is None else self.downsample(x)))
        return activated


class CifarResNet(nn.Module):
    """A 3x3 stem, stages of residual blocks, global average pooling, a linear layer; ``forward`` returns logits.

    Args:
        block: Class of the blocks.
        blocks: Number of blocks of each stage; the first stage has stride 1, each other one halves the image.
        stem: Channels of the stem.
        channels: Channels of the 3x3 convolutions of each stage.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        shortcut: What stands in for the identity where the shape changes: "pad" (option A) or "projection" (B).

    Raises:
        ParameterError: a width below 1, another shortcut, or padding where channels become fewer.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        stem: int,
        channels: Sequence[int],
        *,
        num_classes: int,
        in_channels: int,
        shortcut: Shortcut,
    ) -> None:
        super().__init__()
        if shortcut not in get_args(Shortcut):
            raise ParameterError(f"resnet: shortcut must be 'pad' or 'projection'; got {shortcut!r}.")
        check_width("resnet", "width", min(channels))
        check_width("resnet", "stem_width", stem)
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        last = stem
        for number, (depth, width) in enumerate(zip(blocks, channels, strict=True), start=1):
            stage = nn.Sequential()
            for i in range(depth):
                stage.append(block(last, width, 2 if i == 0 and number > 1 else 1, shortcut))
                last = width * block.expansion
            self.add_module(f"layer{number}", stage)
        self.stage_names = tuple(f"layer{number}" for number in range(1, len(blocks) + 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(last, num_classes)
        init_convs(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        x = self.relu(self.bn1(self.conv1(x)))
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return logits


def cifar_resnet18(*, num_classes: int, in_channels: int, width: int = 64, bottom_scale: float = 1.0) -> CifarResNet:
    """Build ResNet-18 with a 3x3 stem.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images.
        width: Channels of the stem and of the first stage; the last stage has 8 times as many.
        bottom_scale: Factor on the channels of stages 1 and 2, above 0, rounded up: the random-mask paper's nets with
            fewer (0.5: 64 to 32, 128 to 64; 0.1: 7 and 13) and more channels (2.0, 4.0). That the stem keeps its width
            is our reading, from the projection that the first block of their narrow nets has.

    Raises:
        ParameterError: the width or the factor is out of range.
    """
    if not (bottom_scale > 0 and math.isfinite(bottom_scale)):
        raise ParameterError(f"resnet: bottom_scale must be above 0 and finite; got {bottom_scale}.")
    scaled = [math.ceil(channels * bottom_scale - 1e-9) for channels in (width, 2 * width)]  # 100 * 0.07 is above 7
    channels = [*scaled, 4 * width, 8 * width]
    return _four_stages(BasicBlock, [2, 2, 2, 2], width, channels, num_classes=num_classes, in_channels=in_channels)


def cifar_resnet34(*, num_classes: int, in_channels: int, width: int = 64) -> CifarResNet:
    """Build ResNet-34 with a 3x3 stem; ``width`` is the number of channels of the first stage, the last has 8 times."""
    channels = [width, 2 * width, 4 * width, 8 * width]
    return _four_stages(BasicBlock, [3, 4, 6, 3], width, channels, num_classes=num_classes, in_channels=in_channels)


def cifar_resnet50(*, num_classes: int, in_channels: int, width: int = 64) -> CifarResNet:
    """Build ResNet-50 with a 3x3 stem; ``width`` is the channels of the stem, the last stage returns 32 times as many.

    It is no member of the 6 n + 2 family, although 50 = 6 * 8 + 2.
    """
    channels = [width, 2 * width, 4 * width, 8 * width]
    return _four_stages(Bottleneck, [3, 4, 6, 3], width, channels, num_classes=num_classes, in_channels=in_channels)


def cifar_resnet_6n2(
    depth: int,
    *,
    num_classes: int,
    in_channels: int,
    width: int = 16,
    stem_width: int | None = None,
    shortcut: Shortcut = "pad",
) -> CifarResNet:
    """Build a net of section 4.2 of the paper.

    Args:
        depth: Number of layers with weights, 6 n + 2.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        width: Channels of the first stage; the last stage has 4 times as many.
        stem_width: Channels of the stem; None for ``width``. The random-mask paper's "ResNet-32, width 4" has depth 32,
            width 64, stem_width 16 and shortcut "projection", hence a projection into the first stage.
        shortcut: "pad" as in the paper, or "projection": 1x1 convolutions, which structured pruning can cut.

    Raises:
        ParameterError: the depth is not 6 n + 2, a width is below 1, or the stem is too wide for padding.
    """
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        raise ParameterError(f"resnet: depth must be 6 n + 2 with n >= 1, such as {DEPTHS}; got {depth}.")
    return CifarResNet(
        BasicBlock,
        [n] * 3,
        width if stem_width is None else stem_width,
        [width, 2 * width, 4 * width],
        num_classes=num_classes,
        in_channels=in_channels,
        shortcut=shortcut,
    )


def _four_stages(
    block: type[BasicBlock] | type[Bottleneck],
    blocks: Sequence[int],
    stem: int,
    channels: Sequence[int],
    *,
    num_classes: int,
    in_channels: int,
) -> CifarResNet:
    """Build a net of section 4.1, all of which have projections."""
    return CifarResNet(
        block, blocks, stem, channels, num_classes=num_classes, in_channels=in_channels, shortcut="projection"
    )


def _downsample(in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> nn.Module | None:
    """Make what a block has in place of the identity; None where the shape does not change."""
    if stride == 1 and in_channels == channels:
        return None
    if shortcut == "pad":
        return PadShortcut(channels - in_channels, stride)
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
