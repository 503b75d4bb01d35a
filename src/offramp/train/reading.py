"""Strict reading and complete writing of job files, from the dataclasses that describe them."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar, cast

from offramp.errors import UsageError, nearest

T = TypeVar("T")
_KINDS = {
    str: "text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    tuple: "a list of texts",
}


def key(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that is a key of the job file: its default, help and allowed values."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def read(cls: type[T], path: Path) -> T:
    """The job in a TOML file. Raises UsageError: file, key, what was expected, nearest name."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); expected a job file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error
    try:
        return build(cls, data)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def build(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """A dataclass from plain data: unknown keys and wrong types are errors. Raises UsageError."""
    known = {f.name: f for f in dataclasses.fields(cast(Any, cls))}
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, value in data.items():
        full = f"{where}.{name}" if where else name
        if name not in known:
            hint = nearest(name, known) or f"; expected one of {', '.join(known)}"
            raise UsageError(f"unknown key {full!r}{hint}")
        hint_type = hints[name]
        if dataclasses.is_dataclass(hint_type):
            if not isinstance(value, dict):
                raise UsageError(f"{full}: {value!r} is not a table: [{full}]")
            values[name] = build(cast(type[Any], hint_type), value, full)
        else:
            values[name] = _convert(value, hint_type, full)
    return cls(**values)


def change(made: T, changes: Mapping[str, Any]) -> T:
    """`made` with dotted keys changed, such as {"train.steps": 20}. Raises UsageError."""
    data = plain(made)
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        table = data
        for part in path:
            if not isinstance(table.get(part), dict):
                raise UsageError(f"unknown key {dotted!r}{nearest(part, table)}")
            table = table[part]
        table[last] = value
    return build(type(made), data)


def plain(made: Any) -> dict[str, Any]:
    """Plain data of a dataclass: what `build` takes."""
    return {
        f.name: plain(value) if dataclasses.is_dataclass(value) else _listed(value)
        for f in dataclasses.fields(made)
        for value in (getattr(made, f.name),)
    }


def check_choices(where: str, section: Any) -> None:
    """Refuse values out of range or not among the choices. Raises UsageError."""
    if not dataclasses.is_dataclass(section):
        return
    for f in dataclasses.fields(section):
        value, name = getattr(section, f.name), f"{where}.{f.name}"
        choices, low, high = (f.metadata.get(what) for what in ("choices", "low", "high"))
        if choices and value not in choices:
            expected = ", ".join(repr(choice) for choice in choices)
            raise UsageError(
                f"{name}: {value!r} is not one of {expected}{nearest(str(value), choices)}"
            )
        if (low is not None and value < low) or (high is not None and value > high):
            span = f"at least {low:g}" if high is None else f"{low:g} to {high:g}"
            raise UsageError(f"{name}: {value!r} is out of range; expected {span}")


def write(made: Any) -> str:
    """The complete TOML text of a job, each key with its help as a comment."""
    lines: list[str] = []
    sections = []
    for f in dataclasses.fields(made):
        value = getattr(made, f.name)
        if dataclasses.is_dataclass(value):
            sections.append((f.name, value))
        else:
            lines += _key_lines(f, value)
    for name, section in sections:
        title = (type(section).__doc__ or "").strip().splitlines()[0]
        lines += ["", f"# {title}", f"[{name}]"]
        for f in dataclasses.fields(section):
            lines += _key_lines(f, getattr(section, f.name))
    return "\n".join(lines) + "\n"


def _key_lines(f: dataclasses.Field[Any], value: Any) -> list[str]:
    return [f"# {f.metadata['help']}", f"{f.name} = {_toml(value)}"]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(_escaped(letter) for letter in value) + '"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    return repr(value)


def _escaped(letter: str) -> str:
    if letter in '"\\':
        return f"\\{letter}"
    return letter if letter.isprintable() else f"\\U{ord(letter):08X}"


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _convert(value: Any, hint: Any, full: str) -> Any:
    kind = typing.get_origin(hint) or hint
    assert not isinstance(hint, types.UnionType), full
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise UsageError(f"{full}: {value!r} is not {_KINDS[tuple]}")
        return tuple(items)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"{full}: {value!r} is not {_KINDS[kind]}")
    return value


def parse(cls: type[Any], dotted: str, text: str) -> Any:
    """The value of a key from a command line: TOML, or text without quotes. Raises UsageError."""
    for part in dotted.split("."):
        hints = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
        if part not in hints:
            raise UsageError(f"unknown key {dotted!r}{nearest(part, hints)}")
        cls = hints[part]
    if dataclasses.is_dataclass(cls):
        raise UsageError(
            f"{dotted!r} is a table; expected one of its keys, such as "
            f"{dotted}.{dataclasses.fields(cls)[0].name}"
        )
    if cls is str:
        return text.strip("\"'")
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # `build` says what is expected of the key
