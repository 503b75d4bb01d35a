"""Constants of the cost models: one file a family of chips, over general ones for every chip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from offramp import units
from offramp.chips.reading import Context, Table, read_trust
from offramp.costs.cost import Span

DATA = Path(__file__).parent / "data"
GENERAL = "general"

# Section.key -> dimension: one of units.DIMENSIONS, or a number's own unit. docs/costs.md tells
# what each means; every entry of a file says so in its note.
KEYS: Mapping[str, str] = MappingProxyType(
    {
        "products.peak_share": "1",
        "products.vector_share": "1",
        "products.narrow_share": "1",
        "products.measured_share": "1",
        "products.full_energy": "pJ",
        "products.power_exponent": "1",
        "products.ramp": "elements",
        "products.cores": "cores",
        "products.unknown_waves": "1",
        "attention.forward_share": "1",
        "attention.backward_share": "1",
        "attention.vendor_forward_share": "1",
        "attention.vendor_backward_share": "1",
        "attention.efficient_share": "1",
        "attention.causal_share": "1",
        "attention.softmax_width": "elements",
        "attention.ramp": "elements",
        "memory.pointwise_share": "1",
        "memory.reduction_share": "1",
        "memory.strided_share": "1",
        "memory.gather_share": "1",
        "memory.scatter_share": "1",
        "memory.kernel": "seconds",
        "memory.ramp": "seconds",
        "memory.balance": "FLOP/B",
        "links.host_share": "1",
        "links.peer_share": "1",
        "links.host_bandwidth": "bytes/s",
        "formats.float32_of_half": "1",
        "formats.half_of_float8": "1",
        "formats.float64_of_float32": "1",
        "overlap.slowdown": "1",
        "host.operator": "seconds",
        "host.view": "seconds",
        "host.listed": "seconds",
        "host.collective": "seconds",
        "host.readback": "seconds",
    }
)
_SECTIONS = tuple(dict.fromkeys(key.partition(".")[0] for key in KEYS))
_CONSTANT_KEYS = ("value", "low", "high", "unit", "tier", "source", "note")
_TOP_KEYS = ("title", "chips", "sources", "tiles", *_SECTIONS)


@dataclass(frozen=True, slots=True)
class Tile:
    """A block of the result that one multiprocessor computes, and its rate over the best one's."""

    rows: int
    columns: int
    share: float


@dataclass(frozen=True)
class Constants:
    """The constants that hold for a chip: its family's where there are any, else general ones."""

    family: str
    spans: Mapping[str, Span]
    tiles: tuple[Tile, ...]

    def __getitem__(self, key: str) -> Span:
        return self.spans[key]

    def over(self, spans: Mapping[str, Span]) -> Constants:
        """These, with some of one machine's own in their place."""
        return Constants("this machine", {**self.spans, **spans}, self.tiles)


@dataclass(frozen=True)
class _File:
    name: str
    chips: tuple[str, ...]
    spans: Mapping[str, Span]
    tiles: tuple[Tile, ...]
    sources: Mapping[str, str]


@cache
def families() -> Mapping[str, tuple[str, ...]]:
    """The chips of each family, by the family's name."""
    return {name: read(DATA / f"{name}.toml").chips for name in _names() if name != GENERAL}


@cache
def for_chip(name: str) -> Constants:
    """The constants for the chip of that name."""
    general = read(DATA / f"{GENERAL}.toml")
    for family, chips in families().items():
        if name in chips:
            own = read(DATA / f"{family}.toml")
            return Constants(family, {**general.spans, **own.spans}, own.tiles or general.tiles)
    return Constants(GENERAL, general.spans, general.tiles)


def read(path: Path) -> _File:
    """Read one file of constants strictly. Raises ChipFileError (file, key, expectation)."""
    return read_table(Table.of_file(path, "a file of constants"))


def read_table(top: Table) -> _File:
    """The constants of a file of which nothing else is left. Raises ChipFileError."""
    path = top.path
    sources = top.table("sources", required=True)
    context = Context(path, {key: sources.take(key, str) for key in sources.names()}, {})
    top.take("title", str)
    chips = top.texts("chips", [])
    spans: dict[str, Span] = {}
    for section in _SECTIONS:
        table = top.table(section)
        known = [key.partition(".")[2] for key in KEYS if key.startswith(f"{section}.")]
        for key in [name for name in known if name in table.names()]:
            row = table.table(key, required=True)
            spans[f"{section}.{key}"] = read_constant(row, KEYS[f"{section}.{key}"], context)
        table.close(known)
    tiles = _tiles(top.table("tiles"), context)
    top.close(_TOP_KEYS)
    if path.stem == GENERAL and (set(spans) != set(KEYS) or not tiles):
        raise top.fail("", f"missing {sorted(set(KEYS) - set(spans)) or 'tiles'}")
    return _File(path.stem, chips, MappingProxyType(spans), tiles, context.sources)


def _names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in DATA.glob("*.toml")))


def read_constant(table: Table, dimension: str, context: Context) -> Span:
    """value, low and high in the stated unit, with tier, source and note, all required."""
    tier, _ = read_trust(table, context)
    if not table.take("note", str):
        raise table.fail("note", "empty; expected the physical meaning")
    unit: str = table.take("unit", str)
    numbers = [float(table.take(key, (int, float))) for key in ("value", "low", "high")]
    if dimension in units.DIMENSIONS:
        try:
            numbers = [float(units.convert(n, unit, dimension)) for n in numbers]
        except units.UnitError as error:
            raise table.fail("unit", str(error)) from error
    elif unit != dimension:
        raise table.fail("unit", f"{unit!r} is not {dimension!r}")
    table.close(_CONSTANT_KEYS)
    value, low, high = numbers
    if not 0 <= low <= value <= high:
        raise table.fail("low", "low, value and high are not in rising order")
    return Span(value, low, high, tier)


def _tiles(table: Table, context: Context) -> tuple[Tile, ...]:
    if not table.names():
        return ()
    read_trust(table, context)
    if not table.take("note", str):
        raise table.fail("note", "empty; expected the physical meaning")
    rows: list[Any] = table.take("sizes", list)
    table.close(("sizes", "tier", "source", "note"))
    tiles = []
    for row in rows:
        whole = isinstance(row, list) and len(row) == 3
        if not whole or not (row[0] >= 1 and row[1] >= 1 and 0 < row[2] <= 1):
            raise table.fail("sizes", f"{row!r} is not [rows, columns, share up to 1]")
        tiles.append(Tile(int(row[0]), int(row[1]), float(row[2])))
    return tuple(tiles)
