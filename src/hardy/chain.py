"""A feed-forward net read as a chain of layers, for bounds that go through it layer by layer.

Three kinds of layers are known, all as they act at test time: those with weights (linear layers and convolutions, with
the batch norms behind them folded in), those that scale and shift every channel, and those that are monotone and change
no value by more than their inputs change (activations, pooling, flattening).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hardy.errors import AttachError, ShapeError
from hardy.surgery import Insert, without_trace
from hardy.tracing import Call, Trace, trace

__all__ = ["Chain", "Layer", "Monotone", "Scaled", "Weighted", "check_alone", "check_same", "read_chain"]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
MONOTONE = (
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Softshrink),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.ZeroPad2d, nn.Flatten),
)
OPERATIONS: dict[str, type[nn.Module]] = {  # outside of a module of their own
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "flatten": nn.Flatten,
    "view": nn.Flatten,
    "reshape": nn.Flatten,
    "pad": nn.Identity,
}
KINDS = "linear layers, convolutions, batch norms, monotone 1-Lipschitz activations, pooling and flattening"


@dataclass(frozen=True)
class Weighted:
    """A linear layer or convolution, the batch norms behind it folded in: ``x -> weight x + bias``.

    Attributes:
        module: The layer of the net, for its stride and padding.
        weight: Its weights times ``scale``, in the shape of the module's.
        bias: Of every output channel.
        scale: What the folded norms multiply every output channel by.
    """

    module: nn.Conv2d | nn.Linear
    weight: Float[Tensor, "out ..."]
    bias: Float[Tensor, "out"]
    scale: Float[Tensor, "out"]

    def __call__(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n out ..."]:
        """Apply the layer."""
        return self.product(x, self.weight) + _spread(self.bias, self.module)

    def product(self, x: Float[Tensor, "n ..."], weight: Float[Tensor, "out ..."]) -> Float[Tensor, "n out ..."]:
        """Multiply by other weights, at the same places and without bias."""
        m = self.module
        if isinstance(m, nn.Linear):
            return F.linear(x, weight)
        return F.conv2d(x, weight, None, m.stride, m.padding, m.dilation, m.groups)

    def sums(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n out ..."]:
        """Add up the inputs that each output reads."""
        if isinstance(self.module, nn.Linear):
            return x.sum(dim=1, keepdim=True).expand(-1, len(self.weight))
        groups = self.module.groups
        once = self.product(x, torch.ones_like(self.weight[:groups]))
        return once.repeat_interleave(len(self.weight) // groups, dim=1)

    @property
    def fan_in(self) -> int:
        """Number of weights that each output has."""
        return self.weight[0].numel()


@dataclass(frozen=True)
class Scaled:
    """Every channel times a number, plus a number."""

    scale: Float[Tensor, "c"]
    shift: Float[Tensor, "c"]

    def __call__(self, x: Float[Tensor, "n c ..."]) -> Float[Tensor, "n c ..."]:
        """Apply the layer."""
        shape = (-1, *[1] * (x.ndim - 2))
        return x * self.scale.reshape(shape) + self.shift.reshape(shape)


@dataclass(frozen=True)
class Monotone:
    """A layer whose outputs grow with its inputs, and differ by no more than those do, both in the largest value."""

    module: nn.Module

    def __call__(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Apply the layer: past its hooks, and never in place."""
        out: Tensor = self.module.forward(x.clone() if getattr(self.module, "inplace", False) else x)
        return out


Layer = Weighted | Scaled | Monotone


@dataclass(frozen=True)
class Chain:
    """The steps of a net.

    Attributes:
        steps: First to last: names of modules, or of operations between them, such as ``"relu()"``.
        who: Who asked for it, for messages.
    """

    steps: tuple[str, ...]
    who: str

    def layers(self, model: nn.Module) -> tuple[list[Layer], Weighted]:
        """Give the layers but the last, and the last, with the present weights of the model.

        Weights have gradients; those in half precision become float32.

        Raises:
            AttachError: the last layer is not linear.
        """
        found: list[Layer] = []
        for name in self.steps:
            module = OPERATIONS[name[:-2]]() if name.endswith("()") else model.get_submodule(name)
            if isinstance(module, nn.Conv2d | nn.Linear):
                found.append(_weighted(module))
            elif isinstance(module, MONOTONE):
                found.append(Monotone(module))
            elif not isinstance(module, nn.Identity):
                last = found[-1] if found else None
                if isinstance(last, Weighted):
                    found[-1] = _folded(last, _scaled(module))
                else:
                    found.append(_scaled(module))
        if not found or not isinstance(found[-1], Weighted) or not isinstance(found[-1].module, nn.Linear):
            end = self.steps[-1] if self.steps else "its input"
            raise AttachError(f"{self.who}: the net must be a chain that ends in a linear layer; it ends in {end!r}.")
        return found[:-1], found[-1]


def read_chain(model: nn.Module, x: Tensor, *, who: str) -> Chain:
    """Read a net as a chain of layers that ends in a linear layer.

    It is read off one pass of the first image in eval mode, and the layers must then give the logits of the net.

    Args:
        model: A plain classifier; anything that runs one known layer after the other.
        x: Images (n, c, h, w) of the size to be used, pixels in [0, 1].
        who: Who asks, for messages.

    Raises:
        AttachError: the net is no such chain (the message names the first layer, from behind, that is unknown), a
            method that stays at test time changes it, or it is compiled or wrapped.
        ShapeError: ``x`` is not (n, c, h, w).
    """
    if x.ndim != 4:
        raise ShapeError(f"{who}: x must be images n c h w; got {tuple(x.shape)}.")
    check_alone(model, who=who)
    found = trace(model, x)
    if found.output is None:
        raise AttachError(f"{who}: the model must return logits; got something else than a tensor.")
    steps: list[str] = []
    value = found.output
    while value != 0:
        name, value = _step(found, value, who)
        steps.append(name)
    chain = Chain(tuple(reversed(steps)), who)
    body, head = chain.layers(model)
    check_same(model, [*body, head], x[:1], who=who)
    return chain


