"""Wide residual nets (WRN-depth-k) for small images, made of pre-activation blocks.

Zagoruyko, Komodakis. "Wide residual networks". BMVC 2016. https://arxiv.org/abs/1605.07146, table 1.
He, Zhang, Ren, Sun. "Identity mappings in deep residual networks". ECCV 2016. https://arxiv.org/abs/1603.05027 (the
block). WRN-28-10 has 36.5 million parameters, WRN-40-2 2.2 million (table 4 of the first paper).

Where the shape changes, the projection takes the activated input, as the branch does, and has no norm. The paper's
variant with dropout drops after the second activation of each block, p = 0.3: attach the method ``Dropout`` at
``layer*.*.relu2``. It is no argument here, because ``nn.Dropout`` would draw from the global generator.

Gowal, Qin, Uesato, Mann, Kohli. "Uncovering the limits of adversarial training". 2020.
https://arxiv.org/abs/2010.03593 has SiLU for the rectifier; the released nets of that paper and of many that follow it
also pad by TensorFlow's rule: ``activation="silu"``, ``padding="same"``.

Modules are named as in torchvision's ResNet. The nets take images of any size and of any number of channels.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from hardy.errors import ParameterError
from hardy.models.cifar_layers import Activation, Padding, activation_layer, check_width, conv3x3, init_convs

__all__ = ["PreActBlock", "Projection", "WideResNet", "cifar_wrn"]

Projection = Literal["activated", "raw", "raw_3x3"]


class PreActBlock(nn.Module):
    """Norm, activation, 3x3 convolution, twice, and a shortcut; ``forward`` returns the sum, not activated.

    Args:
        in_channels: Channels of its input.
        channels: Channels of its output.
        stride: Stride of the first convolution.
        activation: "relu" or "silu".
        padding: Of the 3x3 convolutions; see :func:`hardy.models.cifar_layers.conv3x3`.
        projection: What stands in for the identity where the shape changes: a 1x1 convolution of the "activated" input,
            as in the paper, or of the "raw" input; "raw_3x3": a 3x3 convolution of the raw input.

    Raises:
        ParameterError: another activation, padding or projection.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        *,
        activation: Activation = "relu",
        padding: Padding = "one",
        projection: Projection = "activated",
    ) -> None:
        super().__init__()
        if projection not in get_args(Projection):
            raise ParameterError(f"resnet: shortcut must be one of {get_args(Projection)}; got {projection!r}.")
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = activation_layer("resnet", activation)
        self.conv1 = conv3x3("resnet", in_channels, channels, stride, padding)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = activation_layer("resnet", activation)
        self.conv2 = conv3x3("resnet", channels, channels, 1, padding)
        self.raw = projection != "activated"
        self.downsample: nn.Module | None
        if stride == 1 and in_channels == channels:
            self.downsample = None
        elif projection == "raw_3x3":
            self.downsample = conv3x3("resnet", in_channels, channels, stride, padding)
        else:
            self.downsample = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        activated = self.relu1(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(x if self.raw else activated)
        return self.branch(activated) + shortcut

    def branch(self, activated: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Compute what is added to the shortcut."""
        residual: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return residual


class WideResNet(nn.Module):
    """A 3x3 stem, three stages of blocks, norm, activation, average pooling, linear layer; ``forward`` gives logits.

    Args:
        blocks: Number of blocks of each stage.
        stem: Channels of the stem.
        width: Channels of the first stage; the others have 2 and 4 times as many.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        activation: "relu" or "silu".
        padding: Of the 3x3 convolutions; see :func:`hardy.models.cifar_layers.conv3x3`.

    Raises:
        ParameterError: a width is below 1, or another activation or padding.
    """

    def __init__(
        self,
        blocks: int,
        *,
        stem: int,
        width: int,
        num_classes: int,
        in_channels: int,
        activation: Activation = "relu",
        padding: Padding = "one",
    ) -> None:
        super().__init__()
        check_width("wrn", "width", min(stem, width))
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        block = partial(PreActBlock, activation=activation, padding=padding)
        self.layer1 = _stage(block, blocks, stem, width, 1)
        self.layer2 = _stage(block, blocks, width, 2 * width, 2)
        self.layer3 = _stage(block, blocks, 2 * width, 4 * width, 2)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.relu = activation_layer("wrn", activation)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4 * width, num_classes)
        init_convs(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.fc(self.flatten(self.avgpool(self.relu(self.bn1(x)))))
        return logits


def cifar_wrn(
    depth: int,
    factor: int,
    *,
    num_classes: int,
    in_channels: int,
    width: int = 16,
    activation: Activation = "relu",
    padding: Padding = "one",
) -> WideResNet:
    """Build WRN-depth-factor.

    Args:
        depth: Number of layers as the paper counts them, 6 n + 4.
        factor: The paper's k: how much wider the stages are than the stem.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        width: Channels of the stem; the stages have ``factor`` times 1, 2 and 4 times as many.
        activation: "relu" or "silu".
        padding: "one" or "same"; see :func:`hardy.models.cifar_layers.conv3x3`.

    Raises:
        ParameterError: the depth is not 6 n + 4, the factor or the width is below 1, another activation or padding.
    """
    n, rest = divmod(depth - 4, 6)
    if rest or n < 1:
        raise ParameterError(f"wrn: depth must be 6 n + 4 with n >= 1, such as 16, 28 or 40; got {depth}.")
    return WideResNet(
        n,
        stem=width,
        width=factor * width,
        num_classes=num_classes,
        in_channels=in_channels,
        activation=activation,
        padding=padding,
    )


def _stage(
    block: Callable[[int, int, int], PreActBlock], blocks: int, in_channels: int, channels: int, stride: int
) -> nn.Sequential:
    rest = [block(channels, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(block(in_channels, channels, stride), *rest)
