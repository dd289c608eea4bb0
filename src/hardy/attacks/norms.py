"""Balls and the box: what an attack may change, per row, for linf, l2 and l1.

Every function takes one budget per row, so rows with different budgets share a batch.

l1 in the box: Croce, Hein. "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers". ICML 2021,
https://arxiv.org/abs/2103.01208 (Sec. 3).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hardy import seeding
from hardy.threats import Norm

__all__ = ["norm_of", "on_sphere", "project", "project_ball", "random_start", "steepest_step"]


def norm_of(delta: Float[Tensor, "n ..."], *, norm: Norm) -> Float[Tensor, "n"]:
    """Measure each row's perturbation: largest absolute value (linf), Euclidean length (l2), sum of sizes (l1).

    Args:
        delta: Perturbations; any real values.
        norm: "linf", "l2" or "l1".

    Returns:
        One number per row, at least 0. The sums of l2 and l1 run in float64 and come back in the dtype of ``delta``.
    """
    flat = delta.flatten(1)
    if norm == "linf":
        return flat.abs().amax(dim=1)
    order = 2 if norm == "l2" else 1
    length: Tensor = torch.linalg.vector_norm(flat, order, dim=1, dtype=torch.float64)
    return length.to(delta.dtype)


def project_ball(delta: Float[Tensor, "n c h w"], *, eps: Float[Tensor, "n"], norm: Norm) -> Float[Tensor, "n c h w"]:
    """Move each perturbation to the closest point of its ball around 0.

    Args:
        delta: Perturbations; any real values.
        eps: Radius of each row's ball, at least 0.
        norm: "linf" clamps every value; "l2" shortens the whole vector; "l1" takes the same amount off every value and
            leaves 0 where there is less.

    Returns:
        Perturbations of norm at most ``eps`` up to rounding; rows inside come back bit for bit.
    """
    radius = eps[:, None, None, None]
    if norm == "linf":
        return torch.minimum(torch.maximum(delta, -radius), radius)
    if norm == "l1":
        return _shrink(delta, delta.abs(), eps)
    length = norm_of(delta, norm="l2")[:, None, None, None]
    scale = torch.where(length > radius, radius / torch.where(length > 0, length, 1), 1)
    return delta * scale


def project(
    x_adv: Float[Tensor, "n c h w"], *, x: Float[Tensor, "n c h w"], eps: Float[Tensor, "n"], norm: Norm
) -> Float[Tensor, "n c h w"]:
    """Move each image into the ball around ``x`` and into the box [0, 1].

    linf and l2: first the ball, then the box. As ``x`` is in the box, clamping only shortens the perturbation, so the
    result is in both. For linf it is the closest such point; for l2 it is a feasible point, not always the closest.
    l1: the closest point of ball and box together; one after the other would give away part of the budget.

    Args:
        x_adv: Images to project; any real values.
        x: Centres of the balls, pixels in [0, 1].
        eps: Radius of each row's ball, at least 0.
        norm: "linf", "l2" or "l1".
    """
    delta = x_adv - x
    if norm != "l1":
        return (x + project_ball(delta, eps=eps, norm=norm)).clamp(0, 1)
    delta = _shrink(delta, torch.where(delta > 0, 1 - x, x), eps)
    moved = (x + delta).clamp(0, 1)
    # the sum over many small changes must not grow by rounding: round every change towards 0
    return torch.where((moved - x).abs() > delta.abs(), torch.nextafter(moved, x), moved)


def steepest_step(
    gradient: Float[Tensor, "n c h w"], *, norm: Norm, share: Float[Tensor, "n"] | None = None
) -> Float[Tensor, "n c h w"]:
    """Give the direction of norm 1 along which a linear function of this gradient rises fastest.

    linf: the sign of every value. l2: the gradient divided by its length, after dividing by its largest value, so that
    tiny gradients do not underflow. l1: the largest value alone (all of them where several are equal); with ``share``
    the signs of that share of largest values, all by the same amount. A zero gradient gives a zero step.

    Args:
        gradient: Any real values.
        norm: "linf", "l2" or "l1".
        share: For l1, the share of values of each image that move, in [0, 1]; at least one does. Steps on more values
            rise less on a linear function and get further on a net (Tramer and Boneh, NeurIPS 2019,
            https://arxiv.org/abs/1904.13000, Sec. 5). None: the largest value alone.
    """
    if norm == "linf":
        return gradient.sign()
    if norm == "l1":
        return _sparse(gradient, share)
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
        norm: "linf": independent values in [-eps, eps); "l2": a random direction, length eps * u^(1/d); "l1": sizes of
            a uniform point of the simplex (exponential numbers, divided by their sum and one more), random signs.
    """
    radius = eps[:, None, None, None]
    if norm == "linf":
        return (2 * seeding.uniform(key, counter, shape) - 1) * radius
    if norm == "l1":
        size = math.prod(shape)
        u = 2 * seeding.uniform(key, counter, (size + 1,)) - 1
        sizes = -torch.log((1 - u.abs()).clamp(min=2.0**-24))
        point = u.sign() * sizes / sizes.sum(dim=1, keepdim=True)
        return point[:, :size].reshape(-1, *shape) * radius
    u = seeding.uniform(key, counter + 1, (1, 1, 1))
    return on_sphere(key, counter, shape, eps=eps) * u ** (1 / math.prod(shape))


def on_sphere(
    key: Int[Tensor, "n"], counter: int | Int[Tensor, "n"], shape: Sequence[int], *, eps: Float[Tensor, "n"]
) -> Float[Tensor, "n c h w"]:
    """Draw a perturbation of l2 length ``eps``, uniform over directions (a normalised normal vector)."""
    if isinstance(counter, Tensor):
        key, counter = seeding.fold(key, counter), 0
    return steepest_step(seeding.normal(key, counter, shape), norm="l2") * eps[:, None, None, None]


def _shrink(
    delta: Float[Tensor, "n c h w"], most: Float[Tensor, "n c h w"], eps: Float[Tensor, "n"]
) -> Float[Tensor, "n c h w"]:
    """Find the closest perturbation with sizes at most ``most`` (at least 0) and l1 norm at most ``eps``.

    It has sizes ``min(max(|delta| - cut, 0), most)`` with one ``cut >= 0`` per row. Their sum falls with ``cut`` in
    straight pieces; a value begins to count below ``|delta|`` and is full below ``|delta| - most``, so the piece that
    holds ``eps`` is found by sorting these corners.
    """
    size, most = delta.flatten(1).abs().double(), most.flatten(1).double()
    corner, order = torch.cat([size, (size - most).clamp(min=0)], dim=1).sort(dim=1, descending=True)
    falling = torch.where(order < size.shape[1], 1, -1).cumsum(dim=1)  # minus the slope below each corner
    total = F.pad((falling[:, :-1] * -corner.diff(dim=1)).cumsum(dim=1), (1, 0))  # the sum at each corner
    radius = eps[:, None].double()
    piece = (torch.searchsorted(total, radius) - 1).clamp(min=0)
    left = (radius - total.gather(1, piece)) / falling.gather(1, piece).clamp(min=1)
    outside = torch.minimum(size, most).sum(dim=1, keepdim=True) > radius
    cut = torch.where(outside, (corner.gather(1, piece) - left).clamp(min=0), 0)
    kept = torch.minimum((size - cut).clamp(min=0), most)
    return delta.sign() * kept.reshape(delta.shape).to(delta)


def _sparse(gradient: Float[Tensor, "n c h w"], share: Float[Tensor, "n"] | None) -> Float[Tensor, "n c h w"]:
    """Give signs of the largest values, divided by how many there are; equal values go together."""
    size = gradient.flatten(1).abs()
    if share is None:
        least = size.amax(dim=1, keepdim=True)
    else:
        d = size.shape[1]
        rank = ((1 - share) * d).clamp(0, d - 1).long()
        least = size.sort(dim=1).values.gather(1, rank[:, None])
    step = torch.where(size >= least, gradient.flatten(1).sign(), 0)
    return (step / step.abs().sum(dim=1, keepdim=True).clamp(min=1)).reshape(gradient.shape)
