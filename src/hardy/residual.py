"""Which tensors a CNN adds to its shortcuts, read off one forward pass."""

from torch import Tensor, nn

from hardy.tracing import Trace, trace

__all__ = ["residual_branches"]

SUMS = {"add", "add_", "__add__", "__iadd__", "__radd__"}
SPLITS = {"split", "chunk", "tensor_split", "split_with_sizes", "unbind"}
SLICES = {"__getitem__", "narrow", "index_select"}
SCALINGS = {"mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "__truediv__", "permute", "contiguous"}


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
    sites: list[str] = []
    for node in found.nodes:
        if node.op not in SUMS or len(node.parents) != 2:
            continue
        shortcut, branch = sorted(node.parents, key=lambda n: found.nodes[n].convs)
        shapes = {found.shape(shortcut), found.shape(branch), node.shape}
        deeper = found.nodes[branch].convs > found.nodes[shortcut].convs
        if len(node.shape) == 4 and len(shapes) == 1 and deeper and _is_block(found, shortcut, branch):
            sites += _returned_by(found, branch)
    return tuple(dict.fromkeys(sites))


def _is_block(found: Trace, shortcut: int, branch: int) -> bool:
    """Tell whether the branch is made from what the shortcut is, before one projection, and is more than a kernel."""
    value, plain = shortcut, True
    projections = 0
    while not found.made(value, branch):
        node = found.nodes[value]
        projections += node.op.startswith("conv")
        plain &= not node.op.startswith("conv") and "norm" not in node.op
        if len(node.parents) != 1 or projections > 1:
            return False
        (value,) = node.parents
        part = node.op in SPLITS or (node.op in SLICES and node.shape[1] < found.shape(value)[1])
        if part and found.made(value, branch) and not _takes_whole(found, value, branch):
            return False
    first, last = found.nodes[value], found.nodes[branch]
    return plain or last.convs - first.convs > 1 or last.acts > first.acts


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
