"""What the built-in nets for small images share."""

from typing import Literal, get_args

from torch import nn

from hardy.errors import ParameterError

__all__ = ["Activation", "Padding", "activation_layer", "check_width", "conv3x3", "init_convs"]

Activation = Literal["relu", "silu"]
Padding = Literal["one", "same"]


def activation_layer(net: str, name: Activation) -> nn.Module:
    """Make a rectifier, or SiLU (Swish): x times its sigmoid.

    Raises:
        ParameterError: another name.
    """
    if name not in get_args(Activation):
        raise ParameterError(f"{net}: activation must be 'relu' or 'silu'; got {name!r}.")
    return nn.ReLU(inplace=True) if name == "relu" else nn.SiLU(inplace=True)


def conv3x3(net: str, in_channels: int, channels: int, stride: int, padding: Padding) -> nn.Conv2d:
    """Make a 3x3 convolution without bias whose output is the input's size divided by the stride, rounded up.

    Args:
        net: Who asks, for messages.
        in_channels: Channels of its input.
        channels: Channels of its output.
        stride: 1 or 2.
        padding: "one": a pixel on every side. "same": TensorFlow's rule; with stride 2 an even side gets one pixel at
            its end and none at its start, so that all positions are shifted by one pixel.

    Raises:
        ParameterError: another padding.
    """
    if padding not in get_args(Padding):
        raise ParameterError(f"{net}: padding must be 'one' or 'same'; got {padding!r}.")
    if padding == "one" or stride == 1:  # then the two are equal
        return nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
    from timm.layers.conv2d_same import Conv2dSame

    conv: nn.Conv2d = Conv2dSame(in_channels, channels, 3, stride, bias=False)
    return conv


def init_convs(net: nn.Module) -> None:
    """Draw the weights of all convolutions from N(0, 2 / fan_out), and set their biases to 0.

    He, Zhang, Ren, Sun. "Delving deep into rectifiers". ICCV 2015. https://arxiv.org/abs/1502.01852
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_width(net: str, name: str, width: int) -> None:
    """Refuse a number of channels below 1.

    Raises:
        ParameterError: it is.
    """
    if width < 1:
        raise ParameterError(f"{net}: {name} must be at least 1; got {width}.")
