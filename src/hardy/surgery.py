"""Attach things to a model, and take them off again without a trace.

A site is a call of a module: ``"layer1.0.relu#1"`` is the second call of that module in one forward pass of the model;
``"layer1.0.relu"`` is every call of it; ``"layer1.0@input"`` is what enters it. Module names are globs
(``"layer?.*.relu#0"``).

What is attached lives in the model as modules below the reserved child ``_hardy``, and every hook is a bound method of
one of them, so ``deepcopy``, ``pickle``, ``.to()``, optimizers and checkpoints see it. Parameters and buffers of a
method have state-dict keys that start with ``_hardy.``; a method without any changes no keys.

Attach first, then compile or wrap.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from hardy import seeding
from hardy.errors import AttachError, CallError
from hardy.inserts import Context, Insert, Passes
from hardy.sites import BOX, check_plain, resolve
from hardy.taps import After, Box, Captured, Keep, KeyedLayer, Tap

__all__ = [
    "Attachment",
    "Attachments",
    "Context",
    "Insert",
    "Method",
    "Passes",
    "after",
    "attach",
    "attachments",
    "capture",
    "insert",
    "resolve",
    "set_keys",
    "strip",
    "strip_",
    "taps_at",
    "transplant",
    "without_trace",
]


@dataclass(frozen=True, eq=False, repr=False)
class Attachment:
    """What was attached where, and how to undo it. Also a context manager."""

    model: nn.Module
    name: str
    insert: Insert

    def __repr__(self) -> str:
        where = f"{len(self.sites)} sites, first {self.sites[0]}" if self.sites else "the batch or the loss"
        return f"Attachment({self.name}: {where})"

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the modules whose outputs are changed."""
        return tuple(dict.fromkeys(tap.name for tap in self.insert.taps if isinstance(tap, After)))

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know about where it went."""
        return self.insert.notes

    def state_dict(self) -> dict[str, int]:
        """Give what a resumed run needs beside the model's state dict: the draws so far of each random layer."""
        return {name: int(step) for name, step in self._counters().items()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue the random numbers of a stopped run, attached with the same seed.

        Raises:
            AttachError: the state is of other random layers.
        """
        counters = self._counters()
        if counters.keys() != state.keys():
            raise AttachError(
                f"{self.name}: the state must have {', '.join(counters) or 'nothing'}; "
                f"got {', '.join(state) or 'nothing'}. Attach at the same sites as in the stopped run."
            )
        for name, step in counters.items():
            step.fill_(state[name])

    def _counters(self) -> dict[str, Tensor]:
        return {n: m.step for n, m in self.insert.named_modules() if isinstance(m, KeyedLayer)}

    def detach(self) -> None:
        """Restore the model: same modules, same state-dict keys, same outputs. Twice is harmless.

        Raises:
            AttachError: the model is compiled or wrapped, or an attachment that came later changes one of the same
                sites: it was built on what this one returns.
        """
        stack = attachments(self.model)
        if self.insert not in [other.insert for other in stack]:
            return
        while stack.pop(0).insert is not self.insert:
            pass
        for later in stack:
            if shared := set(self.sites) & set(later.sites):
                raise AttachError(f"{self.name}: {later.name} came later to {min(shared)}. Detach {later.name} first.")
        self._remove()

    def _remove(self) -> None:
        for tap in self.insert.taps:
            cast("Tap", tap).disconnect()
        box = getattr(self.model, BOX)
        del box[self.name]
        if not box:
            delattr(self.model, BOX)

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


class Attachments(tuple[Attachment, ...]):
    """Several attachments of one model, in order; detaches all, last first."""

    __slots__ = ()

    def detach(self) -> None:
        """Detach all, last first."""
        for attachment in reversed(self):
            attachment.detach()

    def __enter__(self) -> "Attachments":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


@runtime_checkable
class Method(Protocol):
    """One paper's way to make or mend a robust net: a frozen dataclass that can be attached."""

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> Attachment:
        """Attach to the plain model; ``example`` is a batch (n, c, h, w) in [0, 1] of the size to be used."""
        ...


def attach(model: nn.Module, methods: Sequence[Method], *, example: Tensor, seed: int) -> Attachments:
    """Attach several methods in order; if one cannot, none stays.

    Args:
        model: The plain model: not compiled, not wrapped.
        methods: Specs from ``hardy.methods``, or a user's own.
        example: Images of the size to be used, (n, c, h, w) in [0, 1]; one is enough. Leaves no trace.
        seed: Source of all random numbers of the methods.

    Raises:
        AttachError: the model is compiled or wrapped, or a method cannot work on it.
        LayerNotFoundError: a site names no layer.
    """
    done: list[Attachment] = []
    try:
        done.extend(method.attach(model, example=example, seed=seed) for method in methods)
    except BaseException:
        Attachments(attachments(model)[len(attachments(model)) - len(done) :]).detach()
        raise
    return Attachments(done)


def attachments(model: nn.Module) -> list[Attachment]:
    """List what is attached, oldest first; how to detach from a copied or unpickled model."""
    check_plain(model)
    box: dict[str, Insert] = getattr(model, BOX, {})
    return [Attachment(model, name, held) for name, held in box.items()]


def strip(model: nn.Module, *, live: bool = False) -> nn.Module:
    """Copy the model without its train-only methods; with ``live=True`` without any.

    Args:
        model: The plain model.
        live: Also take off what works at test time, such as masks. That changes the function of the net.

    Returns:
        A new model on the same device, in the same mode; the given one is left as it is.
    """
    twin = copy.deepcopy(model)
    strip_(twin, live=live)
    return twin


def strip_(model: nn.Module, *, live: bool = False) -> None:
    """Take the train-only methods off the model itself; with ``live=True`` all."""
    for attachment in reversed(attachments(model)):
        if live or not attachment.insert.live:
            attachment._remove()  # noqa: SLF001  (a train-only layer is the identity for those above it)


def transplant(donor: nn.Module, model: nn.Module) -> None:
    """Move everything attached to ``donor`` to the same sites of ``model``, which is built alike.

    The donor may be on the meta device; the layers then get memory on the device of the model, with values that the
    caller must load.
    """
    device = next(model.parameters()).device
    for attachment in attachments(donor):
        held = attachment.insert
        attachment._remove()  # noqa: SLF001  (all go, in order)
        if any(value.is_meta for value in [*held.parameters(), *held.buffers()]):
            held.to_empty(device=device)
            for layer in held.modules():
                if isinstance(layer, KeyedLayer):
                    layer.step.zero_()
        taps = [cast("Tap", tap) for tap in held.taps]
        held.taps = nn.ModuleList()
        insert(model, held, method=attachment.name, taps=taps)


def set_keys(model: nn.Module, key: Tensor) -> None:
    """Give every random layer below ``_hardy`` the row keys of the next forward pass of the model."""
    for module in getattr(model, BOX, nn.Module()).modules():
        if isinstance(module, KeyedLayer):
            module.pending = key


def insert(model: nn.Module, held: Insert, *, method: str, taps: Sequence[Tap] = ()) -> Attachment:
    """Put ``held`` and its taps into ``model._hardy.<method>`` and connect the hooks; a second is ``<method>-2``."""
    check_plain(model)
    if not hasattr(model, BOX):
        model.add_module(BOX, Box())
    box, name, number = getattr(model, BOX), method, 1
    while name in box:
        name, number = f"{method}-{number + 1}", number + 1
    held.root = seeding.root(held.seed, name)
    held.taps.extend(taps)
    box[name] = held
    for layer in held.taps.modules():
        if number > 1 and isinstance(layer, KeyedLayer):  # a second one of a kind draws numbers of its own
            layer.root = seeding.root(layer.root, name)
    for tap in taps:
        tap.connect(model)
    return Attachment(model, name, held)


def after(
    model: nn.Module,
    sites: Sequence[str],
    make: Callable[[str, Tensor], nn.Module],
    *,
    method: str,
    example: Tensor,
    held: Insert,
) -> Attachment:
    """Replace the outputs of ``sites`` by ``layer(output)``.

    Args:
        model: The plain model.
        sites: Where; without a call number, at every call of a module.
        make: Builds the layer of one module from its name and its first chosen output on the example.
        method: Name of the child of ``_hardy``; a second one becomes ``<method>-2``.
        example: A batch; its first image is run once in eval mode and without a trace.
        held: Where the layers live.

    Raises:
        CallError: a site's call does not happen on the example.
    """

    def tap(name: str, calls: tuple[int, ...], total: int, y: Tensor) -> Tap:
        return After(name, calls, total, make(name, y))

    taps = taps_at(model, sites, tap, method=method, example=example)
    held.input_shape = (example.shape[1], example.shape[2], example.shape[3])
    return insert(model, held, method=method, taps=taps)


def taps_at(
    model: nn.Module,
    sites: Sequence[str],
    make: Callable[[str, tuple[int, ...], int, Tensor], Tap],
    *,
    method: str,
    example: Tensor,
) -> list[Tap]:
    """Make a tap for each module of ``sites``; :func:`insert` then connects them, in this order.

    Args:
        model: The plain model.
        sites: Where; without a call number, at every call of a module.
        make: Builds a tap from the name of a module, the numbers of the chosen calls (none: all), the number of its
            calls in a forward pass, and its first chosen output on the example.
        method: Who asks, for messages.
        example: A batch; its first image is run once in eval mode and without a trace.

    Raises:
        CallError: a site's call does not happen on the example.
    """
    names = list(resolve(model, sites))
    with capture(model, names) as seen, without_trace(model, example):
        model(example[:1].clone())  # a net may change what it is given
    taps = []
    for name, calls in resolve(model, sites).items():
        chosen = [f"{name}#{call}" for call in calls or (0,)]
        if missing := [call for call in chosen if call not in seen]:
            raise CallError(f"{method}: {missing[0]} is not called on the example; called: {', '.join(seen)}.")
        y = seen[chosen[0]]
        total = sum(call.rpartition("#")[0] == name for call in seen)
        taps.append(make(name, calls, total, y).to(y.device))
    return taps


@contextmanager
def capture(model: nn.Module, sites: Sequence[str], *, detach: bool = True) -> Iterator[Captured]:
    """Collect clones of the outputs of ``sites`` in the block; the hooks go even if the block raises.

    With ``detach=False`` the graph runs through the clones: differentiate by them, or put them into a loss.
    """
    kept = Captured()
    taps = [Keep(name, calls, kept, detach=detach) for name, calls in resolve(model, sites).items()]
    with insert(model, Insert(None, seed=0), method="capture", taps=taps):
        yield kept


@contextmanager
def without_trace(model: nn.Module, example: Tensor) -> Iterator[None]:
    """Run the block in eval mode without gradients, then give back each module's mode and the random state."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng([example.device] if example.is_cuda else []):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
