"""Frozen dataclasses to JSON and back; an unknown or missing key is an error, never a guess."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from regard.core.errors import ConfigError, did_you_mean

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Turn a dataclass (nested, with tuples, paths and literals) into plain JSON values.

    A dataclass that is one alternative of a union is told from its siblings by its fields; a field
    named ``kind`` with a literal type makes the choice explicit.

    Raises:
        ConfigError: the value holds something JSON cannot (a tensor, a function).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def from_json(cls: type[T], value: Any, where: str = "") -> T:
    """Read plain JSON values as the dataclass ``cls``; the inverse of :func:`to_json`.

    Args:
        cls: the dataclass to build.
        value: what ``json.load`` returned.
        where: the dotted path to this value, for the error message.

    Raises:
        ConfigError: an unknown key (with the nearest right name), a missing key, or a value of the wrong type.
    """
    return typing.cast(T, _read(cls, value, where or cls.__name__))


def check_fields(value: Any) -> None:
    """Raise ConfigError unless every field of a dataclass holds what its type says, literals included."""
    hints = get_type_hints(type(value))
    for field in dataclasses.fields(value):
        _read(hints[field.name], to_json(getattr(value, field.name)), field.name)


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of the values that differ between two objects of one class, as :func:`to_json` gives them."""
    found = []
    for name, value in one.items():
        against = other[name]
        if isinstance(value, dict) and isinstance(against, dict):
            found += differences(value, against, f"{prefix}{name}.")
        elif value != against:
            found.append(f"{prefix}{name}")
    return found


def load_json(cls: type[T], path: Path) -> T:
    """Read the dataclass ``cls`` from a JSON file. Raises :class:`ConfigError` naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not readable as JSON ({error})") from None
    return from_json(cls, value, str(path))


def _read(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _read_union(kind, value, where)
    if origin is typing.Literal:
        if value in get_args(kind):
            return value
        choices = [str(choice) for choice in get_args(kind)]
        raise ConfigError(f"{where}: {value!r} is not one of {', '.join(choices)}{did_you_mean(str(value), choices)}")
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if origin in (list, tuple):
        return _read_sequence(kind, value, where)
    if origin is dict:
        _expect(value, dict, where)
        return {key: _read(get_args(kind)[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is Path:
        _expect(value, str, where)
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where}: {str(value)[:20]}... is too large") from None
    _expect(value, type(None) if kind is None else kind, where)
    return value


def _expect(value: Any, kind: type, where: str) -> None:
    confused = kind in (int, float) and isinstance(value, bool)
    if not isinstance(value, kind) or confused:
        raise ConfigError(f"{where}: expected {kind.__name__}, found {value!r}")


def _read_union(kind: Any, value: Any, where: str) -> Any:
    options = get_args(kind)
    if value is None and type(None) in options:
        return None
    errors = []
    for option in options:
        if option is type(None):
            continue
        try:
            return _read(option, value, where)
        except ConfigError as error:
            errors.append(str(error))
    raise ConfigError(errors[0] if len(errors) == 1 else f"{where}: no alternative fits ({'; '.join(errors)})")


def _read_sequence(kind: Any, value: Any, where: str) -> Any:
    _expect(value, list, where)
    inner = get_args(kind)
    if get_origin(kind) is list:
        return [_read(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if len(inner) == 2 and inner[1] is Ellipsis:
        return tuple(_read(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(inner) != len(value):
        raise ConfigError(f"{where}: expected {len(inner)} values, found {len(value)}")
    return tuple(_read(each, item, f"{where}[{i}]") for i, (each, item) in enumerate(zip(inner, value, strict=True)))


def _read_dataclass(cls: Any, value: Any, where: str) -> Any:
    _expect(value, dict, where)
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in value:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key '{key}'{did_you_mean(key, fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise ConfigError(f"{where}: missing key '{name}'")
    return cls(**{key: _read(hints[key], item, f"{where}.{key}") for key, item in value.items()})
