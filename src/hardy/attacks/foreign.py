"""Attacks from elsewhere: any callable ``(model, x, y) -> x_adv``, run without a trace and judged like our own."""

import contextlib
import warnings
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy.attacks.state import AnyAttack, Attack, ForeignAttack
from hardy.errors import HardyWarning, ShapeError
from hardy.threats import Threat

__all__ = ["name_of", "run_foreign", "untouched", "warn_outside"]


def name_of(attack: AnyAttack | ForeignAttack) -> str:
    """Name an attack; a callable by its ``__name__``, or that of its class."""
    if isinstance(attack, Attack):
        return attack.name
    return str(getattr(attack, "__name__", type(attack).__name__))


def run_foreign(
    attack: ForeignAttack,
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, "n"],
    *,
    batch_size: int,
) -> Float[Tensor, "n c h w"]:
    """Call the attack batch by batch; the model's modes, buffers, gradients and flags are put back.

    Raises:
        ShapeError: it returns something else than floating-point images of the same shape.
    """
    out = []
    with untouched(model):
        for images, labels in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
            tried: object = attack(model, images.clone(), labels.clone())
            if not isinstance(tried, Tensor) or tried.shape != images.shape or not tried.is_floating_point():
                got = f"{tried.dtype} {tuple(tried.shape)}" if isinstance(tried, Tensor) else type(tried).__name__
                raise ShapeError(
                    f"{name_of(attack)}: an attack (model, x, y) must return images like x, {tuple(images.shape)} "
                    f"in [0, 1]; got {got}. Return x_adv alone."
                )
            out.append(tried.detach().to(images))
    return torch.cat(out)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put modes, buffers, gradients and ``requires_grad`` flags of the model back as they were."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, b, b.clone()) for module in model.modules() for name, b in module.named_buffers(recurse=False)
    ]
    grads = [(p, p.requires_grad, p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                setattr(module, name, buffer.copy_(value))
        for p, flag, grad, values in grads:
            p.requires_grad_(flag)
            p.grad = grad
            if grad is not None and values is not None:
                grad.copy_(values)


def warn_outside(outside: int, n: int, *, name: str, threat: Threat) -> None:
    """Say that images outside ball or box were not counted."""
    if outside:
        warnings.warn(
            f"{name}: images must stay inside {threat} and [0, 1]; {outside} of {n} did not and count as failed "
            "attempts, so the accuracy is too high. Give the attack the same eps, or project its result.",
            HardyWarning,
            stacklevel=4,
        )
