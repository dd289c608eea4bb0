"""Where the last feature map of a CNN is: what its classifier pools."""

from torch import Tensor, nn

from hardy.errors import LayerNotFoundError
from hardy.residual import residual_blocks
from hardy.sites import INPUT
from hardy.topology import stages
from hardy.tracing import Trace, trace

__all__ = ["LAST", "last_map"]

LAST = "last_conv"  # the word for it among sites
JOINS = {"cat", "concat", "concatenate"}


def last_map(model: nn.Module, x: Tensor) -> tuple[str, str]:
    """Find the output of the last convolution of the main path, or what it is concatenated to.

    In a net whose last convolution is one of several branches (Inception), or the newest slice of what earlier layers
    made (DenseNet), its own output is but a part of the last feature map; then the site is where a module takes or
    returns the whole concatenation. A convolution on a shortcut counts as none: the last of its branch is taken.

    Args:
        model: Any plain CNN classifier.
        x: Images (n, c, h, w) in [0, 1] of the size to be used. The first is run in eval mode; leaves no trace.

    Returns:
        The site, and what to know about it; empty where it is simply the last convolution.

    Raises:
        LayerNotFoundError: the net has no convolution on images.
    """
    found = trace(model, x)
    conv = stages(model, x)[-1].convs[-1].name
    branches = {block.projection: block.conv for block in residual_blocks(model, x)}
    conv = branches.get(conv) or conv
    name, _, number = conv.partition("#")
    calls = [call for call in found.calls if call.name == name]
    if not calls:
        raise LayerNotFoundError(f"{type(model).__name__}: {conv} is not called on the example.")
    call = calls[int(number or -1)]
    value, conv = call.out, found.site(call)
    joined = _joined(found, value)
    if joined is None:
        return conv, ""
    site = _site(found, joined)
    if site is None:
        return conv, f"{conv} is concatenated with others, but no module takes or returns the whole: one part of it"
    return site, f"{site}: the concatenation that the last convolution {conv} is a part of"


def _joined(found: Trace, value: int) -> int | None:
    """Give the last concatenation of whole maps that a value goes into, in the same size."""
    size = found.shape(value)[2:]
    joins = [
        number
        for number, node in enumerate(found.nodes)
        if node.op in JOINS
        and len(node.shape) == 4
        and node.shape[2:] == size
        and node.shape[1] > found.shape(value)[1]
        and found.made(value, number)
    ]
    return joins[-1] if joins else None


def _site(found: Trace, value: int) -> str | None:
    """Name a module that returns a value, else one that takes it."""
    for call in found.calls:
        if call.out == value:
            return found.site(call)
    for call in found.calls:
        if call.given == value:
            name, sharp, number = found.site(call).partition("#")
            return f"{name}{INPUT}{sharp}{number}"
    return None
