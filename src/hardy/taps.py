"""The modules that surgery puts below ``model._hardy``; every hook is a bound method of one of them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hardy import seeding
from hardy.errors import AttachError, CallError, ShapeError
from hardy.sites import INPUT

__all__ = ["After", "Box", "Captured", "Keep", "KeyedLayer", "Tap"]


class Box(nn.ModuleDict):
    """What is attached, in order. The forward pass is for ``nn.Sequential``, which calls every child."""

    def forward(self, x: Any) -> Any:
        """Return ``x``."""
        return x


class KeyedLayer(nn.Module):
    """A layer with random numbers, one key per row.

    The keys come from :class:`hardy.Objective`, which gives each image its own (``pending``, valid for the next forward
    pass of the model). Without them a row's key is its place in the batch, and the buffer ``step``, which counts the
    draws and has no state-dict key, is the counter.
    """

    step: Tensor

    def __init__(self, *, seed: int, purpose: str) -> None:
        super().__init__()
        self.root = seeding.root(seed, purpose)
        self.pending: Tensor | None = None
        self.key: Tensor | None = None
        self.call = 0  # which call of its module in this forward pass; the tap says so
        self.register_buffer("step", torch.zeros((), dtype=torch.int64), persistent=False)

    def row_keys(self, x: Tensor) -> Tensor:
        """Give one key per row of ``x`` for one draw of this call of the layer.

        Raises:
            ShapeError: the batch that arrives here has not one row per key.
        """
        if self.key is None:
            rows = torch.arange(len(x), device=x.device)
            key = seeding.fold(seeding.keys(self.root, rows), self.step)
            self.step += 1
        else:
            key = seeding.fold(self.key, self.root)
            if len(key) != len(x):
                raise ShapeError(
                    f"{type(self).__name__}: one row per key must arrive; got {len(x)} rows for {len(key)} keys. "
                    "A net that splits images into several rows cannot use keyed layers behind the split."
                )
        return seeding.fold(key, self.call)


class Tap(nn.Module):
    """Counts the calls of one module in each forward pass of the model and gives the chosen outputs to :meth:`act`.

    With ``@input`` behind the name it is given what enters the module instead: its first positional argument.

    Outside a forward pass of the whole model (``model.forward_features``, activation checkpointing in backward) the
    count goes round after ``total`` calls.
    """

    def __init__(self, name: str, calls: tuple[int, ...], total: int) -> None:
        super().__init__()
        self.name, self.calls, self.total = name, calls, total
        self.count, self.running, self.mode = 0, False, True
        self.handles: list[RemovableHandle] = []  # part of the module, so that unpickling reserves their hook numbers

    def connect(self, model: nn.Module) -> None:
        """Register the hooks."""
        module = model.get_submodule(self.name.removesuffix(INPUT))
        self.handles = [
            model.register_forward_pre_hook(self.begin),
            module.register_forward_pre_hook(self.before)
            if self.name.endswith(INPUT)
            else module.register_forward_hook(self.count_and_act, always_call=True),
            model.register_forward_hook(self.end, always_call=True),
        ]

    def disconnect(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()

    def begin(self, model: nn.Module, *_: object) -> None:
        """Start a forward pass of the model."""
        self.count, self.running, self.mode = 0, True, model.training

    def end(self, *_: object) -> None:
        """End a forward pass of the model, also one that raises."""
        self.count, self.running = 0, False

    def before(self, module: nn.Module, args: tuple[object, ...]) -> tuple[object, ...] | None:
        """Act on what enters the module if this is a chosen call."""
        if not args:
            raise AttachError(f"{self.name}: the module must get its input by position; it is called by keywords only.")
        new = self.count_and_act(module, (), args[0])
        return None if new is None else (new, *args[1:])

    def count_and_act(self, module: nn.Module, _args: object, y: object) -> Tensor | None:
        """Act on ``y`` if this is a chosen call."""
        call = self.count if self.running else self.count % self.total
        self.count += 1
        if y is None or (self.calls and call not in self.calls):  # None: it raised, as checkpointing does to stop early
            return None
        if not isinstance(y, Tensor):
            raise AttachError(f"{self.name}: a site must be one tensor; got {type(y).__name__}. Use a layer inside.")
        mode = self.mode if self.running else module.training  # the model's: a norm may be frozen by its eval mode
        if not self.running and torch._C._current_graph_task_id() >= 0:  # noqa: SLF001  (in backward; has no other name)
            mode = mode or self.training  # activation checkpointing runs a part again, perhaps a frozen one
        if self.training != mode:
            self.train(mode)
        return self.act(y, call)

    def act(self, y: Tensor, call: int) -> Tensor | None:
        """Return what replaces ``y`` at call number ``call``; None leaves it."""
        raise AttachError(f"{type(self).__name__} does not say what to do with {self.name}#{call} {tuple(y.shape)}.")


class After(Tap):
    """Replaces the tensor by ``layer(tensor)``; one layer serves all calls of its module."""

    def __init__(self, name: str, calls: tuple[int, ...], total: int, layer: nn.Module) -> None:
        super().__init__(name, calls, total)
        self.layer = layer
        self.passes, self.again = (
            0,
            False,
        )  # forward passes with keys of their own; whether backward has run parts since

    def begin(self, model: nn.Module, *_: object) -> None:
        """Take the keys meant for this forward pass; they stay until the next, as backward may run parts again."""
        super().begin(model)
        if isinstance(self.layer, KeyedLayer):
            if self.layer.pending is not self.layer.key and self.mode:
                self.passes = 1 if self.again else self.passes + 1
                self.again = False
            self.layer.key, self.layer.pending = self.layer.pending, None

    def act(self, y: Tensor, call: int) -> Tensor:
        """Apply the layer."""
        if isinstance(self.layer, KeyedLayer):
            if not self.running and self.training and self.layer.key is None:
                raise AttachError(
                    f"{self.name}: called outside a forward pass of the model, where its random numbers are not known. "
                    "Call the model, or pass keys: hardy.Objective(model, attachments)(x, y, key)."
                )
            if not self.running and self.training:
                self._check_again()
            self.layer.call = call
        out: Tensor = self.layer(y)
        return out

    def _check_again(self) -> None:
        """Refuse to run a part again, as checkpointing does in backward, where the keys of its pass are gone."""
        self.again = True
        if self.passes > 1:
            raise AttachError(
                f"{self.name}: backward runs a part of the net again, but there were {self.passes} forward passes with "
                "other random numbers since the last. With activation checkpointing call backward after each pass."
            )


class Captured(dict[str, Tensor]):
    """Outputs of the latest forward pass by call, ``"layer3#0"``; ``["layer3"]`` works if it was called once.

    A copy of it, made by copying the model, is empty.
    """

    def __missing__(self, site: str) -> Tensor:
        calls = [call for call in self if call.rpartition("#")[0] == site]
        if len(calls) == 1:
            return self[calls[0]]
        what = f"called {len(calls)} times; ask for one of" if calls else "not called; captured:"
        raise CallError(f"{site}: {what} {', '.join(calls or self) or 'nothing. Run the model first'}.")

    def __reduce__(self) -> tuple[type["Captured"], tuple[()]]:
        return Captured, ()


class Keep(Tap):
    """Keeps a clone of the output that no in-place operation can reach."""

    def __init__(self, name: str, calls: tuple[int, ...], kept: Captured, *, detach: bool) -> None:
        super().__init__(name, calls, total=2**31)
        self.kept, self.detach = kept, detach

    def begin(self, model: nn.Module, *_: object) -> None:
        """Forget the last forward pass."""
        super().begin(model)
        self.kept.clear()

    def act(self, y: Tensor, call: int) -> Tensor | None:
        """Keep ``y``; with gradients, the graph runs through the kept clone, and a second clone is for the others."""
        kept = y.detach().clone() if self.detach else y.clone()
        self.kept[f"{self.name}#{call}"] = kept
        return None if self.detach else kept.clone()
