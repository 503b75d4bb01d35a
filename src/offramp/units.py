"""Quantities at the edge: one strict parser, and text for people. Inside, everything is SI.

Decimal and binary prefixes are different units here: `96 GB` is 96 * 10**9 bytes, `96 GiB` is
96 * 2**30. Spelling is exact, because `Gb` and `GB` differ by a factor of eight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from types import MappingProxyType

from offramp.errors import UsageError, nearest

_DECIMAL = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?)\s*([^\s0-9].*)?", re.ASCII)


class UnitError(UsageError):
    """A quantity that cannot be read: the message has what was given and what is expected."""


def _prefixed(symbol: str, prefixes: str = "kMGTPE") -> dict[str, Decimal]:
    return {f"{p}{symbol}": Decimal(10) ** _DECIMAL[p] for p in ("", *prefixes)}


def _bytes(suffix: str = "") -> dict[str, Decimal]:
    binary = {f"{p}B{suffix}": Decimal(2) ** power for p, power in _BINARY.items()}
    return _prefixed(f"B{suffix}") | binary


# Dimension -> unit -> size in the dimension's base unit (the entry of size one).
DIMENSIONS: Mapping[str, Mapping[str, Decimal]] = MappingProxyType(
    {
        "bytes": _bytes(),
        "bytes/s": _bytes("/s") | {u: n / 8 for u, n in _prefixed("bit/s").items()},
        "flop/s": _prefixed("FLOP/s"),
        "op/s": _prefixed("OP/s"),
        "seconds": {"s": Decimal(1), "ms": Decimal("1e-3"), "us": Decimal("1e-6")}
        | {"ns": Decimal("1e-9"), "min": Decimal(60), "h": Decimal(3600)},
        "watts": _prefixed("W", "kM"),
        "hertz": _prefixed("Hz", "kMG"),
        "mm2": {"mm2": Decimal(1)},
        "USD": {"USD": Decimal(1)},
    }
)
_BASE = {name: next(u for u, n in units.items() if n == 1) for name, units in DIMENSIONS.items()}
_EXAMPLE = {
    "bytes": "'2GiB' or '96 GB'",
    "bytes/s": "'4 TB/s'",
    "flop/s": "'123 TFLOP/s'",
    "op/s": "'246 TOP/s'",
    "seconds": "'1.5 s' or '20 ms'",
    "watts": "'400 W'",
    "hertz": "'1700 MHz'",
    "mm2": "'826 mm2'",
    "USD": "'12000 USD'",
}


def base_unit(dimension: str) -> str:
    """The SI (or, for die area and money, customary) unit that values of `dimension` have."""
    return _BASE[dimension]


def convert(value: float | Decimal, unit: str, dimension: str) -> float:
    """`value` in `unit`, as a number of base units; whole numbers come back as `int`.

    Raises UnitError when `unit` is not one of the dimension's, or `value` is not a finite number
    of at least zero.
    """
    units = DIMENSIONS[dimension]
    if unit not in units:
        raise UnitError(_unknown_unit(unit, dimension))
    try:
        exact = Decimal(repr(value)) if isinstance(value, int | float) else value
    except InvalidOperation as error:  # pragma: no cover - repr of a number always reads
        raise UnitError(f"{value!r} is not a number") from error
    if not exact.is_finite() or exact < 0:
        raise UnitError(f"{value} {unit} is not a finite quantity of at least zero")
    exact *= units[unit]
    return int(exact) if exact == exact.to_integral_value() else float(exact)


def parse(text: str, dimension: str) -> float:
    """Read a quantity such as `4 TB/s`: a plain number, optional blanks, and an exact unit.

    Returns base units of `dimension` (a key of DIMENSIONS). Raises UnitError.
    """
    expected = f"expected {_EXAMPLE[dimension]}"
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise UnitError(f"cannot read {text!r}; {expected}")
    number, unit = match.groups()
    if unit is None:
        raise UnitError(f"{text!r} has no unit; {expected}")
    if unit not in DIMENSIONS[dimension]:
        raise UnitError(f"cannot read {text!r}: {_unknown_unit(unit, dimension)}; {expected}")
    return convert(Decimal(number), unit, dimension)


def parse_bytes(text: str) -> int:
    """A memory size in bytes, such as `2GiB` or `500 MB`; at least one byte, and whole bytes."""
    size = parse(text, "bytes")
    if not isinstance(size, int) or size < 1:
        raise UnitError(f"{text!r} is not a whole, positive number of bytes; expected '2GiB'")
    return size


def _unknown_unit(unit: str, dimension: str) -> str:
    for name, units in DIMENSIONS.items():
        if unit in units:
            return f"{unit!r} is a unit of {name}, not of {dimension}"
    known = DIMENSIONS[dimension]
    folded = [u for u in known if u.lower() in (unit.lower(), f"{unit.lower()}b")]
    if len(unit) == 1 and dimension == "bytes" and unit.upper() in "KMGTP":
        folded = [u for u in known if u.lower() in (f"{unit.lower()}b", f"{unit.lower()}ib")]
    hint = f"; did you mean {' or '.join(map(repr, folded))}?" if folded else nearest(unit, known)
    return f"{unit!r} is not a unit of {dimension}{hint}"


def format_quantity(value: float, unit: str, digits: int = 4) -> str:
    """`value` base units with the largest decimal prefix that keeps it at one or above."""
    if unit in ("mm2", "USD") or value < 1000:
        return f"{_number(value, max(digits, 6))} {unit}".rstrip()
    prefix = max((p for p in _DECIMAL if value >= 10 ** _DECIMAL[p]), key=lambda p: _DECIMAL[p])
    if unit.endswith("OP/s") and prefix in ("P", "E"):  # data sheets count in tera
        prefix = "T"
    return f"{_number(value / 10 ** _DECIMAL[prefix], max(digits, 6))} {prefix}{unit}"


def format_bytes(size: float, *, binary: bool = True) -> str:
    """`2.00 GiB` (or, with `binary=False`, `2.15 GB`); sizes under 1 KiB are exact."""
    step, prefixes = (1024, ("Ki", "Mi", "Gi", "Ti", "Pi")) if binary else (1000, tuple("kMGTP"))
    if size < step:
        return f"{size:.0f} B"
    power = 1
    while power < len(prefixes) and size >= step ** (power + 1):
        power += 1
    return f"{size / step**power:.2f} {prefixes[power - 1]}B"


def format_flops(rate: float, unit: str = "FLOP/s") -> str:
    """A rate of operations, `123 TFLOP/s`."""
    return format_quantity(rate, unit)


def format_count(count: float) -> str:
    """A count with separators, `1,234`."""
    return f"{count:,.0f}"


def format_seconds(seconds: float) -> str:
    """A duration in the unit that reads best: `12.3 us`, `45.6 ms`, `7.89 s`, `3 min 05 s`."""
    if seconds >= 60:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _number(value: float, digits: int) -> str:
    text = f"{value:,.{digits}g}" if value < 1e6 else f"{value:,.0f}"
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
