"""What must hold before an attack starts; everything here is known before the first pass or right after it."""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from hardy.attacks.state import Stop
from hardy.errors import DataError, ParameterError, ShapeError, did_you_mean

__all__ = [
    "check_eval",
    "check_input",
    "check_labels",
    "check_precision",
    "check_range",
    "check_rows",
    "check_stop",
    "check_targets",
]

HALVES = (torch.float16, torch.bfloat16)


def check_eval(model: nn.Module, who: str) -> None:
    """Demand eval mode; nothing is switched behind the caller's back.

    Raises:
        ParameterError: the model, or a normalisation layer in it, is in train mode.
    """
    bad = [name for name, module in model.named_modules() if module.training and name and _counts(module)]
    if model.training or bad:
        where = "the model is in train mode" if model.training else f"{bad[0]} is in train mode"
        raise ParameterError(
            f"{who}: the model must be in eval mode; {where}. Call model.eval() first (Hardy does not switch modes)."
        )


def check_input(x: Tensor, models: Sequence[nn.Module], *, batch_size: int) -> None:
    """Demand at least one float32 image in [0, 1], eval mode, one device.

    Raises:
        ParameterError: train mode, no source, or a batch size below 1.
        ShapeError: not ``n c h w`` with n >= 1.
        DataError: another dtype, range or device; weights in half precision.
    """
    if batch_size < 1:
        raise ParameterError(f"attack: batch_size must be at least 1; got {batch_size}.")
    if len(models) < 2:
        raise ParameterError(
            "attack: sources must name at least one net; got an empty list. Leave it out to attack the model itself."
        )
    if x.ndim != 4 or len(x) == 0:
        raise ShapeError(f"attack: x must be images n c h w, n >= 1; got {tuple(x.shape)}. Add the missing dimension.")
    if x.dtype != torch.float32:
        raise DataError(f"attack: x must be float32 in [0, 1]; got {x.dtype}. Convert with x.float().")
    for model in models:
        check_eval(model, "attack")
        check_precision(model, "attack")
        devices = {p.device for p in model.parameters()} - {x.device}
        if devices:
            raise DataError(f"attack: x is on {x.device}, {type(model).__name__} on {devices.pop()}. Move one of them.")
    check_range(x, "attack")


def check_precision(model: nn.Module, who: str) -> None:
    """Demand that no weight is in half precision, as verdicts are made in float32.

    Raises:
        DataError: a float16 or bfloat16 parameter.
    """
    for name, p in model.named_parameters():
        if p.dtype in HALVES:
            raise DataError(
                f"{who}: weights must be float32, as rounding hides small gradients and margins; {name} is {p.dtype}. "
                "Call model.float() first."
            )


def check_rows(name: str, values: Tensor, x: Tensor) -> Tensor:
    """Demand one integer per image, on the device of the images; give them as int64.

    Raises:
        ShapeError: another shape.
        DataError: not integers, or another device.
    """
    if values.shape != x.shape[:1]:
        raise ShapeError(f"attack: {name} must be ({len(x)},), one per image; got {tuple(values.shape)}. Match x.")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise DataError(f"attack: {name} must be integers; got {values.dtype}. Convert with {name}.long().")
    if values.device != x.device:
        raise DataError(f"attack: x is on {x.device}, {name} on {values.device}. Move one of them.")
    return values.long()


def check_stop(stop: str | None) -> None:
    """Demand a known rule.

    Raises:
        ParameterError: an unknown one.
    """
    if stop is not None and stop not in get_args(Stop):
        raise ParameterError(f"attack: unknown stop {stop!r}; {did_you_mean(stop, get_args(Stop))}")


def check_range(x: Tensor, who: str) -> None:
    """Demand finite pixels in [0, 1]; the message tells 0-255 pixels from normalised ones.

    Raises:
        DataError: some value is outside.
    """
    low, high = (float(v) for v in torch.aminmax(x))
    if low >= 0 and high <= 1:
        return
    if not (low > float("-inf") and high < float("inf")):
        hint = "Remove the images that are not finite."
    elif low >= 0 and high > 16:
        hint = "These look like 0-255 pixels: divide by 255."
    elif low < 0:
        hint = "These look normalised: pass plain pixels; normalisation is a layer inside the model."
    else:
        hint = "Scale the pixels to [0, 1]; normalisation is a layer inside the model."
    raise DataError(f"{who}: x must be pixels in [0, 1]; got values in [{low:g}, {high:g}]. {hint}")


def check_labels(logits: Tensor, y: Tensor, who: str) -> None:
    """Demand at least two outputs and labels among them.

    Raises:
        DataError: a label is outside, or the model has one output.
    """
    k = logits.shape[1]
    if k < 2:
        raise DataError(
            f"{who}: the model must have at least 2 outputs; got {k}. Make it return two logits, [-z, z] / 2."
        )
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= k:
        raise DataError(
            f"{who}: labels must be in 0 .. {k - 1}, the model's outputs; got {low} .. {high}. Check the head."
        )


def check_targets(logits: Tensor, y: Tensor, targets: Tensor | None) -> None:
    """Demand valid labels, and targets that differ from them.

    Raises:
        DataError: labels or targets outside the outputs.
        ParameterError: a target that is the label.
    """
    check_labels(logits, y, "attack")
    if targets is not None:
        check_labels(logits, targets, "attack (targets)")
        same = int((targets == y).sum())
        if same:
            raise ParameterError(
                f"attack: a target must differ from its label; {same} of {len(y)} do not. Choose other classes."
            )


def _counts(module: nn.Module) -> bool:
    """Say whether train mode makes this module depend on its batch."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001  (the base of all batch norms)
