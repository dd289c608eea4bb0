"""ResNet-18 for small images, made of pre-activation blocks.

He, Zhang, Ren, Sun. "Identity mappings in deep residual networks". ECCV 2016. https://arxiv.org/abs/1603.05027, with
the 3x3 stem and the four stages of 64 to 512 channels that everybody uses on CIFAR; 11.2 million parameters.

Nets of this name differ, and their weights do not tell by which one they were trained. Here the default is the paper's:
projections of the activated input, and a last norm and activation before pooling. Without them (``final_norm=False``)
and with projections of the raw input (``shortcut="raw"``) it is the net of "Fast is better than free"
(https://arxiv.org/abs/2001.03994); with ``shortcut="raw_3x3"``, ``activation="silu"`` and ``padding="same"`` that of
"Fixing data augmentation to improve adversarial robustness" (https://arxiv.org/abs/2103.01946), as released.

Modules are named as in torchvision's ResNet. The net takes images of any size and of any number of channels.
"""

from jaxtyping import Float
from torch import Tensor, nn

from hardy.models.cifar_layers import Activation, Padding, activation_layer, check_width, init_convs
from hardy.models.cifar_wrn import PreActBlock, Projection

__all__ = ["PreActResNet", "cifar_preact_resnet18"]


class PreActResNet(nn.Module):
    """A 3x3 stem, four stages of two blocks, norm, activation, average pooling, linear layer; gives logits.

    Args:
        width: Channels of the stem and of the first stage; the last stage has 8 times as many.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        shortcut: What projections take, and their kernel; see :class:`hardy.models.cifar_wrn.PreActBlock`.
        final_norm: Norm and activation before pooling.
        activation: "relu" or "silu".
        padding: "one" or "same"; see :func:`hardy.models.cifar_layers.conv3x3`.

    Raises:
        ParameterError: the width is below 1, or another shortcut, activation or padding.
    """

    def __init__(
        self,
        *,
        width: int,
        num_classes: int,
        in_channels: int,
        shortcut: Projection,
        final_norm: bool,
        activation: Activation,
        padding: Padding,
    ) -> None:
        super().__init__()
        check_width("resnet", "width", width)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        last = width
        for number, channels in enumerate((width, 2 * width, 4 * width, 8 * width), start=1):
            stage = nn.Sequential()
            for stride in (1 if number == 1 else 2, 1):
                block = PreActBlock(last, channels, stride, activation=activation, padding=padding, projection=shortcut)
                stage.append(block)
                last = channels
            self.add_module(f"layer{number}", stage)
        self.bn1 = nn.BatchNorm2d(last) if final_norm else None
        self.relu = activation_layer("resnet", activation) if final_norm else None
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(last, num_classes)
        init_convs(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        x = self.conv1(x)
        for number in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{number}")(x)
        if self.bn1 is not None and self.relu is not None:
            x = self.relu(self.bn1(x))
        logits: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return logits


def cifar_preact_resnet18(
    *,
    num_classes: int,
    in_channels: int,
    width: int = 64,
    shortcut: Projection = "activated",
    final_norm: bool = True,
    activation: Activation = "relu",
    padding: Padding = "one",
) -> PreActResNet:
    """Build it; the arguments are those of :class:`PreActResNet`."""
    return PreActResNet(
        width=width,
        num_classes=num_classes,
        in_channels=in_channels,
        shortcut=shortcut,
        final_norm=final_norm,
        activation=activation,
        padding=padding,
    )
