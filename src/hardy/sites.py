"""Names of places in a model: which modules, which of their calls, and which models can be changed at all."""

import difflib
import fnmatch
from collections.abc import Sequence

from torch import nn

from hardy.errors import AttachError, CallError, LayerNotFoundError

__all__ = ["BOX", "INPUT", "check_plain", "module_names", "resolve"]

BOX = "_hardy"
INPUT = "@input"  # behind a module name: its first input instead of its output
WRAPPERS = {  # class name -> where it holds the plain model; names, because importing the classes is slow
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "DataParallel": "module",
    "_FabricModule": "module",
}


def module_names(model: nn.Module) -> list[str]:
    """List the names of all modules of the model itself, in model order, without what Hardy has attached."""
    return [name for name, _ in model.named_modules() if name and BOX not in name.split(".")]


def resolve(model: nn.Module, sites: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Map site patterns to module names in model order, each with its call numbers; ``()`` means every call.

    A site is the output of a module, or with ``@input`` behind its name what enters it: ``layer2@input#0``. A model
    that holds the net below a child may name that child in a class attribute ``inner`` (``Classifier`` does); then
    names relative to it work as well: ``layer1.0.relu#1`` for ``net.layer1.0.relu#1``.

    Raises:
        LayerNotFoundError: a pattern matches nothing; the message names the closest modules.
        CallError: what follows ``#`` is not a number, or what follows ``@`` not "input".
        AttachError: the model is compiled or wrapped.
    """
    check_plain(model)
    names = module_names(model)
    inner = f"{getattr(model, 'inner', '')}."
    found: dict[str, set[str]] = {}
    for site in sites:
        place, _, call = site.partition("#")
        if site != place and not call.isdecimal():
            raise CallError(f"{site!r}: a call is a number from 0, as in {place + '#0'!r}; got {call!r}.")
        pattern, at, behind = place.partition("@")
        if at and at + behind != INPUT:
            raise CallError(f"{site!r}: behind '@' only 'input' is possible, as in {pattern + INPUT!r}.")
        side = INPUT if at else ""
        matches = [n for n in names if any(fnmatch.fnmatchcase(m, pattern) for m in (n, n.removeprefix(inner)))]
        if not matches:
            near = difflib.get_close_matches(pattern, [*names, *(n.removeprefix(inner) for n in names)], n=3)
            hint = f"closest: {', '.join(near)}" if near else "run `hardy layers MODEL` to list them"
            raise LayerNotFoundError(f"{type(model).__name__} has no layer {site!r} ({hint}).")
        for name in matches:
            found.setdefault(name + side, set()).add(call)
    order = [name + side for name in names for side in (INPUT, "")]
    return {n: () if "" in found[n] else tuple(sorted(map(int, found[n]))) for n in order if n in found}


def check_plain(model: nn.Module) -> None:
    """Refuse what would not see, or not survive, a change of hooks and modules.

    Raises:
        AttachError: the model, or a part of it, is compiled or wrapped.
    """
    for module in model.modules():
        kinds = [cls.__name__ for cls in type(module).__mro__ if cls.__name__ in WRAPPERS]
        if kinds:
            raise AttachError(
                f"{kinds[0]}: attach and detach need the plain model. Use `.{WRAPPERS[kinds[0]]}`, then wrap it again."
            )
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise AttachError(f"{type(module).__name__}: compiled in place. Attach first, then call `.compile()`.")
