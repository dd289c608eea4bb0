"""Balls and the box: what an attack may change, per row, for linf and l2.

Every function takes one budget per row, so rows with different budgets share a batch.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hardy import seeding
from hardy.threats import Norm

__all__ = ["norm_of", "on_sphere", "project", "project_ball", "random_start", "steepest_step"]


def norm_of(delta: Float[Tensor, "n ..."], *, norm: Norm) -> Float[Tensor, "n"]:
    """Measure each row's perturbation: largest absolute value (linf) or Euclidean length (l2).

    Args:
        delta: Perturbations; any real values.
        norm: "linf" or "l2".

    Returns:
        One number per row, at least 0. The l2 sum runs in float64 and comes back in the dtype of ``delta``.
    """
    flat = delta.flatten(1)
    if norm == "linf":
        return flat.abs().amax(dim=1)
    length: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    return length.to(delta.dtype)


def project_ball(delta: Float[Tensor, "n c h w"], *, eps: Float[Tensor, "n"], norm: Norm) -> Float[Tensor, "n c h w"]:
    """Move each perturbation to the closest point of its ball around 0.

    Args:
        delta: Perturbations; any real values.
        eps: Radius of each row's ball, at least 0.
        norm: "linf" clamps every value; "l2" shortens the whole vector.

    Returns:
        Perturbations of norm at most ``eps`` up to rounding; rows inside come back bit for bit.
    """
    radius = eps[:, None, None, None]
    if norm == "linf":
        return torch.minimum(torch.maximum(delta, -radius), radius)
    length = norm_of(delta, norm="l2")[:, None, None, None]
    scale = torch.where(length > radius, radius / torch.where(length > 0, length, 1), 1)
    return delta * scale


def project(
    x_adv: Float[Tensor, "n c h w"], *, x: Float[Tensor, "n c h w"], eps: Float[Tensor, "n"], norm: Norm
) -> Float[Tensor, "n c h w"]:
    """Move each image into the ball around ``x`` and into the box [0, 1].

    First the ball, then the box. As ``x`` is in the box, clamping only shortens the perturbation, so the result is in
    both. For linf it is the closest such point; for l2 it is a feasible point, not always the closest.

    Args:
        x_adv: Images to project; any real values.
        x: Centres of the balls, pixels in [0, 1].
        eps: Radius of each row's ball, at least 0.
        norm: "linf" or "l2".
    """
    return (x + project_ball(x_adv - x, eps=eps, norm=norm)).clamp(0, 1)


def steepest_step(gradient: Float[Tensor, "n c h w"], *, norm: Norm) -> Float[Tensor, "n c h w"]:
    """Give the direction of norm 1 along which a linear function of this gradient rises fastest.

    linf: the sign of every value. l2: the gradient divided by its length, after dividing by its largest value, so that
    tiny gradients do not underflow. A zero gradient gives a zero step.
    """
    if norm == "linf":
        return gradient.sign()
    largest = norm_of(gradient, norm="linf")[:, None, None, None]
    scaled = gradient / torch.where(largest > 0, largest, 1)
    length = norm_of(scaled, norm="l2")[:, None, None, None]
    return scaled / torch.where(length > 0, length, 1)


def random_start(
    key: Int[Tensor, "n"], counter: int, shape: Sequence[int], *, eps: Float[Tensor, "n"], norm: Norm
) -> Float[Tensor, "n c h w"]:
    """Draw a perturbation uniformly from each row's ball.

    Args:
        key: One int64 per row (:mod:`hardy.seeding`).
        counter: Which draw of these keys; l2 uses this one and the next.
        shape: Shape of one image.
        eps: Radius of each row's ball, at least 0.
        norm: "linf": independent values in [-eps, eps); "l2": a random direction, length eps * u^(1/d).
    """
    radius = eps[:, None, None, None]
    if norm == "linf":
        return (2 * seeding.uniform(key, counter, shape) - 1) * radius
    u = seeding.uniform(key, counter + 1, (1, 1, 1))
    return on_sphere(key, counter, shape, eps=eps) * u ** (1 / math.prod(shape))


def on_sphere(
    key: Int[Tensor, "n"], counter: int | Int[Tensor, "n"], shape: Sequence[int], *, eps: Float[Tensor, "n"]
) -> Float[Tensor, "n c h w"]:
    """Draw a perturbation of l2 length ``eps``, uniform over directions (a normalised normal vector)."""
    if isinstance(counter, Tensor):
        key, counter = seeding.fold(key, counter), 0
    return steepest_step(seeding.normal(key, counter, shape), norm="l2") * eps[:, None, None, None]
