"""The two published sets of constants, for images of about 32 pixels and of about 224, named apart."""

from typing import Literal, get_args

from hardy.errors import ParameterError

__all__ = ["SCALES", "SEVERITIES", "Scale", "check"]

Scale = Literal["cifar", "imagenet"]
SCALES: tuple[Scale, ...] = get_args(Scale)
SEVERITIES = (1, 2, 3, 4, 5)


def check(name: str, severity: int, scale: str) -> None:
    """Check what every corruption takes.

    Args:
        name: Of the corruption, for the message.
        severity: 1 to 5.
        scale: "cifar" (CIFAR-10-C, 32 px) or "imagenet" (ImageNet-C, 224 px).

    Raises:
        ParameterError: another severity or scale.
    """
    if severity not in SEVERITIES:
        raise ParameterError(f"{name}: severity must be a whole number from 1 to 5; got {severity!r}.")
    if scale not in SCALES:
        raise ParameterError(f"{name}: scale must be 'cifar' or 'imagenet'; got {scale!r}.")
