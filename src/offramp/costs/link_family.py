"""What collective libraries reach on a kind of link: one TOML file a family in `links/`.

A family is found by the name of a link or network. Bandwidth reached is stated beside the nominal
one it was reached on, both in one direction, so that their ratio holds for other sizes of the
family.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple

from offramp.chips.cluster import middle
from offramp.chips.facts import TIERS, Fact, Tier
from offramp.chips.reading import ChipFileError, Context, Table, read_fact, read_trust

DATA = Path(__file__).parent / "links"
ALGORITHMS = {
    "ring": "every rank passes chunks to the next; nodes and network work at the same time",
    "tree": "chains inside nodes, two binary trees between them",
    "switch": "the switch itself adds up; trees between nodes",
    "hierarchical": "inside nodes all at once, then halving and doubling between them",
}
_KEYS = (
    *("names", "sources", "algorithms", "measured", "ring", "switch", "tree_share", "protocol"),
    "peers",
)


class Range(NamedTuple):
    """A figure and its interval; `fast` is the end that costs less time."""

    slow: float
    value: float
    fast: float


@dataclass(frozen=True, slots=True)
class Protocol:
    """One way of moving data: its share of the bandwidth, and seconds of latency.

    `base`: once a collective, with the start of its kernel. `step`: a hop of a ring;
    `tree_step`: a hop of a tree.
    """

    name: str
    share: float
    base: Range
    step: Range
    tree_step: Range
    tier: Tier


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of link: shares of the nominal bandwidth that rings and switches reach.

    `nominal`: bytes/s of one chip, one direction, where the share of a ring was reached.
    `switch_latency`: seconds a collective that the switch adds up takes beside moving data.
    `peers`: messages that an all-to-all has under way at once. `measured`: a cluster's figures are
    those of programs that ran on it, and no factor of training applies.
    """

    name: str
    patterns: tuple[str, ...]
    algorithms: tuple[str, ...]
    ring: Range
    nominal: float
    switch: Range | None
    switch_latency: Range
    tree_share: float
    protocols: tuple[Protocol, ...]
    peers: int
    tier: Tier
    measured: bool = False

    def protocol(self, name: str) -> Protocol:
        """The protocol of that name, or the last one of the file, which has the full bandwidth."""
        return next((p for p in self.protocols if p.name == name), self.protocols[-1])


def weakest(*tiers: Tier) -> Tier:
    """The tier that deserves the least trust."""
    order = list(TIERS)
    return max(tiers, key=order.index)


def rate_range(fact: Fact) -> Range:
    """A bandwidth as a range: the high end is the fast one."""
    low, high = fact.interval
    return Range(low, middle(fact), high)


def time_range(fact: Fact) -> Range:
    """A latency as a range: the low end is the fast one."""
    low, high = fact.interval
    return Range(high, middle(fact), low)


def find(name: str, folder: Path = DATA) -> Family:
    """The family whose patterns fit a link's name, letters' case aside; else the general one."""
    families = read_folder(folder)
    for family in families:
        if any(fnmatchcase(name.lower(), pattern) for pattern in family.patterns):
            return family
    return next(family for family in families if not family.patterns)


@cache
def read_folder(folder: Path) -> tuple[Family, ...]:
    """Every family of a folder, by file name. Raises ChipFileError."""
    return tuple(read(path) for path in sorted(folder.glob("*.toml")))


def read(path: Path) -> Family:
    """Read one family strictly. Raises ChipFileError."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ChipFileError(path, "", f"cannot be read: {error}") from error
    top = Table(path, data)
    sources = top.table("sources", required=True)
    context = Context(path, {key: sources.take(key, str) for key in sources.names()}, {})
    patterns = top.texts("names")
    algorithms = top.texts("algorithms")
    for name in algorithms:
        if name not in ALGORITHMS:
            raise top.fail("algorithms", f"{name!r} is not one of {', '.join(ALGORITHMS)}")
    ring, nominal, tier = _read_share(top.table("ring", required=True), context)
    switch, switch_latency = None, Range(0.0, 0.0, 0.0)
    if "switch" in algorithms:
        table = top.table("switch", required=True)
        latency = read_fact(table.table("latency", required=True), "seconds", context)
        switch_latency = time_range(latency)
        switch, _, _ = _read_share(table, context)
    protocols = tuple(_read_protocol(row, context) for row in top.tables("protocol"))
    if not protocols:
        raise top.fail("protocol", "missing; expected at least one [[protocol]]")
    family = Family(
        path.stem,
        patterns,
        algorithms,
        ring,
        nominal,
        switch,
        switch_latency,
        _share(top, "tree_share", 1.0),
        protocols,
        top.take("peers", int, 8),
        tier,
        top.take("measured", bool, False),
    )
    top.close(_KEYS)
    return family


def _read_share(table: Table, context: Context) -> tuple[Range, float, Tier]:
    """Bandwidth `reached` over the `nominal` one that it was reached on."""
    reached = read_fact(table.table("reached", required=True), "bytes/s", context)
    nominal = read_fact(table.table("nominal", required=True), "bytes/s", context)
    table.close(("reached", "nominal"))
    whole = middle(nominal)
    share = Range(*(number / whole for number in rate_range(reached)))
    if not 0 < share.slow <= share.fast <= 1:
        raise table.fail("reached", "expected more than nothing and at most the nominal bandwidth")
    return share, whole, weakest(reached.tier, nominal.tier)


def _read_protocol(row: Table, context: Context) -> Protocol:
    base, step, tree_step = (
        time_range(read_fact(row.table(key, required=True), "seconds", context))
        for key in ("base", "step", "tree_step")
    )
    tier, _ = read_trust(row, context)
    name, share = row.take("name", str), _share(row, "share", 1.0)
    protocol = Protocol(name, share, base, step, tree_step, tier)
    row.close(("name", "share", "base", "step", "tree_step", "tier", "source"))
    return protocol


def _share(table: Table, name: str, default: float) -> float:
    share = float(table.take(name, (int, float), default))
    if not 0 < share <= 1:
        raise table.fail(name, f"{share:g} is not a share above 0 and up to 1")
    return share
