"""Which tensors a CNN adds to its shortcuts, and where these blocks begin, read off one forward pass."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from hardy.sites import INPUT
from hardy.tracing import Call, Trace, trace

__all__ = ["Block", "residual_blocks", "residual_branches"]

SUMS = {"add", "add_", "__add__", "__iadd__", "__radd__"}
SPLITS = {"split", "chunk", "tensor_split", "split_with_sizes", "unbind"}
SLICES = {"__getitem__", "narrow", "index_select"}
SCALINGS = {"mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "__truediv__", "permute", "contiguous"}


@dataclass(frozen=True)
class Block:
    """One residual block: what it adds to its shortcut, and the modules that take part.

    Attributes:
        entry: Sites of the tensor that enters it, where its branch reads it, and its shortcut if that has a
            convolution; what a shortcut hands on untouched is none.
        conv: Site of the last convolution of the branch that sees whole maps and mixes channels; None without one.
        projection: Site of the convolution on the shortcut; None without one.
    """

    entry: tuple[str, ...]
    conv: str | None
    projection: str | None


@dataclass(frozen=True)
class _Sum:
    """A sum of a shortcut and a branch that were made from one value; all are numbers of values."""

    node: int
    shortcut: int
    branch: int
    begin: int


def residual_branches(model: nn.Module, x: Tensor) -> tuple[str, ...]:
    """List the sites whose output a block adds to its shortcut, in call order.

    A sum of two feature maps counts if one of them, the shortcut, is a value that the other was made from, or such a
    value after at most one convolution, but no part split off it. The other one, the branch, must have more
    convolutions; one beside a shortcut with a norm or a convolution is a kernel made of several, as in RepVGG, and no
    branch. Where the branch is scaled after its last module (by a number or a parameter), the site is that module.

    Args:
        model: Any plain CNN classifier.
        x: Images (n, c, h, w) in [0, 1] of the size to be used. The first is run once in eval mode; leaves no trace.

    Returns:
        Sites; empty where the net has no such sum, or no module returns the branch.
    """
    found = trace(model, x)
    return tuple(dict.fromkeys(site for total in _sums(found) for site in _returned_by(found, total.branch)))


def residual_blocks(model: nn.Module, x: Tensor) -> tuple[Block, ...]:
    """List the residual blocks, in call order; sums as for :func:`residual_branches`.

    Args:
        model: Any plain CNN classifier.
        x: Images (n, c, h, w) in [0, 1] of the size to be used. The first is run once in eval mode; leaves no trace.

    Returns:
        Blocks; empty where the net has no such sum.
    """
    found = trace(model, x)
    blocks = []
    for total in _sums(found):
        convs = [call for call in found.calls if isinstance(call.module, nn.Conv2d) and _whole(found, call, total)]
        branch = [call for call in convs if found.made(call.out, total.branch) and _mixes(call.module)]
        short = [
            call
            for call in convs
            if found.made(call.out, total.shortcut) and not found.made(call.out, total.branch) and _mixes(call.module)
        ]
        blocks.append(
            Block(
                _entries(found, total, bool(short)),
                found.site(branch[-1]) if branch else None,
                found.site(short[-1]) if short else None,
            )
        )
    return tuple(blocks)


def _sums(found: Trace) -> Iterator[_Sum]:
    for number, node in enumerate(found.nodes):
        if node.op not in SUMS or len(node.parents) != 2:
            continue
        shortcut, branch = sorted(node.parents, key=lambda n: found.nodes[n].convs)
        shapes = {found.shape(shortcut), found.shape(branch), node.shape}
        deeper = found.nodes[branch].convs > found.nodes[shortcut].convs
        if len(node.shape) == 4 and len(shapes) == 1 and deeper:
            begin = _begin(found, shortcut, branch)
            if begin is not None:
                yield _Sum(number, shortcut, branch, begin)


def _begin(found: Trace, shortcut: int, branch: int) -> int | None:
    """Find the value that both were made from, the shortcut by one projection at most; None for what is no block."""
    value, plain = shortcut, True
    projections = 0
    while not found.made(value, branch):
        node = found.nodes[value]
        projections += node.op.startswith("conv")
        plain &= not node.op.startswith("conv") and "norm" not in node.op
        if len(node.parents) != 1 or projections > 1:
            return None
        (value,) = node.parents
        part = node.op in SPLITS or (node.op in SLICES and node.shape[1] < found.shape(value)[1])
        if part and found.made(value, branch) and not _takes_whole(found, value, branch):
            return None
    first, last = found.nodes[value], found.nodes[branch]
    return value if plain or last.convs - first.convs > 1 or last.acts > first.acts else None


def _takes_whole(found: Trace, value: int, branch: int) -> bool:
    """Tell whether the branch is made from all channels of a value, not only from parts split off it."""
    uses = [i for i, node in enumerate(found.nodes) if value in node.parents and node.op not in SPLITS | SLICES]
    return any(found.made(use, branch) for use in uses)


def _returned_by(found: Trace, value: int) -> list[str]:
    """Name the module that returned a value, or that value before it was scaled; the outermost inside the block."""
    while True:
        for call in reversed(found.calls):
            if call.out == value:
                return [found.site(call)]
        node = found.nodes[value]
        if node.op not in SCALINGS or len(node.parents) != 1:
            return []
        (value,) = node.parents


def _whole(found: Trace, call: Call, total: _Sum) -> bool:
    """Tell whether a convolution of the block makes maps as large as the block's, not those of pooled side branches."""
    inside = call.given is not None and found.made(total.begin, call.given)
    return inside and found.shape(call.out)[2:] == found.shape(total.node)[2:]


def _mixes(module: nn.Module) -> bool:
    """Tell whether a convolution is not depthwise."""
    return isinstance(module, nn.Conv2d) and (module.groups == 1 or module.groups < module.in_channels)


def _entries(found: Trace, total: _Sum, projected: bool) -> tuple[str, ...]:
    """Name where the tensor enters the branch, and the shortcut if that has a convolution."""
    ways = [total.branch, total.shortcut] if projected else [total.branch]
    return tuple(dict.fromkeys(_input_site(found, call) for way in ways for call in _first(found, total, way)))


def _first(found: Trace, total: _Sum, way: int) -> list[Call]:
    """Give the outermost modules that read the tensor on the way; where a function does, the first one behind it."""
    other = total.branch if way == total.shortcut else total.shortcut
    inside = [
        call
        for call in found.calls
        if call.given is not None
        and found.made(total.begin, call.given)
        and found.made(call.out, way)
        and not found.made(call.out, other)
    ]
    readers = [call for call in inside if call.given == total.begin] or inside
    outer = [call for call in readers if not any(call.name.startswith(f"{other.name}.") for other in readers)]
    return outer if readers is not inside else outer[:1]


def _input_site(found: Trace, call: Call) -> str:
    name, sharp, number = found.site(call).partition("#")
    return f"{name}{INPUT}{sharp}{number}"
