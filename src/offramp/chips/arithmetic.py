"""How a chip computes where that is not the host's arithmetic: settings, from facts or by hand.

A chip file states what is public in its table `[arithmetic]`, each a fact; `--arith KEY=VALUE` sets
the same keys by hand, for any chip. What neither says is computed as the host does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypedDict

from offramp.chips.facts import Fact
from offramp.chips.reading import Context, Table, read_fact
from offramp.errors import UsageError, nearest

BY_HAND = "set by hand"
MANTISSA = 23  # stored bits of a float32's significand
# Products of bfloat16 parts of the inputs: one part, two (three products), three (six or nine).
_PARTS = {"bf16x1": 1, "bf16x3": 3, "bf16x6": 6, "bf16x9": 9}
# When the reduced format of float32 products is used: always, or where PyTorch's switch allows it.
WHEN = ("always", "allowed")
_UNLESS = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(\S+)")


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: the form of its values, in words and as a pattern, and what it changes."""

    pattern: str
    expected: str
    what: str
    low: int = 0
    high: int = 0  # of the number in the value, where the key takes one


_FORMAT = Key(
    r"ieee|tf32|bf16x[1369]|(\d+)",
    "ieee, tf32, bf16x1, bf16x3, bf16x6, bf16x9, or 1 to 23 bits of significand",
    "the format that float32 inputs of {} are rounded to",
    1,
    MANTISSA,
)
KEYS: Mapping[str, Key] = MappingProxyType(
    {
        "matmul.float32": replace(_FORMAT, what=_FORMAT.what.format("matrix products")),
        "convolution.float32": replace(_FORMAT, what=_FORMAT.what.format("convolutions")),
        "accumulate": Key(
            r"fp32|fp16|bf16|chunked:(\d+)(?::(?:fp16|bf16))?",
            "fp32, fp16, bf16, chunked:N or chunked:N:bf16 (N products in that format, then fp32)",
            "the format in which products of 16-bit and 8-bit numbers are summed",
            1,
            2**20,
        ),
        "split_k": Key(
            r"(\d+)",
            "a whole number from 1 to 1024",
            "how many partial sums a product is summed in",
            1,
            1024,
        ),
        "flush_to_zero": Key(r"true|false", "true or false", "whether subnormal numbers are zero"),
        "rounding": Key(
            r"nearest|stochastic(?::(\d+))?",
            "nearest, stochastic, or stochastic:SEED",
            "how results are rounded to 16-bit formats",
            0,
            2**32 - 1,
        ),
        "exp_ulp": Key(
            r"(\d+)",
            "a whole number of units in the last place, 0 to 65536",
            "how far exponentials may be off",
            0,
            2**16,
        ),
        "float64": Key(r"refused|host", "refused or host", "whether the chip computes in float64"),
    }
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of a chip's arithmetic with its value.

    `when` and `unless` are for the formats of float32: only where PyTorch's own switch allows a
    reduced one ("allowed"), and not while an environment variable has a value ("NAME=VALUE").
    """

    key: str
    value: str
    fact: Fact
    when: str = "always"
    unless: str = ""

    @property
    def by_hand(self) -> bool:
        return self.fact.source == BY_HAND

    @property
    def text(self) -> str:
        return f"{self.key}={self.value}"

    @property
    def said(self) -> str:
        """The value and its conditions, for people."""
        allowed = ", where PyTorch allows it" if self.when == "allowed" else ""
        return f"{self.value}{allowed}" + (f", unless {self.unless}" if self.unless else "")


class Row(TypedDict):
    """A setting in the summary of a run; `tier` and `source` are the fact's."""

    key: str
    value: str
    by_hand: bool
    when: str
    unless: str
    tier: str
    source: str


@dataclass(frozen=True)
class Arithmetic:
    """All settings of a chip in a run; without any, the host's arithmetic."""

    settings: tuple[Setting, ...] = ()

    @property
    def by_hand(self) -> tuple[str, ...]:
        """What was set by hand, as `KEY=VALUE`."""
        return tuple(setting.text for setting in self.settings if setting.by_hand)

    def value(self, key: str) -> str | None:
        """What `key` is set to; None: as the host."""
        return next((s.value for s in self.settings if s.key == key), None)

    def rows(self) -> list[Row]:
        """The settings as plain data."""
        return [
            {
                "key": s.key,
                "value": s.value,
                "by_hand": s.by_hand,
                "when": s.when,
                "unless": s.unless,
                "tier": s.fact.tier,
                "source": s.fact.source,
            }
            for s in self.settings
        ]

    def native(self) -> dict[str, int | str]:
        """The settings as numbers, for the native core; only what differs from the host's."""
        given: dict[str, int | str] = {}
        for setting in self.settings:
            given.update(_native(setting))
        return given


def parse(text: str) -> Setting:
    """Read `KEY=VALUE`, as set by hand. Raises UsageError."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key or not value:
        raise UsageError(f"--arith {text!r}: expected KEY=VALUE, such as accumulate=fp16")
    if key not in KEYS:
        raise UsageError(f"--arith {text!r}: unknown key {key!r}{_near(key)}")
    problem = _problem(key, value)
    if problem:
        raise UsageError(f"--arith {text!r}: {problem}")
    return Setting(key, value, Fact(value, "text", "assumed", BY_HAND))


def resolve(stated: Iterable[Setting], by_hand: Iterable[str]) -> Arithmetic:
    """A chip's own settings, those set by hand in their place. Raises UsageError."""
    chosen = {setting.key: setting for setting in stated}
    seen: dict[str, str] = {}
    for text in by_hand:
        setting = parse(text)
        if seen.setdefault(setting.key, setting.value) != setting.value:
            raise UsageError(
                f"--arith {setting.key} is given twice, as {seen[setting.key]} and {setting.value};"
                " give it once"
            )
        chosen[setting.key] = setting
    return Arithmetic(tuple(chosen[key] for key in KEYS if key in chosen))


def read(table: Table, context: Context) -> tuple[Setting, ...]:
    """The table `[arithmetic]` of a chip file. Raises ChipFileError."""
    settings = {}
    for key in table.names():
        if key not in KEYS:
            break
        row = table.table(key, required=True)
        when = row.choose("when", WHEN) if "when" in row.names() else WHEN[0]
        unless: str = row.take("unless", str, "")
        fact = read_fact(row, "text", context)
        problem = _problem(key, str(fact.value))
        if problem:
            raise row.fail("value", problem)
        if not key.endswith(".float32") and (unless or when != WHEN[0]):
            raise row.fail("when", "only the formats of float32 have 'when' and 'unless'")
        if unless and not _UNLESS.fullmatch(unless):
            raise row.fail("unless", f"{unless!r} is not NAME=VALUE of a variable")
        settings[key] = Setting(key, str(fact.value), fact, when, unless)
    table.close(KEYS)
    return tuple(settings[key] for key in KEYS if key in settings)


def _near(key: str) -> str:
    return nearest(key, KEYS) or f"; expected one of {', '.join(KEYS)}"


def _problem(key: str, value: str) -> str:
    """What is wrong with a value; empty when nothing is."""
    form = KEYS[key]
    match = re.fullmatch(form.pattern, value, re.ASCII)
    number = match[1] if match and match.re.groups else None
    if match and (number is None or form.low <= int(number) <= form.high):
        return ""
    return f"{value!r} is not a value of {key}; expected {form.expected}"


def _native(setting: Setting) -> dict[str, int | str]:
    """One setting as the native core's fields (native/arithmetic.h)."""
    key, value = setting.key, setting.value
    if key in ("matmul.float32", "convolution.float32"):
        return _native_format(setting)
    if key == "accumulate":
        name, _, rest = value.partition(":")
        chunk, _, narrow = rest.partition(":")
        narrow = (narrow or "fp16") if name == "chunked" else name
        formats = {"fp32": 0, "fp16": 1, "bf16": 2}
        return {"accumulate": formats[narrow], "chunk": int(chunk or 0)}
    if key == "flush_to_zero":
        return {"flush_to_zero": value == "true"}
    if key == "rounding":
        name, _, seed = value.partition(":")
        return {"stochastic": name == "stochastic", "seed": int(seed or 0)}
    if key == "float64":
        return {}  # by the formats that the chip lacks
    return {key: int(value)}


def _native_format(setting: Setting) -> dict[str, int | str]:
    name = setting.key.partition(".")[0]
    products = _PARTS.get(setting.value, 1)
    named = {"ieee": MANTISSA, "tf32": 10, **dict.fromkeys(_PARTS, 7)}
    bits = named[setting.value] if setting.value in named else int(setting.value)
    variable, _, off = setting.unless.partition("=")
    given: dict[str, int | str] = {
        f"{name}_when": 1 + WHEN.index(setting.when),
        f"{name}_bits": bits,
        f"{name}_products": products,
        f"{name}_variable": variable,
        f"{name}_off": off,
    }
    if name == "matmul" and setting.by_hand:
        given["attention_too"] = 1
    return given
