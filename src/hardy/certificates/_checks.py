"""What must hold before a certificate is computed, and while it is."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hardy.errors import ParameterError

__all__ = ["above", "at_least", "eval_mode", "probability", "proper_float32"]

BACKENDS: tuple[Any, ...] = (  # modules whose settings PyTorch leaves untyped
    *(torch.backends.cuda.matmul, torch.backends.cudnn.conv),  # type: ignore[attr-defined]  # no stubs
    *(torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv),  # type: ignore[attr-defined]  # no stubs
)


@contextlib.contextmanager
def proper_float32(device: torch.device) -> Iterator[None]:
    """Compute without autocast, TF32 and bf16 products, whatever the caller set; every setting is put back.

    PyTorch has two families of these settings and raises where they disagree: the one that the caller used is switched.
    """
    before = [backend.fp32_precision for backend in BACKENDS]
    try:
        old = torch.get_float32_matmul_precision(), bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # the caller used the new family
        old = None
    try:
        if old is None:
            for backend in BACKENDS:
                backend.fp32_precision = "ieee"
        else:
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if old is not None:
            torch.set_float32_matmul_precision(old[0])
            torch.backends.cudnn.allow_tf32 = old[1]
        for backend, value in zip(BACKENDS, before, strict=True):
            backend.fp32_precision = value


def eval_mode(model: nn.Module, who: str) -> None:
    """Raise ParameterError unless the whole model is in eval mode; nothing is switched behind the caller's back."""
    if any(module.training for module in model.modules()):
        raise ParameterError(
            f"{who}: the model must be in eval mode; it, or a part of it, is in train mode. Call model.eval() first."
        )


def probability(who: str, alpha: float, most: int | float) -> None:
    """Raise ParameterError unless ``alpha`` is above 0 and at most ``most``."""
    if not 0 < alpha <= most:
        raise ParameterError(f"{who}: alpha must be above 0 and at most {most:g}; got {alpha}.")


def above(who: str, **values: int | float) -> None:
    """Raise ParameterError unless all are above 0 and finite."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ParameterError(f"{who}: {name} must be a finite number above 0; got {value}.")


def at_least(who: str, least: int, **values: int | float) -> None:
    """Raise ParameterError unless all are finite and at least ``least``."""
    for name, value in values.items():
        if not least <= value < float("inf"):
            raise ParameterError(f"{who}: {name} must be a finite number, at least {least}; got {value}.")
