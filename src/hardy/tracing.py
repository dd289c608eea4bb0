"""One forward pass, written down: which modules were called on what, and from which tensors each tensor was made."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hardy.sites import check_plain, module_names
from hardy.surgery import without_trace

__all__ = ["ACTIVATIONS", "Call", "Node", "Trace", "trace"]

# in names of operations and of classes
ACTIVATIONS = re.compile(
    r"relu|gelu|celu|selu|silu|mish|swish|sigmoid|tanh|softplus|softsign|^elu_?$|shrink|act\d?$", re.IGNORECASE
)


@dataclass(frozen=True)
class Node:
    """One value: a tensor as it was at one time, since in-place operations change tensors.

    Attributes:
        op: Name of the operation that made it; "input" for the images, a module's name where no operation was seen.
        parents: Numbers of the values it was made from; parameters are not among them.
        shape: Its shape.
        ancestors: Bit set of the numbers of all values it depends on, itself included.
        convs: Most convolutions on a way from the input to it.
        acts: Most activations on a way from the input to it.
    """

    op: str
    parents: tuple[int, ...]
    shape: tuple[int, ...]
    ancestors: int = field(repr=False)
    convs: int
    acts: int


@dataclass(frozen=True)
class Call:
    """One call of one module that returned a tensor.

    Attributes:
        name: Module name.
        module: The module.
        number: Which call of that module, from 0.
        given: Value of its first tensor argument; None without one.
        out: Value of what it returned.
        opened: Position in the order in which calls began.
    """

    name: str
    module: nn.Module
    number: int
    given: int | None
    out: int
    opened: int


@dataclass
class Trace:
    """Calls in order of return, and values in order of creation.

    Attributes:
        calls: Calls of modules that returned a tensor.
        nodes: All values on images and features.
        output: Value of what the model returned; None unless it is a tensor.
    """

    calls: list[Call] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    output: int | None = None

    def shape(self, number: int) -> tuple[int, ...]:
        """Give the shape of a value."""
        return self.nodes[number].shape

    def site(self, call: Call) -> str:
        """Name the output of a call: with its number where the module is called more than once."""
        often = sum(other.name == call.name for other in self.calls) > 1
        return f"{call.name}#{call.number}" if often else call.name

    def made(self, ancestor: int, value: int) -> bool:
        """Tell whether ``value`` depends on ``ancestor``."""
        return bool(self.nodes[value].ancestors >> ancestor & 1)


def trace(model: nn.Module, x: Tensor) -> Trace:
    """Run the model once on the first image, in eval mode without gradients, and write down what happened.

    Args:
        model: Any plain model.
        x: Images (n, c, h, w); the first is used.

    Raises:
        AttachError: the model is compiled or wrapped.
    """
    check_plain(model)
    recorder = _Recorder()
    one = x[:1].clone()  # a net may change what it is given
    recorder.new("input", (), one)
    with recorder.hooks(model), without_trace(model, one), recorder:
        out = model(one)
    recorder.found.output = recorder.number(out) if isinstance(out, Tensor) else None
    return recorder.found


class _Recorder(TorchFunctionMode):
    """Sees every operation on tensors, also those inside modules."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Trace()
        self.numbers: dict[int, int] = {}  # identity of a tensor -> its latest value
        self.versions: dict[int, int] = {}  # identity of a tensor -> how often it had been written to by then
        self.alive: list[Tensor] = []  # so that identities stay unique
        self.count: dict[str, int] = {}
        self.open: list[tuple[int, int | None]] = []
        self.opened = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = [self.numbers[id(t)] for t in _tensors([*args, *(kwargs or {}).values()]) if id(t) in self.numbers]
        out = func(*args, **(kwargs or {}))
        if given and out is None and func.__name__ == "__setitem__":  # a buffer that is filled piece by piece
            out = args[0]
        if given:
            for tensor in _tensors([out]):
                self.new(getattr(func, "__name__", "?"), tuple(dict.fromkeys(given)), tensor)
        return out

    def new(self, op: str, parents: tuple[int, ...], tensor: Tensor) -> int:
        """Number a new value; a tensor that was only handed through keeps its own."""
        version: int = tensor._version  # noqa: SLF001  (the only sign of an in-place operation)
        if id(tensor) in self.numbers and self.versions[id(tensor)] == version:
            return self.numbers[id(tensor)]
        nodes = self.found.nodes
        ancestors = 1 << len(nodes)
        for parent in parents:
            ancestors |= nodes[parent].ancestors
        convs = max((nodes[p].convs for p in parents), default=0) + op.startswith("conv")
        acts = max((nodes[p].acts for p in parents), default=0) + bool(ACTIVATIONS.search(op))
        self.numbers[id(tensor)], self.versions[id(tensor)] = len(nodes), version
        nodes.append(Node(op, parents, tuple(tensor.shape), ancestors, convs, acts))
        self.alive.append(tensor)
        return len(nodes) - 1

    def number(self, tensor: Tensor) -> int | None:
        """Give the latest value of a tensor."""
        return self.numbers.get(id(tensor))

    @contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        """Note the calls of all modules but the model itself."""
        handles = []
        try:
            for name in module_names(model):
                module = model.get_submodule(name)
                if not isinstance(module, torch.jit.ScriptModule):  # no hooks there
                    handles.append(module.register_forward_pre_hook(self._begin, with_kwargs=True))
                    handles.append(module.register_forward_hook(self._end(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        given = [self.numbers[id(t)] for t in _tensors([*args, *kwargs.values()]) if id(t) in self.numbers]
        self.open.append((self.opened, given[0] if given else None))
        self.opened += 1

    def _end(self, name: str) -> Callable[..., None]:
        def end(module: nn.Module, _: object, out: object) -> None:
            opened, given = self.open.pop()
            number = self.count.get(name, 0)
            self.count[name] = number + 1
            if isinstance(out, Tensor):  # operations cannot be seen everywhere, as in a scripted function
                made = self.new(name, () if given is None else (given,), out)
                self.found.calls.append(Call(name, module, number, given, made, opened))

        return end


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    """List the tensors among values and in their lists and tuples."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found
