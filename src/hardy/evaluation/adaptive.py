"""What the attacker gets for what Hardy put into the net: differentiable twins, and nets without the methods."""

import copy

from torch import nn

from hardy.sites import BOX
from hardy.surgery import Insert, attachments, strip_

__all__ = ["twin_of", "without_methods"]


def twin_of(model: nn.Module) -> nn.Module | None:
    """Copy the model with a differentiable stand-in for every live method that has one; None where none needs it.

    Every method that stays at test time says in its card whether a gradient can pass through it. One that rounds,
    thresholds or counts replaces itself in :meth:`hardy.surgery.Insert.soften`; attacks then follow the gradient of the
    copy and are judged on the model (backward pass differentiable approximation: Athalye, Carlini, Wagner, "Obfuscated
    gradients give a false sense of security", ICML 2018, https://arxiv.org/abs/1802.00420).
    """
    twin = copy.deepcopy(_plain(model))
    softened = [held.soften() for part in _hardened(twin) for held in _inserts(part) if held.live]
    return twin.eval() if any(softened) else None


def without_methods(model: nn.Module) -> nn.Module | None:
    """Copy the model without the methods that stay at test time: its un-hardened twin; None where there are none."""
    if not any(held.live for part in _hardened(_plain(model)) for held in _inserts(part)):
        return None
    twin = copy.deepcopy(_plain(model))
    for part in _hardened(twin):
        strip_(part, live=True)
    return twin.eval()


def _plain(model: nn.Module) -> nn.Module:
    """Give the net that ``torch.compile`` wraps."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def _hardened(model: nn.Module) -> list[nn.Module]:
    """List the nets that hold methods: the model, or the members of an ensemble."""
    return [part for part in model.modules() if BOX in dict(part.named_children())]


def _inserts(model: nn.Module) -> list[Insert]:
    return [held.insert for held in attachments(model)]
