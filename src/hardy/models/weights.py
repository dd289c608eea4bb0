"""Weights from a file of somebody else: read without running anything, and fit to the net, or say why not."""

import logging
import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hardy.errors import CheckpointError
from hardy.models.layouts import our_names
from hardy.safefile import read_tensors

__all__ = ["fit_weights", "read_weights"]

log = logging.getLogger(__name__)

NESTED = ("state_dict_ema", "state_dict", "model_state_dict", "model_ema", "model", "net", "weights", "last")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads of GoogLeNet and Inception that only training uses
# what torch.load raises for damaged files
UNREADABLE = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, AssertionError),
    *(MemoryError, OverflowError, pickle.UnpicklingError, struct.error),
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file or of a ``torch.save`` file; code in the file is not run.

    A training checkpoint may hold the state dict below a key such as ``state_dict`` or ``model``.

    Raises:
        CheckpointError: no such file, damaged, or with something else than tensors in it.
    """
    if path.suffix == ".safetensors" or not path.is_file():
        return read_tensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats; what matters is an error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{path}: not readable as plain tensors ({reason}). Save it with torch.save(model.state_dict(), ...)."
        ) from error
    for _ in NESTED:  # a file can hold a dict inside itself
        if not isinstance(content, dict):
            break
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        inner = next((content[key] for key in NESTED if isinstance(content.get(key), dict)), None)
        if inner is None and tensors:
            return tensors
        content = inner
    raise CheckpointError(f"{path}: no state dict in this file. Save it with torch.save(model.state_dict(), ...).")


def fit_weights(
    net: nn.Module, state: Mapping[str, Tensor], *, origin: str, num_classes: int, replace_head: bool
) -> str | None:
    """Copy ``state`` into ``net``, after checking every name and shape.

    Prefixes that wrappers add (``module.``, ``model.``, ...) go if the names fit without them only. The names of some
    other people's nets become ours; see :mod:`hardy.models.layouts`. A first convolution
    of RGB weights is summed (gray) or repeated (more channels) to fit, as timm does.

    Args:
        net: The net; it is unchanged if there is an error.
        state: Names and tensors.
        origin: Where they come from, for messages.
        num_classes: Number of logits of the net: tensors that differ in this size only are its head.
        replace_head: Keep the new head where the file has another number of classes; otherwise that is an error.

    Returns:
        Whose names the tensors had; None if they had those of the net.

    Raises:
        CheckpointError: tensors are missing or left over, or have another shape.
    """
    own = net.state_dict()
    state, layout = our_names(_without_prefix(state, own), own)
    state = {name: value for name, value in state.items() if _belongs(name, own)}
    state = {name: _adapt(value, own.get(name)) for name, value in state.items()}
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in own]
    if missing or extra:
        raise CheckpointError(
            f"{origin}: the names{_read_as(layout)} do not fit the net; missing {_some(missing)}; left over "
            f"{_some(extra)}. Is it the same architecture?"
        )
    wrong = [name for name, value in state.items() if value.shape != own[name].shape]
    head = [name for name in wrong if _is_head(net, name, state[name], num_classes)]
    if wrong and wrong != head:
        shapes = [f"{n} {tuple(state[n].shape)}, net {tuple(own[n].shape)}" for n in wrong if n not in head]
        raise CheckpointError(
            f"{origin}: the shapes{_read_as(layout)} do not fit the net: {_some(shapes)}. Is it the same architecture?"
        )
    if head:
        classes = state[head[0]].shape[0]
        if not replace_head:
            raise CheckpointError(
                f"{origin}: these weights are for {classes} classes, the net has {num_classes}. "
                f"Pass num_classes={classes}, or your own number of classes for a new head."
            )
        log.warning("%s: %d classes, the net has %d: new, untrained head %s", origin, classes, num_classes, _some(head))
    net.load_state_dict({**own, **{name: value for name, value in state.items() if name not in head}})
    return layout


def _without_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Strip prefixes that all names share, as long as no name fits."""
    while state and not state.keys() & own.keys():
        prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return state


def _belongs(name: str, own: Mapping[str, Tensor]) -> bool:
    return name in own or not name.startswith(AUXILIARY)


def _adapt(value: Tensor, own: Tensor | None) -> Tensor:
    """Fit a first convolution for RGB to another number of channels."""
    if own is None or own.ndim != 4 or value.ndim != 4 or value.shape == own.shape or value.shape[1] != 3:
        return value
    if value.shape[0] != own.shape[0] or value.shape[2:] != own.shape[2:]:
        return value
    from timm.models import adapt_input_conv

    adapted: Tensor = adapt_input_conv(own.shape[1], value)
    return adapted


def _is_head(net: nn.Module, name: str, value: Tensor, num_classes: int) -> bool:
    """Tell whether a tensor of the wrong shape is the weight or bias of a layer of logits, for other classes."""
    owner, _, attribute = name.rpartition(".")
    module = net.get_submodule(owner)
    if not isinstance(module, nn.Linear | nn.Conv2d) or module.bias is None:
        return False
    own: Tensor = getattr(module, attribute)
    return own.shape[0] == num_classes and value.ndim == own.ndim and value.shape[1:] == own.shape[1:]


def _read_as(layout: str | None) -> str:
    return f" (read as those of {layout})" if layout else ""


def _some(items: list[str]) -> str:
    return "nothing" if not items else ", ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
