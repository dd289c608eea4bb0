"""Nets from a user's own Python file: ``path/to/file.py:factory``. The one place that runs a file it is given."""

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch import nn

from hardy.errors import ConfigError, ParameterError, did_you_mean

__all__ = ["call_factory", "default_classes", "load_factory"]


def load_factory(spec: str) -> Callable[..., object]:
    """Run the file of ``path/to/file.py:factory`` and return the factory, a function or a class.

    What goes wrong inside the file is raised as it is, with its own traceback.

    Raises:
        ConfigError: no such file, or nothing callable of that name in it.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"model {spec!r}: no such file {file!r}. Write path/to/file.py:factory.")
    module = _run(path)
    factory = getattr(module, name, None)
    if not callable(factory):
        own = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(f"model {spec!r}: {file} has no factory {name!r}; {did_you_mean(name, own)}")
    made: Callable[..., object] = factory
    return made


def call_factory(factory: Callable[..., object], spec: str, *, num_classes: int | None, in_channels: int) -> nn.Module:
    """Call a factory with ``num_classes`` and ``in_channels``, as far as its signature has them.

    Raises:
        ParameterError: it does not return an ``nn.Module``.
    """
    parameters = inspect.signature(factory).parameters
    offered = {"in_channels": in_channels} | ({} if num_classes is None else {"num_classes": num_classes})
    net = factory(**{name: value for name, value in offered.items() if name in parameters})
    if not isinstance(net, nn.Module):
        raise ParameterError(f"model {spec!r}: the factory must return an nn.Module; got {type(net).__name__}.")
    return net


def default_classes(factory: Callable[..., object], spec: str) -> int:
    """Read the number of classes off the factory's signature.

    Raises:
        ParameterError: its signature does not say.
    """
    parameter = inspect.signature(factory).parameters.get("num_classes")
    if parameter is None or not isinstance(parameter.default, int):
        raise ParameterError(f"model {spec!r}: num_classes must be given, as the factory has no default for it.")
    return parameter.default


def _run(path: Path) -> ModuleType:
    """Import the file, once as long as it does not change, under a name by which its classes can be pickled."""
    identity = hashlib.blake2b(str(path.resolve()).encode() + path.read_bytes(), digest_size=8).hexdigest()
    name = f"_hardy_{path.stem}_{identity}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"model {path}: not a Python file. Write path/to/file.py:factory.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
