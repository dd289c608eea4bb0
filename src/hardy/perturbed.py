"""Nets with other weights for a while: which weights can be changed, by how much, and back to the same bits.

Only kernels of convolutions and matrices of linear layers are changed. Biases stay, and so do normalisation layers: a
batch norm takes any factor off the layer before it, so sizes relative to each layer's own weights, with the norms left
alone, do not depend on how a net is written down.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy import seeding
from hardy.errors import AttachError, ParameterError, ShapeError, did_you_mean

__all__ = ["WeightBall", "WeightNorm", "Weights", "added", "draw_like", "perturbable", "perturbed_weights"]

WeightNorm = Literal["l2", "linf"]
Weights = Mapping[str, Tensor]  # one tensor per layer, by the name of its weight

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)  # noqa: SLF001  (the base of all convolutions)
CHUNK = 2**22  # random numbers drawn at a time


def perturbable(model: nn.Module) -> dict[str, nn.Parameter]:
    """List the weights of all convolutions and linear layers, in the order of the modules.

    A weight that several layers share is listed once, under its first name. Weights that live elsewhere (in attention
    blocks, or in modules that call ``torch.nn.functional`` themselves) are not found.

    Returns:
        The parameters themselves by their names in ``model.named_parameters()``; empty if there are no such layers.

    Raises:
        AttachError: the weight of a layer is computed (weight norm, spectral norm, another parametrisation), or not
            made yet (lazy layers).
    """
    found: dict[str, nn.Parameter] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, module in model.named_modules():
        if not isinstance(module, LAYERS):
            continue
        weight, full = dict(module.named_parameters(recurse=False)).get("weight"), f"{name}.weight".lstrip(".")
        if weight is None:
            raise AttachError(
                f"{full}: must be a parameter of its layer; it is computed from others. Call "
                f'torch.nn.utils.parametrize.remove_parametrizations(layer, "weight") on a copy of the model.'
            )
        if isinstance(weight, nn.parameter.UninitializedParameter):
            raise AttachError(f"{full}: must have a shape; the layer is lazy. Run the model once.")
        if (place := (weight.data_ptr(), weight.shape)) not in seen and weight.numel():
            seen.add(place)
            found[full] = weight
    return found


@contextlib.contextmanager
def perturbed_weights(model: nn.Module, weights: Weights) -> Iterator[None]:
    """Run the block with other weights, then put back every bit, gradient and ``requires_grad`` flag.

    They go back too if the block raises or is interrupted. Blocks may be nested. Buffers are not touched. What a block
    needs for a backward pass after it must not be kept: autograd refuses weights that have changed since.

    Args:
        model: Any net, also with frozen parameters, under ``no_grad`` or ``inference_mode``.
        weights: New values of some of :func:`perturbable`, same shapes, by name.

    Raises:
        ParameterError: a name that is none of them.
        ShapeError: a tensor of another shape.
        AttachError: as :func:`perturbable`.
    """
    known = perturbable(model)
    for name, value in weights.items():
        if name not in known:
            raise ParameterError(f"perturbed_weights: unknown weight {name!r}; {did_you_mean(name, known)}")
        if value.shape != known[name].shape:
            got, wanted = tuple(value.shape), tuple(known[name].shape)
            raise ShapeError(f"perturbed_weights: {name} must be {wanted}; got {got}. Give values for this net.")
    flags = [(p, p.requires_grad, p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    before = {name: known[name].detach().clone() for name in weights}
    try:
        _write(known, weights)
        yield
    finally:
        _write(known, before)
        for p, flag, grad, values in flags:
            if p.requires_grad != flag:
                p.requires_grad_(flag)
            p.grad = grad
            if grad is not None and values is not None:
                with torch.no_grad():
                    grad.copy_(values)


@dataclass(frozen=True)
class WeightBall:
    """How far each layer's weights may move, layer by layer.

    "l2": the length of a change is at most ``radius`` times that of the weights. "linf": no weight changes by more than
    ``radius`` times the mean size of the layer's weights.

    Attributes:
        norm: "l2" or "linf".
        radius: Relative size, at least 0.
        sizes: Radius of each layer's ball in the units of its weights, scalars.
    """

    norm: WeightNorm
    radius: float
    sizes: Weights

    @classmethod
    def around(cls, weights: Weights, *, radius: float, norm: WeightNorm = "l2") -> "WeightBall":
        """Measure the weights, at the values that they have now.

        Raises:
            ParameterError: a negative or infinite radius, or an unknown norm.
        """
        if norm not in {"l2", "linf"}:
            raise ParameterError(f'WeightBall: norm must be "l2" or "linf"; got {norm!r}.')
        if not (math.isfinite(radius) and radius >= 0):
            raise ParameterError(f"WeightBall: radius must be a finite number of at least 0; got {radius}.")
        sizes = {
            n: radius * (w.detach().norm() if norm == "l2" else w.detach().abs().mean()) for n, w in weights.items()
        }
        return cls(norm, radius, sizes)

    def project(self, deltas: Weights) -> dict[str, Tensor]:
        """Move every layer's change to the closest point of its ball; those inside come back bit for bit."""
        made = {}
        for name, delta in deltas.items():
            size = self.sizes[name]
            if self.norm == "linf":
                made[name] = torch.minimum(torch.maximum(delta, -size), size)
            else:
                length = delta.norm()
                made[name] = delta * torch.where(length > size, size / torch.where(length > 0, length, 1), 1)
        return made

    def steepest(self, gradients: Weights) -> dict[str, Tensor]:
        """Give the point of each ball to which a linear function of that gradient rises most; 0 for a zero gradient."""
        return {name: self._direction(gradient) * self.sizes[name] for name, gradient in gradients.items()}

    def draw(self, weights: Weights, root: int) -> dict[str, Tensor]:
        """Draw a random change on the border of each ball: a direction for "l2", a corner for "linf".

        Args:
            weights: For their shapes.
            root: From :func:`hardy.seeding.root`; the same root gives the same direction at every radius.
        """
        return self.steepest({name: draw_like(w, root, name, seeding.normal) for name, w in weights.items()})

    def _direction(self, gradient: Tensor) -> Tensor:
        if self.norm == "linf":
            return gradient.sign()
        largest = gradient.abs().amax()
        scaled = gradient / torch.where(largest > 0, largest, 1)  # tiny gradients must not underflow
        length = scaled.norm()
        return scaled / torch.where(length > 0, length, 1)


