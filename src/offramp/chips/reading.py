"""Strict reading of a chip file: what is misspelt, missing or of the wrong kind is an error."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from offramp import units
from offramp.chips.facts import TIERS, Fact, Tier, Value
from offramp.errors import UsageError, nearest

T = TypeVar("T")
_KINDS: Mapping[type | tuple[type, ...], str] = {
    str: "text in quotes",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
    (int, float): "a number",
    datetime.date: "a date such as 2023-11-17",
}
_FACT_KEYS = ("value", "unit", "tier", "source", "low", "high", "note", "probe")


class ChipFileError(UsageError):
    """A chip file that cannot be read; the message has file, key and what is expected."""

    def __init__(self, path: Path, key: str, problem: str) -> None:
        super().__init__(f"{path}: {key}: {problem}" if key else f"{path}: {problem}")
        self.path, self.key = path, key


@dataclass(frozen=True, slots=True)
class Context:
    """What every part of one file shares: its path, its sources and the host's probes."""

    path: Path
    sources: Mapping[str, str]
    probes: Mapping[str, Callable[[], Value]]


class Table:
    """One table of the file; every key must be taken before `close`."""

    def __init__(self, path: Path, data: Mapping[str, Any], where: str = "") -> None:
        self.path, self.where = path, where
        self._data = dict(data)

    @classmethod
    def of_file(cls, path: Path, expected: str) -> Table:
        """The whole of a TOML file; `expected` says what it should be. Raises ChipFileError."""
        import tomllib  # not before a file is read: importing the package stays quick

        try:
            return cls(path, tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            problem = f"cannot be read ({error.strerror}); expected {expected}"
            raise ChipFileError(path, "", problem) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ChipFileError(path, "", f"not TOML: {error}") from error

    def key(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def fail(self, name: str, problem: str) -> ChipFileError:
        return ChipFileError(self.path, self.key(name) if name else self.where, problem)

    def take(self, name: str, kind: type[T] | tuple[type, ...], default: T | None = None) -> T:
        """Remove and return `name`; without a default it must be there. Raises ChipFileError."""
        if name not in self._data:
            if default is not None:
                return default
            close = difflib.get_close_matches(name, self._data, n=1)
            hint = f"; is {close[0]!r} meant?" if close else ""
            raise self.fail(name, f"missing; expected {_KINDS[kind]}{hint}")
        value = self._data.pop(name)
        wrong_bool = isinstance(value, bool) and kind is not bool
        if wrong_bool or not isinstance(value, kind):
            raise self.fail(name, f"{value!r} is not {_KINDS[kind]}")
        return cast(T, value)

    def choose(self, name: str, known: Iterable[str]) -> str:
        value: str = self.take(name, str)
        names = list(known)
        if value not in names:
            problem = f"{value!r} is not one of {', '.join(names)}"
            raise self.fail(name, problem + nearest(value, names))
        return value

    def optional(self, name: str, kind: type[T] | tuple[type, ...]) -> T | None:
        return self.take(name, kind) if name in self._data else None

    def table(self, name: str, *, required: bool = False) -> Table:
        data: dict[str, Any] = self.take(name, dict, None if required else {})
        return Table(self.path, data, self.key(name))

    def tables(self, name: str) -> list[Table]:
        rows: list[Any] = self.take(name, list, [])
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                raise self.fail(f"{name}[{index}]", f"{row!r} is not a table")
        return [Table(self.path, r, self.key(f"{name}[{i}]")) for i, r in enumerate(rows)]

    def texts(self, name: str, default: list[str] | None = None) -> tuple[str, ...]:
        items: list[Any] = self.take(name, list, default)
        for item in items:
            if not isinstance(item, str) or not item:
                raise self.fail(name, f"{item!r} is not {_KINDS[str]}")
        return tuple(items)

    def names(self) -> list[str]:
        return list(self._data)

    def close(self, known: Iterable[str]) -> None:
        """Refuse what nobody took, naming the nearest of the `known` keys."""
        for name in self._data:
            names = list(known)
            hint = nearest(name, names) or f"; expected one of {', '.join(names)}"
            raise self.fail(name, f"unknown key{hint}")


def read_trust(table: Table, context: Context) -> tuple[Tier, str]:
    """The `tier` and the `source`, which the file's [sources] table must hold."""
    tier = cast(Tier, table.choose("tier", TIERS))
    source: str = table.take("source", str)
    if source not in context.sources:
        problem = f"{source!r} is not in [sources]{nearest(source, context.sources)}"
        raise table.fail("source", problem)
    return tier, context.sources[source]


def read_fact(table: Table, dimension: str, context: Context) -> Fact:
    """A fact written as {value, unit, tier, source}, or a range {low, high, ...}, or a probe.

    `dimension` is one of `units.DIMENSIONS`, whose unit the file must state, or `text`, `flag`,
    `count` or `year`, which have none. Raises ChipFileError.
    """
    tier, source = read_trust(table, context)
    note: str = table.take("note", str, "")
    if tier == "assumed" and not note:
        raise table.fail("note", "missing; expected the reasoning behind an assumed fact")
    unit = _take_unit(table, dimension)
    value = _take_value(table, dimension, unit, context)
    low = _take_bound(table, "low", dimension, unit)
    high = _take_bound(table, "high", dimension, unit)
    table.close(_FACT_KEYS)
    if value is None and (low is None or high is None):
        raise table.fail("value", "missing; expected a value, or both low and high")
    number = value if isinstance(value, int | float) else None
    ordered = [bound for bound in (low, number, high) if bound is not None]
    if ordered != sorted(ordered):
        raise table.fail("low", "low, value and high are not in rising order")
    base = units.base_unit(dimension) if dimension in units.DIMENSIONS else dimension
    return Fact(value, base, tier, source, low, high, note)


def _take_unit(table: Table, dimension: str) -> str:
    if dimension not in units.DIMENSIONS:
        return ""
    known = units.DIMENSIONS[dimension]
    unit: str = table.take("unit", str)
    if unit not in known:
        expected = f"{unit!r} is not a unit of {dimension}; expected one of {', '.join(known)}"
        raise table.fail("unit", expected)
    return unit


def _take_value(table: Table, dimension: str, unit: str, context: Context) -> Value | None:
    probe = table.optional("probe", str)
    if probe is not None:
        if probe not in context.probes:
            raise table.fail("probe", f"{probe!r} is not one of {', '.join(context.probes)}")
        return context.probes[probe]()
    if dimension == "text":
        text: str = table.take("value", str)
        if not text:
            raise table.fail("value", "empty; leave the fact out when it is not known")
        return text
    if dimension == "flag":
        return table.take("value", bool)
    return _take_bound(table, "value", dimension, unit)


def _take_bound(table: Table, name: str, dimension: str, unit: str) -> float | None:
    kind = (int, float) if dimension in units.DIMENSIONS else int
    number: float | None = table.optional(name, kind)
    if number is None:
        return None
    if dimension in units.DIMENSIONS:
        try:
            return units.convert(number, unit, dimension)
        except units.UnitError as error:
            raise table.fail(name, str(error)) from error
    if number < 1:
        raise table.fail(name, f"{number!r} is not a whole number of at least one")
    return number
