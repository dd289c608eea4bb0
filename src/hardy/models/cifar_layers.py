"""What the built-in nets for small images share."""

from torch import nn

from hardy.errors import ParameterError

__all__ = ["check_width", "init_convs"]


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
