"""Build a classifier from a name, and build it again from its :class:`Source`.

Normalisation is never guessed from images. It is what the caller says; without that, for timm nets the mean and std of
timm's ``pretrained_cfg``; for pretrained torchvision nets those of the weights' transforms; for built-in nets on RGB
those of CIFAR-10; for a user's factory none (mean 0, std 1: the net gets pixels in [0, 1]); else 0.5 and 0.5. Where
numbers for RGB meet another number of channels, every channel takes their average.

A weights file that holds a normalisation (buffers ``mu`` and ``sigma``, or ``mean`` and ``std``) has the better word:
its numbers are taken, unless the caller gives others. A file in the names of other people's code without one is taken
for a net of pixels in [0, 1], with a warning; for ``robustbench:`` names :mod:`hardy.models.robustbench` knows better.
"""

import difflib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hardy.errors import CheckpointError, ConfigError, HardyError, HardyWarning, ParameterError, did_you_mean
from hardy.models.classifier import Arg, Builder, Classifier, Source
from hardy.models.from_file import call_factory, default_classes, load_factory
from hardy.models.layouts import split_normalisation
from hardy.models.packages import (
    Native,
    Stats,
    timm_native,
    timm_net,
    torchvision_native,
    torchvision_net,
    torchvision_state,
)
from hardy.models.registry import BUILTIN, check_args, known, names
from hardy.models.robustbench import PREFIX, Entry, entry
from hardy.models.weights import fit_weights, read_weights
from hardy.seeding import root

__all__ = ["build", "rebuild"]

CIFAR10: Stats = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
HALF: Stats = (0.5,), (0.5,)
NONE: Stats = (0.0,), (1.0,)
# what a builder raises for arguments that this net does not take
REFUSED = (TypeError, ValueError, KeyError, AssertionError, NotImplementedError, RuntimeError, AttributeError)


def build(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    pretrained: bool | str | Path = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    input_size: int | None = None,
    args: Mapping[str, Arg] | None = None,
) -> Classifier:
    """Build a classifier in train mode on the CPU.

    Args:
        name: ``timm:NAME``, ``torchvision:NAME``, a built-in name, or ``path/to/file.py:factory``; only the last runs a
            file. The factory gets ``num_classes`` and ``in_channels`` where its signature has them.
            ``robustbench:DATA/THREAT/MODEL`` is the net of that model, whose file must be given as ``pretrained``.
        num_classes: Number of logits, at least 1; None: the net's own default. Given together with pretrained weights
            for another number of classes, the head is new, and the log says so.
        in_channels: Channels of the images, at least 1.
        pretrained: True downloads the published weights; a path reads them from a safetensors or ``torch.save`` file.
        mean: Per channel, in pixels in [0, 1]; see the module for what is taken without it.
        std: Per channel, positive.
        seed: Seed of the initial weights: equal seeds give equal weights, whatever was drawn before.
        input_size: Height and width to note in the source; None: the pretrained weights' own, if any.
        args: Further arguments of the builder; the allow-list is ``hardy.models.registry.ARGS``.

    Raises:
        ConfigError: no such net.
        ParameterError: a bad argument, or published weights do not exist or cannot be downloaded.
        CheckpointError: the file of weights cannot be read or does not fit.
    """
    zoo = _zoo_entry(name, pretrained)
    builder, short = _parse(zoo.net if zoo else name)
    args = {**(zoo.args if zoo else {}), **(args or {})}
    check_args(builder, args)
    for label, value in {"num_classes": num_classes, "in_channels": in_channels}.items():
        if value is not None and value < 1:
            raise ParameterError(f"model {name!r}: {label} must be at least 1; got {value}.")
    weights = _weights(builder, short, pretrained)  # fails before the net is built
    wanted = zoo.num_classes if zoo and num_classes is None else num_classes
    with _seeded(root(seed, "init")), torch.device("cpu"):
        net, classes = _make(builder, short, wanted, in_channels, args, download=pretrained is True)
    found, layout = None, None
    if weights is not None:
        state, origin = weights
        state, found = split_normalisation(state, net.state_dict().keys(), in_channels)
        layout = fit_weights(net, state, origin=origin, num_classes=classes, replace_head=num_classes is not None)
    if isinstance(net, Classifier):  # a factory that normalises already
        if (mean, std, found) != (None, None, None):
            raise ParameterError(f"model {name!r}: the factory returns a Classifier, which has its own mean and std.")
        return net
    stats, native = _native(builder, short, net, in_channels, pretrained=pretrained is not False)
    if zoo:
        stats, native = (zoo.mean, zoo.std), zoo.input_size
    elif layout and not found:
        stats = NONE
        if mean is None or std is None:
            _warn_of_raw_pixels(str(pretrained), layout)
    mean = _spread((found or stats)[0], in_channels) if mean is None else tuple(map(float, mean))
    std = _spread((found or stats)[1], in_channels) if std is None else tuple(map(float, std))
    source = Source(
        builder=builder,
        name=short,
        num_classes=classes,
        in_channels=in_channels,
        mean=mean,
        std=std,
        input_size=native if input_size is None else input_size,
        args=args,
    )
    return Classifier(net, source)


