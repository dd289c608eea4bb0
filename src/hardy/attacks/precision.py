"""Full float32 for the passes that decide: no autocast, no TF32, no bf16 matrix products, whatever the caller set."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["full_precision"]

BACKENDS: tuple[Any, ...] = (  # modules whose settings PyTorch leaves untyped
    *(torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn),  # type: ignore[attr-defined]  # no stubs
    *(torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.mkldnn.rnn),  # type: ignore[attr-defined]  # no stubs
)


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch reduced precision off and put every setting back.

    PyTorch has an old and a new family of these settings and raises where they disagree, so the family that the caller
    used is the one that is switched.
    """
    before = [backend.fp32_precision for backend in BACKENDS]
    old = _old_settings()
    try:
        if old is None:
            for backend in BACKENDS:
                backend.fp32_precision = "ieee"
        else:
            _set_old("highest", False)
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if old is not None:
            _set_old(*old)
        for backend, value in zip(BACKENDS, before, strict=True):
            backend.fp32_precision = value


def _old_settings() -> tuple[str, bool] | None:
    """Give the settings of the old family; None where the caller used the new one: then these cannot be read."""
    try:
        return torch.get_float32_matmul_precision(), bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return None


def _set_old(matmul: str, convolution: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolution
