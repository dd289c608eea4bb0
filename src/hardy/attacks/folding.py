"""A private copy of a net for long searches on the CPU: norms folded into convolutions, channels-last weights.

In eval mode a batch norm is a fixed scale and shift per channel, which the convolution before it can do by itself. The
copy gives the same logits up to rounding in four fifths of the time, gradients in two thirds (CIFAR ResNet-20). It is
for searching; verdicts come from the net itself.
"""

import copy
import logging
from collections import Counter

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hardy.tracing import trace

__all__ = ["folded"]

log = logging.getLogger(__name__)
CLOSE = 1e-4  # relative to a logit: rounding stays well below, a net that must not be folded well above
TURNED = 0.05  # relative change of the gradient: more than a ReLU turned by rounding makes
OPAQUE = (torch.jit.ScriptModule, nn.DataParallel, nn.parallel.DistributedDataParallel)


def folded(model: nn.Module, x: Float[Tensor, "n c h w"], logits: Float[Tensor, "n k"]) -> nn.Module | None:
    """Copy a net in eval mode with its norms folded; None where the copy would not be the same function.

    There is none on accelerators, whose libraries fuse by themselves, for nets that are compiled, scripted or spread
    over devices, and for nets with hooks of somebody else's, who expects to see every pass.

    Args:
        model: The net; it is left alone.
        x: Images to compare on.
        logits: What the net said there.
    """
    if x.device.type != "cpu" or isinstance(model, OPAQUE) or hasattr(model, "_orig_mod") or _watched(model):
        return None
    try:
        twin = _fold(copy.deepcopy(model), x)
        found, gradient = _answer(twin, x)
        _, wanted = _answer(model, x)
    except Exception as error:  # noqa: BLE001  (whatever it is that the net does: it stays as it is)
        log.debug("%s: not folded (%s)", type(model).__name__, error)
        return None
    scale = float(logits.abs().nan_to_num(0, 0, 0).median())  # one huge logit must not hide the others
    close = torch.allclose(found, logits, rtol=CLOSE, atol=CLOSE * scale)  # False for NaN
    off = float((gradient - wanted).norm())
    return twin if close and off <= TURNED * float(wanted.norm()) else None


def _fold(twin: nn.Module, x: Float[Tensor, "n c h w"]) -> nn.Module:
    names = {module: name for name, module in twin.named_modules()}
    with torch.no_grad():
        for conv, norm in _pairs(twin, x):
            twin.set_submodule(names[conv], fuse_conv_bn_eval(conv, norm))
            twin.set_submodule(names[norm], nn.Identity().eval())
    twin.requires_grad_(False)
    return twin.to(memory_format=torch.channels_last)


def _answer(net: nn.Module, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n c h w"]]:
    """Give logits, and the gradient of a sum of them; 0 where there is none."""
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        z: Tensor = net(leaf)
        total = (z * torch.arange(1, 1 + z.shape[1], device=z.device)).sum()
        found = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
    return z.detach(), torch.zeros_like(leaf) if found is None else found


def _pairs(net: nn.Module, x: Float[Tensor, "n c h w"]) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Find plain batch norms whose input is the output of a plain convolution, which nothing else takes."""
    found = trace(net, x)
    uses = Counter(parent for node in found.nodes for parent in node.parents)
    often = Counter(call.module for call in found.calls)
    named = Counter(module for _, module in net.named_modules(remove_duplicate=False))
    single = [c for c in found.calls if often[c.module] == named[c.module] == 1 and not _hooks(c.module)]
    made = {call.out: call.module for call in single if type(call.module) is nn.Conv2d}
    return [
        (conv, call.module)
        for call in single
        if type(call.module) is nn.BatchNorm2d and call.module.running_mean is not None
        if call.given is not None and (conv := made.get(call.given)) is not None and uses[call.given] == 1
    ]


def _hooks(module: nn.Module) -> list[object]:
    """List what is registered to run with a module."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [hook for kind in kinds for hook in getattr(module, kind).values()]


def _watched(net: nn.Module) -> bool:
    """Say whether somebody watches the net: has hooks that are no methods of a module in it, as Hardy's layers are."""
    own = set(net.modules())
    return any(getattr(hook, "__self__", None) not in own for module in own for hook in _hooks(module))