def check_alone(model: nn.Module, *, who: str) -> None:
    """Demand that nothing attached to the net changes it at test time.

    Raises:
        AttachError: a live method is attached.
    """
    live = [type(held.spec).__name__ for held in model.modules() if isinstance(held, Insert) and held.live]
    if live:
        raise AttachError(f"{who}: the net must be a chain of its own layers; {live[0]} changes what they return.")


def _step(found: Trace, value: int, who: str) -> tuple[str, int]:
    """Name what made a value, and give the value that it was made from."""
    made = [c for c in found.calls if c.out == value and c.given not in {None, value} and not list(c.module.children())]
    for call in made:
        if call.given is not None and _is_known(call, found):
            return call.name, call.given
    node = found.nodes[value]
    one = len(node.parents) == 1
    if one and node.op in OPERATIONS and _keeps(node.op, found.shape(node.parents[0]), node.shape):
        return f"{node.op}()", node.parents[0]
    what = f"{made[0].name} ({type(made[0].module).__name__})" if made else f"the operation {node.op!r}"
    raise AttachError(
        f"{who}: the net must be a chain of {KINDS}, one after the other; {what} is none of them, or is not their form "
        "that this bound knows. Use a plain feed-forward net."
    )


def _is_known(call: Call, found: Trace) -> bool:
    """Tell whether a module is a layer that a bound can go through; a subclass may compute something else."""
    m = call.module
    if type(m) is nn.Conv2d:
        return m.padding_mode == "zeros"
    if type(m) is nn.Linear:
        return len(found.shape(call.out)) == 2
    if type(m) in NORMS:
        return isinstance(m, NORMS) and m.running_mean is not None
    if type(m) is nn.LeakyReLU:
        return 0 <= m.negative_slope <= 1
    if type(m) is nn.ELU:
        return 0 <= m.alpha <= 1
    if type(m) is nn.AvgPool2d:
        return m.divisor_override is None
    return type(m) in MONOTONE or type(m) is nn.Identity or _is_normalize(m)


def _is_normalize(module: nn.Module) -> bool:
    """Recognise the normalisation inside ``hardy.models.Classifier``, and those written like it."""
    both = [getattr(module, name, None) for name in ("mean", "std")]
    sizes = [isinstance(v, Tensor) and v.shape == (1, v.numel(), 1, 1) for v in both]
    return type(module).__name__ == "Normalize" and all(sizes)


def _keeps(op: str, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Tell whether an operation does no more than its module: flattens all but the first dimension, pads by nothing."""
    if OPERATIONS[op] is nn.Flatten:
        return len(after) == 2 and after[0] == before[0]
    return after == before


def _weighted(module: nn.Conv2d | nn.Linear) -> Weighted:
    weight = _wide(module.weight)
    bias = weight.new_zeros(len(weight)) if module.bias is None else _wide(module.bias)
    return Weighted(module, weight, bias, torch.ones_like(bias))


def _scaled(module: nn.Module) -> Scaled:
    """Write a batch norm with its running statistics, or a normalisation, as a scale and a shift."""
    if isinstance(module, NORMS) and module.running_mean is not None and module.running_var is not None:
        scale = torch.rsqrt(_wide(module.running_var) + module.eps)
        if not module.affine:
            return Scaled(scale, -_wide(module.running_mean) * scale)
        scale = scale * _wide(module.weight)
        return Scaled(scale, _wide(module.bias) - _wide(module.running_mean) * scale)
    mean, std = _wide(module.get_buffer("mean").flatten()), _wide(module.get_buffer("std").flatten())
    return Scaled(1 / std, -mean / std)


def _folded(layer: Weighted, norm: Scaled) -> Weighted:
    """Put a norm into the layer before it."""
    scale = norm.scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    bias = layer.bias * norm.scale + norm.shift
    return Weighted(layer.module, layer.weight * scale, bias, layer.scale * norm.scale)


def check_same(model: nn.Module, layers: Sequence[Layer], x: Float[Tensor, "n c h w"], *, who: str) -> None:
    """Demand that the layers one after the other give the logits of the net, for every image.

    Raises:
        AttachError: they do not, up to rounding.
    """
    with without_trace(model, x), torch.autocast(x.device.type, enabled=False):
        want, got = model(x.clone()), _wide(x)
        for layer in layers:
            got = layer(got)
    apart = (want - got).abs().amax(dim=1)
    worst = float(apart.max())
    if not bool((apart <= 1e3 * torch.finfo(want.dtype).eps * (1 + want.abs().amax(dim=1))).all()):
        raise AttachError(
            f"{who}: the net must be a chain of its layers; they give logits that differ by up to {worst:.2g} from "
            "those of the net, so it does something between them. Use a plain feed-forward net."
        )


def _spread(bias: Float[Tensor, "out"], module: nn.Module) -> Tensor:
    return bias if isinstance(module, nn.Linear) else bias[:, None, None]


def _wide(values: Tensor) -> Tensor:
    """Give at least float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