def added(weights: Weights, deltas: Weights) -> dict[str, Tensor]:
    """Add changes to weights; what has no change is left out."""
    return {name: weights[name].detach() + delta for name, delta in deltas.items()}


def draw_like(
    weight: Float[Tensor, "out ..."],
    root: int,
    name: str,
    draw: Callable[[Int[Tensor, "rows"], int, Sequence[int]], Tensor],
) -> Float[Tensor, "out ..."]:
    """Draw one random number per weight, keyed by root, name and place.

    Args:
        weight: For its shape, dtype and device.
        root: From :func:`hardy.seeding.root`.
        name: Of the weight: layers have numbers of their own.
        draw: ``seeding.normal`` or ``seeding.uniform``.
    """
    rows = torch.arange(len(weight), device=weight.device)
    keys = seeding.fold(seeding.keys(root, rows), seeding.root(0, name))
    at_once = max(1, CHUNK // max(1, weight[0].numel()))
    return torch.cat([draw(part, 0, weight.shape[1:]).to(weight.dtype) for part in torch.split(keys, at_once)])


def _write(parameters: Mapping[str, nn.Parameter], values: Weights) -> None:
    for name, value in values.items():
        with torch.inference_mode(parameters[name].is_inference()), torch.no_grad():
            parameters[name].copy_(value)
