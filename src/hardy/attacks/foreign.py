"""Attacks from elsewhere: any callable ``(model, x, y) -> x_adv``, run without a trace and judged like our own.

An attack may pass an adversarial image on its way and return another that is none ("silent success": Pintor et al.,
"Indicators of attack failure", NeurIPS 2022, https://arxiv.org/abs/2106.09947). What it passed counts, and is reported.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hardy.attacks.goal import Goal
from hardy.attacks.state import AnyAttack, Attack, Ball, ForeignAttack, select
from hardy.attacks.verify import inside
from hardy.errors import HardyWarning, ShapeError
from hardy.threats import Threat

__all__ = ["Passed", "name_of", "run_foreign", "untouched", "warn_outside"]


@dataclass(frozen=True)
class Passed:
    """Points that an attack asked about, that reached its goal inside ball and box; the image where there is none.

    Attributes:
        x: The first of them, per image.
        found: Whether there is one.
    """

    x: Float[Tensor, "n c h w"]
    found: Bool[Tensor, "n"]


def name_of(attack: AnyAttack | ForeignAttack) -> str:
    """Name an attack; a callable by its ``__name__``, or that of its class."""
    if isinstance(attack, Attack):
        return attack.name
    return str(getattr(attack, "__name__", type(attack).__name__))


def run_foreign(
    attack: ForeignAttack,
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    goal: Goal,
    *,
    threat: Ball,
    batch_size: int,
) -> tuple[Float[Tensor, "n c h w"], Passed]:
    """Call the attack batch by batch; the model's modes, buffers, gradients and flags are put back.

    The model is watched meanwhile: a batch of as many points as there are images is taken for those images. If the
    attack shuffles or drops rows, the points are not inside the balls, and nothing is noted.

    Raises:
        ShapeError: it returns something else than floating-point images of the same shape.
    """
    out = []
    passed = Passed(x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device))
    with untouched(model):
        for rows in torch.split(torch.arange(len(x), device=x.device), batch_size):
            images, aim = x[rows], select(goal, rows)
            with _watched(model, images, aim, select(threat, rows)) as seen:
                tried: object = attack(model, images.clone(), aim.target.clone())
            if not isinstance(tried, Tensor) or tried.shape != images.shape or not tried.is_floating_point():
                got = f"{tried.dtype} {tuple(tried.shape)}" if isinstance(tried, Tensor) else type(tried).__name__
                raise ShapeError(
                    f"{name_of(attack)}: an attack (model, x, y) must return images like x, {tuple(images.shape)} "
                    f"in [0, 1]; got {got}. Return x_adv alone."
                )
            out.append(tried.detach().to(images))
            passed.x[rows], passed.found[rows] = seen.x, seen.found
    return torch.cat(out), passed


@contextlib.contextmanager
def _watched(model: nn.Module, x: Tensor, goal: Goal, threat: Ball) -> Iterator[Passed]:
    """Note what the model is asked about and falls for."""
    passed = Passed(x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device))

    def note(_: nn.Module, inputs: tuple[object, ...], logits: object) -> None:
        points = inputs[0] if inputs else None
        if not (isinstance(points, Tensor) and points.shape == x.shape):
            return
        if not (isinstance(logits, Tensor) and logits.ndim == 2):
            return  # the engine will say so
        with torch.no_grad():
            points = points.detach().to(x)
            new = goal.reached(logits.detach()) & inside(points, x, threat) & ~passed.found
            passed.x[new], passed.found[new] = points[new], True

    handle = model.register_forward_hook(note)
    try:
        yield passed
    finally:
        handle.remove()


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
