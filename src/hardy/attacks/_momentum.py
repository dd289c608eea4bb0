"""What the momentum attacks share: the path of a row, and one step along its accumulated gradient."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hardy.attacks.norms import project, steepest_step
from hardy.attacks.state import Ball
from hardy.errors import ParameterError

__all__ = ["Path", "advance", "begin", "check", "own_rows"]


@dataclass(frozen=True)
class Path:
    """Rows of a momentum attack: images, current points, accumulated gradients, budgets, step sizes, steps done."""

    x: Float[Tensor, "n c h w"]
    x_adv: Float[Tensor, "n c h w"]
    momentum: Float[Tensor, "n c h w"]
    threat: Ball
    step_size: Float[Tensor, "n"]
    step: Int[Tensor, "n"]


def check(who: str, *, steps: int, step_size: float | None, decay: float) -> None:
    """Raise ParameterError where a setting that all momentum attacks have is out of range."""
    if steps < 1:
        raise ParameterError(f"{who}: steps must be at least 1; got {steps}.")
    if step_size is not None and not step_size > 0:
        raise ParameterError(f"{who}: step_size must be above 0, or None for eps / steps; got {step_size}.")
    if not 0 <= decay < float("inf"):
        raise ParameterError(f"{who}: decay must be at least 0 and finite, 0 for no momentum; got {decay}.")


def begin(x: Float[Tensor, "n c h w"], threat: Ball, *, steps: int, step_size: float | None) -> Path:
    """Begin at the images, with no momentum; ``step_size`` None is eps / steps, so that all steps reach the border."""
    size = threat.eps / steps if step_size is None else torch.full_like(threat.eps, step_size)
    return Path(x, x, torch.zeros_like(x), threat, size, torch.zeros(len(x), dtype=torch.int64, device=x.device))


def advance(path: Path, gradient: Float[Tensor, "n c h w"], *, decay: float) -> Path:
    """Add the normalised gradient to the momentum, step along it, project.

    g <- decay * g + gradient / mean(|gradient|), then one step of length ``step_size`` along the sign of g (linf) or
    along g / ||g||_2 (l2). The papers divide by the sum of absolute values, their code by the mean: with both, g points
    the same way, but only with the mean is it of the order of 1 per value, which NI-FGSM's look-ahead needs.
    """
    size = gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
    momentum = decay * path.momentum + gradient / torch.where(size > 0, size, 1)
    ball = path.threat
    moved = path.x_adv + path.step_size[:, None, None, None] * steepest_step(momentum, norm=ball.norm)
    x_adv = project(moved, x=path.x, eps=ball.eps, norm=ball.norm)
    return replace(path, x_adv=x_adv, momentum=momentum, step=path.step + 1)


def own_rows(path: Path) -> Int[Tensor, "n"]:
    """Number the rows: what ``Query.row`` is where every row asks for one point."""
    return torch.arange(len(path.x), device=path.x.device)