def rebuild(source: Source) -> Classifier:
    """Build the classifier of a source with meaningless weights, without running or downloading anything.

    Under ``torch.device("meta")`` it keeps no memory, so that shapes can be compared first.

    Raises:
        CheckpointError: no installed package has a net of that name, or it is a user's own net.
        ParameterError: an argument is outside the allow-list.
    """
    if source.builder == "external":
        raise CheckpointError(
            f"model {source.name!r}: a user's own net. Build it and pass it: hardy.load(path, model=...)."
        )
    if not known(source.builder, source.name):
        raise CheckpointError(f"model {source.builder}:{source.name}: not among the nets of the installed packages.")
    check_args(source.builder, source.args)
    with _seeded(0):
        try:
            net, _ = _make(source.builder, source.name, source.num_classes, source.in_channels, source.args)
        except ParameterError:
            if torch.get_default_device().type != "meta":
                raise
            with torch.device("cpu"):  # some builders compute with tensors, which have no values on meta
                net, _ = _make(source.builder, source.name, source.num_classes, source.in_channels, source.args)
            net = net.to("meta")
    return Classifier(net, source)


def _zoo_entry(name: str, pretrained: bool | str | Path) -> Entry | None:
    """Give the facts of a model of RobustBench; None for any other name."""
    if not name.startswith(PREFIX):
        return None
    found = entry(name)
    if isinstance(pretrained, bool):
        file = f"{name.removeprefix(PREFIX)}.pt"
        raise ParameterError(
            f"model {name!r}: names trained weights, which are not downloaded here. "
            f"Pass RobustBench's file of them: pretrained='models/{file}'."
        )
    return found


def _warn_of_raw_pixels(origin: str, layout: str) -> None:
    warnings.warn(
        f"{origin}: weights in the names of {layout}, without a normalisation: the net gets pixels in [0, 1] as they "
        "are. Many nets of that code were trained on normalised pixels; pass mean and std to say which, "
        "(0, 0, 0) and (1, 1, 1) for none, or the name 'robustbench:DATA/THREAT/MODEL' if it is one of RobustBench's.",
        HardyWarning,
        stacklevel=3,
    )


def _parse(name: str) -> tuple[Builder, str]:
    """Split a name into builder and short name, and check that the net exists."""
    prefix, _, rest = name.partition(":")
    if ".py:" in name:
        return "external", name
    builder: Builder | None = "timm" if prefix == "timm" else "torchvision" if prefix == "torchvision" else None
    if builder is not None:
        if not known(builder, rest):
            raise ConfigError(f"model {name!r}: {builder} has no net {rest!r}; {_hint(builder, rest)}")
        return builder, rest
    if name in BUILTIN:
        return "builtin", name
    others = [f"{b}:{name}" for b in ("timm", "torchvision") if known(b, name)]
    hint = f"did you mean {' or '.join(others)}?" if others else did_you_mean(name, BUILTIN)
    raise ConfigError(
        f"model {name!r}: neither a built-in net nor timm:NAME, torchvision:NAME or path/to/file.py:factory; {hint}"
    )


def _hint(builder: str, name: str) -> str:
    """Say which known name is closest, without listing a thousand."""
    everything = names(builder)
    if builder == "timm" and "." in name:
        import timm

        everything = timm.list_pretrained(f"{name.partition('.')[0]}.*") or everything
    near = difflib.get_close_matches(name, everything, n=1)
    return did_you_mean(name, near) if near else "see `hardy models`."


def _weights(
    builder: Builder, name: str, pretrained: bool | str | Path
) -> tuple[Mapping[str, torch.Tensor], str] | None:
    """Get the weights and where they come from; timm loads its own while it builds."""
    if not isinstance(pretrained, bool):
        return read_weights(Path(pretrained)), str(pretrained)
    if not pretrained or builder == "timm":
        return None
    if builder == "torchvision":
        return torchvision_state(name), f"torchvision's weights of {name}"
    raise ParameterError(f"model {name!r}: no published weights. Pass a file: pretrained='weights.safetensors'.")


def _make(
    builder: Builder,
    name: str,
    num_classes: int | None,
    in_channels: int,
    args: Mapping[str, Arg],
    *,
    download: bool = False,
) -> tuple[nn.Module, int]:
    """Build the bare net, and say how many classes it has."""
    if builder == "external":
        return _external(name, num_classes, in_channels)
    given: dict[str, Any] = dict(args) if num_classes is None else {**args, "num_classes": num_classes}
    try:
        if builder == "timm":
            net = timm_net(name, in_channels, given, download=download)
            return net, int(getattr(net, "num_classes", 0))
        if builder == "torchvision":
            return torchvision_net(name, in_channels, given), num_classes or 1000
        given.setdefault("num_classes", 10)
        return BUILTIN[name](in_channels=in_channels, **given), given["num_classes"]
    except REFUSED as error:
        if isinstance(error, HardyError):
            raise
        raise ParameterError(f"model {builder}:{name}: cannot be built with {given} ({error}).") from error


def _external(name: str, num_classes: int | None, in_channels: int) -> tuple[nn.Module, int]:
    factory = load_factory(name)
    net = call_factory(factory, name, num_classes=num_classes, in_channels=in_channels)
    if isinstance(net, Classifier):
        return net, net.source.num_classes
    return net, num_classes or default_classes(factory, name)


def _native(
    builder: Builder, name: str, net: nn.Module, in_channels: int, *, pretrained: bool
) -> tuple[Stats, int | None]:
    """Give mean, std and input size that belong to the net, as the module says."""
    native: Native = None, None
    if builder == "timm":
        native = timm_native(net, pretrained=pretrained)
    elif builder == "torchvision":
        native = torchvision_native(name, pretrained=pretrained)
    elif builder == "builtin" and in_channels == 3:
        native = CIFAR10, None
    elif builder == "external":
        native = NONE, None
    return native[0] or HALF, native[1]


def _spread(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Give one number per channel: as they are, or everywhere their average."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generator that initialises weights on the CPU, and put its state back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
