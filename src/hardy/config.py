"""Strict TOML configuration: a file becomes a frozen dataclass, or an error that names the key."""

import dataclasses
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hardy.errors import ConfigError, did_you_mean
from hardy.threats import parse_budget

__all__ = ["build", "dump", "override", "read_toml"]

T = TypeVar("T")


def read_toml(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Read a TOML file and apply ``key.sub=value`` overrides in order.

    Raises:
        ConfigError: no such file, or not TOML; the message says where.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    for text in overrides:
        override(data, text)
    return data


def override(data: dict[str, Any], text: str) -> None:
    """Apply one ``key.sub=value``; the value is TOML, or a bare string."""
    key, sep, raw = text.partition("=")
    if not sep:
        raise ConfigError(f"--set {text!r}: expected key=value, as in --set train.epochs=10")
    *path, last = key.strip().split(".")
    for part in path:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {text!r}: {part} is not a table, so it has no keys below it")
    try:
        data[last] = tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        data[last] = raw.strip()


def build(cls: type[T], data: Mapping[str, Any], at: str = "") -> T:
    """Build dataclass ``cls`` from ``data``; unknown keys, wrong types and bad values are errors.

    Raises:
        ConfigError: the message starts with the key, as in ``train.lr: expected float; got str 'a'``.
    """
    hints = typing.get_type_hints(cls)
    types_of = {f.name: hints[f.name] for f in dataclasses.fields(typing.cast("Any", cls))}  # no constants of the class
    for key in data.keys() - types_of.keys():
        raise ConfigError(f"{at}{key}: unknown key; {did_you_mean(key, types_of)}")
    values = {key: _value(types_of[key], value, f"{at}{key}") for key, value in data.items()}
    for f in dataclasses.fields(typing.cast("Any", cls)):
        if f.default is f.default_factory is dataclasses.MISSING and f.name not in values:
            raise ConfigError(f"{at}{f.name}: missing; it has no default")
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{at.rstrip('.') or cls.__name__}: {error}") from error


def dump(value: Any) -> str:
    """Write a dataclass or a dict as TOML that :func:`build` reads back; None is left out.

    Example:
        >>> print(dump({"seed": 0, "train": {"lr": 0.1}}))
        seed = 0
        <BLANKLINE>
        [train]
        lr = 0.1
        <BLANKLINE>
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return "\n".join(_tables(value, "")).lstrip("\n") + "\n"


def _tables(data: Mapping[str, Any], at: str) -> Iterable[str]:
    tables = {k: v for k, v in data.items() if isinstance(v, Mapping)}
    lists = {k: v for k, v in data.items() if isinstance(v, list | tuple) and v and isinstance(v[0], Mapping)}
    for key, value in data.items():
        if key not in tables and key not in lists and value is not None:
            yield f"{_key(key)} = {_literal(value)}"
    for key, value in tables.items():
        yield from ["", f"[{at}{_key(key)}]", *_tables(value, f"{at}{_key(key)}.")]
    for key, rows in lists.items():
        for row in rows:
            yield from ["", f"[[{at}{_key(key)}]]", *_tables(row, f"{at}{_key(key)}.")]


def _key(key: str) -> str:
    bare = key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key)
    return key if bare else _literal(key)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, str | Path):
        escaped = "".join(_escape(c) for c in str(value))
        return f'"{escaped}"'
    return repr(value)


def _escape(c: str) -> str:
    if c in '"\\':
        return f"\\{c}"
    return c if c.isprintable() else f"\\U{ord(c):08x}"


def _value(want: Any, value: Any, at: str) -> Any:
    """Check one TOML value against one annotation. TOML is typed, so nothing is guessed."""
    origin, args = typing.get_origin(want), typing.get_args(want)
    if dataclasses.is_dataclass(want) and isinstance(value, dict):
        return build(typing.cast("type[Any]", want), value, f"{at}.")
    if origin in (types.UnionType, typing.Union):
        return _union(args, value, at)
    if origin is typing.Literal and value in args and type(value) in {type(a) for a in args}:
        return value
    if origin is tuple and isinstance(value, list):
        return _tuple(args, value, at)
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {k: _value(args[1], v, f"{at}.{k}") for k, v in value.items()}
    if want is float and (type(value) is int or isinstance(value, str)):
        return _number(value, at)
    if want is Path and type(value) is str:
        return Path(value)
    if type(value) is want or want is Any:  # not isinstance: true is not a 1
        return value
    raise ConfigError(f"{at}: expected {_describe(want)}; got {type(value).__name__} {value!r}")


def _tuple(args: tuple[Any, ...], value: list[Any], at: str) -> tuple[Any, ...]:
    if len(args) == 2 and args[1] is Ellipsis:
        args = args[:1] * len(value)
    if len(args) != len(value):
        raise ConfigError(f"{at}: expected {len(args)} values; got {len(value)}")
    return tuple(_value(a, v, f"{at}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))


def _union(args: tuple[Any, ...], value: Any, at: str) -> Any:
    """Take the first member of a union that fits; a missing key, not a value, means None."""
    members = [a for a in args if a is not types.NoneType]
    exact = [a for a in members if type(value) is a]
    if exact or len(members) == 1:
        return _value((exact or members)[0], value, at)
    for member in members:
        try:
            return _value(member, value, at)
        except ConfigError:
            continue
    raise ConfigError(f"{at}: expected {' or '.join(map(_describe, members))}; got {type(value).__name__} {value!r}")


def _number(value: int | str, at: str) -> float:
    try:
        return parse_budget(value)
    except (ConfigError, OverflowError) as error:
        raise ConfigError(f"{at}: {error}") from error


def _describe(want: Any) -> str:
    if typing.get_origin(want) is typing.Literal:
        return f"one of {', '.join(map(repr, typing.get_args(want)))}"
    return str(getattr(want, "__name__", want))
