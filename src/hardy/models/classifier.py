"""A classifier is a net with its normalisation inside: pixels in [0, 1] go in, logits come out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hardy.errors import ParameterError, ShapeError

__all__ = ["Arg", "Builder", "Classifier", "Normalize", "Source"]

Builder = Literal["timm", "torchvision", "builtin", "external"]
Arg = bool | int | float | str
MAX_CLASSES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Source:
    """How to build a classifier again, without its weights; plain JSON once through ``dataclasses.asdict``.

    Attributes:
        builder: Who builds it; "external" is code of the user, which only the user can run.
        name: Name of the net there; for "external" what the user called it.
        num_classes: Number of logits, in [1, 1,000,000].
        in_channels: Channels of the input, at least 1.
        mean: What is subtracted from each channel, in pixels in [0, 1].
        std: What each channel is divided by, positive.
        input_size: Height and width that the net was made for, in pixels; None where it takes any.
        args: Further arguments of the builder, from the allow-list of ``hardy.models.registry``.

    Raises:
        ParameterError: a number is out of range, or mean and std do not have one number per channel.
    """

    builder: Builder
    name: str
    num_classes: int
    in_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int | None = None
    args: Mapping[str, Arg] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        sizes = {"num_classes": self.num_classes, "in_channels": self.in_channels, "input_size": self.input_size}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ParameterError(f"{self.name}: {name} must be at least 1; got {value}.")
        if self.num_classes > MAX_CLASSES:  # a checkpoint of a stranger must not take all memory
            raise ParameterError(f"{self.name}: num_classes must be at most {MAX_CLASSES}; got {self.num_classes}.")
        for name, values in {"mean": self.mean, "std": self.std}.items():
            if len(values) != self.in_channels or not all(map(math.isfinite, values)):
                raise ParameterError(
                    f"{self.name}: {name} must be one finite number for each of the {self.in_channels} channels; "
                    f"got {values}."
                )
        if min(self.std) <= 0:
            raise ParameterError(f"{self.name}: std must be above 0; got {self.std}.")


class Normalize(nn.Module):
    """Subtract ``mean`` and divide by ``std``, channel by channel; ``forward`` takes pixels in [0, 1].

    The two buffers move with the model but are no part of its state dict: the :class:`Source` has the numbers.

    Raises:
        ShapeError: the input is not ``n c h w`` with one channel per number; a gray image is not spread to RGB.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "n c h w"]:
        channels = self.mean.shape[1]
        if x.ndim != 4 or x.shape[1] != channels:
            raise ShapeError(
                f"model: the input must be n c h w with c = {channels}; got {tuple(x.shape)}. "
                f"Convert the images, or build the net with in_channels set."
            )
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        mean, std = self.mean.flatten(), self.std.flatten()
        return f"{len(mean)} channels" if mean.is_meta else f"mean={_short(mean)}, std={_short(std)}"


class Classifier(nn.Module):
    """A net and its normalisation; ``forward`` maps pixels in [0, 1], ``n c h w``, to logits, ``n num_classes``.

    Attributes:
        inner: Name of the child that holds the net; sites may be named relative to it.
        normalize: The normalisation.
        net: The net.
        source: How to build it again.

    Args:
        net: A net that takes normalised images and returns logits.
        source: How it was built.
        class_names: Names of the classes in label order; without them "0", "1", ...

    Raises:
        ParameterError: not one name per class.
    """

    inner = "net"

    def __init__(self, net: nn.Module, source: Source, class_names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.normalize = Normalize(source.mean, source.std)
        self.net = net
        self.source = source
        self.class_names = tuple(map(str, range(source.num_classes))) if class_names is None else tuple(class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in label order."""
        return self._class_names

    @class_names.setter
    def class_names(self, names: Sequence[str]) -> None:
        if isinstance(names, str) or len(names) != self.source.num_classes:
            raise ParameterError(
                f"{self.source.name}: class_names must be {self.source.num_classes} names, one per logit; "
                f"got {names!r}."
            )
        self._class_names = tuple(names)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "n k"]:
        logits: Tensor = self.net(self.normalize(x))
        return logits

    def __repr__(self) -> str:
        s = self.source
        return f"Classifier({s.builder}:{s.name}, {s.num_classes} classes, {s.in_channels} channels, {self.normalize})"


def _short(values: Tensor) -> str:
    return f"({', '.join(f'{v:.4g}' for v in values.tolist())})"
