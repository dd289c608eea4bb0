"""Threat models: a norm and a budget. Pixels are in [0, 1]. Imports nothing heavy."""

import math
import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from hardy.errors import ConfigError, ParameterError, did_you_mean

__all__ = ["PRESETS", "Norm", "Threat", "parse_budget", "parse_threat"]

Norm = Literal["linf", "l2", "l1"]


@dataclass(frozen=True)
class Threat:
    """All changes of an image whose ``norm`` is at most ``eps`` and that stay inside the box [0, 1].

    Attributes:
        norm: "linf": the largest change of a value; "l2": the Euclidean length of the change over the whole image;
            "l1": the sum of the changes of all values.
        eps: Budget in units of pixels in [0, 1], above 0; 8/255 means 8 gray levels.

    Raises:
        ParameterError: an unknown norm, or ``eps`` that is not a positive finite number.

    Example:
        >>> Threat("linf", 8 / 255)
        Threat(norm='linf', eps=0.03137254901960784)
    """

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        norms: tuple[str, ...] = get_args(Norm)
        if self.norm not in norms:
            raise ParameterError(f"Threat: norm must be one of {', '.join(norms)}; got {self.norm!r}.")
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise ParameterError(f"Threat: eps must be a positive number of pixels in [0, 1]; got {self.eps!r}.")
        object.__setattr__(
            self, "eps", float(self.eps)
        )  # 12 is a good l1 budget; tensors made of it must not be integers

    def __str__(self) -> str:
        levels = self.eps * 255
        if self.norm == "linf" and levels < 33 and math.isclose(levels, round(levels), rel_tol=1e-6):
            return f"{self.norm} {round(levels)}/255"
        return f"{self.norm} {self.eps:.4g}"


# RobustBench's leaderboards of attacks, by data and norm; it has none for other norms on these data
PRESETS = {
    "cifar10-linf": Threat("linf", 8 / 255),
    "cifar10-l2": Threat("l2", 0.5),
    "cifar100-linf": Threat("linf", 8 / 255),
    "imagenet-linf": Threat("linf", 4 / 255),
    "imagenet-linf-4": Threat("linf", 4 / 255),
}


def parse_budget(text: str | int | float) -> float:
    """Read a budget written as ``"8/255"``, ``"0.03"`` or a number.

    Raises:
        ConfigError: it is none of these.

    Example:
        >>> parse_budget("8/255") == 8 / 255
        True
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        return float(text)
    number = r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?)"
    match = re.fullmatch(rf"\s*{number}\s*(?:/\s*(\d+(?:\.\d*)?))?\s*", str(text), re.IGNORECASE | re.ASCII)
    below = float(match[2] or 1) if match else 0.0
    value = float(match[1]) / below if match and below else math.inf
    if not math.isfinite(value):
        raise ConfigError(f'expected a number or a fraction such as "8/255"; got {text!r}')
    return value


def parse_threat(text: str) -> Threat:
    """Read a threat written as ``"linf:8/255"``, ``"l2:0.5"``, ``"l1:12"`` or the name of a preset.

    Raises:
        ConfigError: it is none of these.
    """
    if text in PRESETS:
        return PRESETS[text]
    norm, sep, eps = text.partition(":")
    if not sep:
        raise ConfigError(f"threat {text!r}: write linf:8/255, or a preset; {did_you_mean(text, PRESETS)}")
    try:
        return Threat(cast("Norm", norm), parse_budget(eps))
    except ParameterError as error:
        raise ConfigError(f"threat {text!r}: {error}") from error
