"""Strict reading of cluster files, and what fills the places that a file leaves open.

An order holds for every part: the cluster file, then the row of `defaults.toml` that names the
chip, then the chip's own file, then the row for any chip, which is `assumed` with an interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from offramp.chips import catalogue
from offramp.chips.catalogue import Chip
from offramp.chips.cluster import TOPOLOGIES, Cluster, Group, Link, Network, scaled
from offramp.chips.facts import Fact
from offramp.chips.host import PROBES
from offramp.chips.reading import Context, Table, read_fact
from offramp.errors import UsageError

DEFAULTS = Path(__file__).parent / "defaults.toml"
_LINK_KEYS = ("name", "topology", "bandwidth", "reach", "links", "latency", "costs")
_NETWORK_KEYS = ("name", "bandwidth", "per", "rails", "oversubscription", "latency")
_PER = ("chip", "node", "rail")


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of the defaults; what it does not say is None."""

    patterns: tuple[str, ...]
    name: str | None = None
    topology: str | None = None
    links: int | None = None
    reach: int | None = None
    bandwidth: Fact | None = None

    def fits(self, text: str) -> bool:
        return any(fnmatchcase(text.lower(), pattern.lower()) for pattern in self.patterns)


@dataclass(frozen=True, slots=True)
class _Defaults:
    topologies: tuple[_Row, ...]
    links: tuple[_Row, ...]
    networks: tuple[_Row, ...]
    host: Fact


def plain_cluster(chip: str, nodes: int, per_node: int | None) -> Cluster:
    """Nodes of one chip with everything else from the chip's file and the defaults."""
    found = catalogue.load(chip)
    if nodes < 1:
        raise UsageError(f"{nodes} is not a positive number of nodes")
    size = _chips_per_node(found, per_node)
    link = _default_link(found, size)
    group = Group(found.name, nodes, size, link, _host(found, size), _default_network(found))
    title = f"{nodes} {'node' if nodes == 1 else 'nodes'} of {size} {found.title}"
    return Cluster(title, (group,), group.network)


def read_cluster(path: Path) -> Cluster:
    """The cluster of one file. Raises ChipFileError (file, key, expectation)."""
    top, context = _open(path)
    title: str = top.take("title", str)
    groups = tuple(_read_group(row, context) for row in top.tables("nodes"))
    if not groups:
        raise top.fail("nodes", "missing; expected at least one [[nodes]] with chip and count")
    network = groups[0].network
    if "network" in top.names():
        size = min(group.chips_per_node for group in groups)
        network = _read_network(top.table("network"), context, size)
    elif len(groups) > 1:
        names = " and ".join(f"nodes[{i}] ({g.chip})" for i, g in enumerate(groups))
        raise top.fail("network", f"missing; expected the network that joins {names}")
    top.close(("title", "sources", "nodes", "network"))
    return Cluster(title, groups, network)


def _open(path: Path) -> tuple[Table, Context]:
    top = Table.of_file(path, "a cluster file")
    sources = top.table("sources")
    return top, Context(path, {key: sources.take(key, str) for key in sources.names()}, PROBES)


def _read_group(row: Table, context: Context) -> Group:
    chip, chip_file = _chip(row)
    count = _positive(row, "count", "a positive number of nodes")
    given = None
    if "chips_per_node" in row.names():
        given = _positive(row, "chips_per_node", "a positive number of chips")
    try:
        size = _chips_per_node(chip, given)
    except UsageError as error:
        raise row.fail("chips_per_node", str(error)) from error
    link, network = _default_link(chip, size), _default_network(chip)
    if "link" in row.names():
        link = _read_link(row.table("link"), context, link, size)
    if "network" in row.names():
        network = _read_network(row.table("network"), context, size)
    row.close(("chip", "count", "chips_per_node", "link", "network"))
    return Group(chip.name, count, size, link, _host(chip, size), network, chip_file)


def _chip(row: Table) -> tuple[Chip, str]:
    """The chip, and the absolute path of its file where it has one of its own."""
    name: str = row.take("chip", str)
    if name.endswith(".toml"):
        beside = row.path.parent / name
        name = str((beside if beside.exists() else Path(name)).absolute())
    try:
        return catalogue.load(name), name if name.endswith(".toml") else ""
    except UsageError as error:  # an unknown name, or a chip file with an error of its own
        raise row.fail("chip", str(error)) from error


def _positive(table: Table, name: str, what: str) -> int:
    number: int = table.take(name, int)
    if number < 1:
        raise table.fail(name, f"{number} is not {what}")
    return number


def _chips_per_node(chip: Chip, given: int | None) -> int:
    most = chip.chips_per_node
    if given is None:
        if most is None:
            raise UsageError(
                f"how many {chip.name} a node has is not known; say it with --per-node, or as"
                " chips_per_node in a cluster file"
            )
        return most
    if given < 1:
        raise UsageError(f"{given} is not a positive number of chips per node")
    if most is not None and given > most:
        raise UsageError(f"{given} chips a node; a node of {chip.name} has at most {most}")
    return given


def _read_link(table: Table, context: Context, default: Link, size: int) -> Link:
    """A link in a cluster file: its bandwidth at least."""
    topology = default.topology
    if "topology" in table.names():
        topology = Fact(table.choose("topology", TOPOLOGIES), "text", "vendor", str(context.path))
    bandwidth = _fact(table, "bandwidth", "bytes/s", context)
    reach, links = table.optional("reach", int), table.optional("links", int)
    for key, number in (("reach", reach), ("links", links)):
        if number is not None and number < 1:
            raise table.fail(key, f"{number} is not a positive number")
    reach = default.reach if reach is None else reach
    if links is None:
        kept = topology.value == default.topology.value
        links = default.links if kept else _links(str(topology.value), min(reach, size))
    name: str = table.take("name", str, default.name)
    latency = _optional_fact(table, "latency", "seconds", context)
    costs = table.optional("costs", str)
    costs_file = "" if costs is None else str((table.path.parent / costs).absolute())
    if costs_file and not Path(costs_file).is_file():
        raise table.fail("costs", f"{costs!r} is not there; expected a file beside this one")
    table.close(_LINK_KEYS)
    return Link(name, topology, bandwidth, reach, links, latency, costs_file)


def _read_network(table: Table, context: Context, size: int) -> Network:
    """A network in a cluster file; `per` says what the bandwidth is stated for."""
    name: str = table.take("name", str)
    per = table.choose("per", _PER)
    bandwidth = _fact(table, "bandwidth", "bytes/s", context)
    if per == "node":
        bandwidth = scaled(bandwidth, 1 / size, f"a node's, over {size} chips")
    elif per == "rail":
        rails = _positive(table, "rails", "a positive number of rails")
        bandwidth = scaled(bandwidth, rails / size, f"{rails} rails a node, over {size} chips")
    factor = float(table.take("oversubscription", (int, float), 1.0))
    if factor < 1:
        raise table.fail("oversubscription", f"{factor:g} is not a number of at least 1")
    latency = _optional_fact(table, "latency", "seconds", context)
    table.close(_NETWORK_KEYS)
    return Network(name, bandwidth, factor, latency)


def _fact(table: Table, name: str, dimension: str, context: Context) -> Fact:
    row = table.table(name, required=True)
    fact = read_fact(row, dimension, context)
    if fact.interval[0] <= 0:
        raise table.fail(name, "zero; expected more, or leave the table out")
    return fact


def _optional_fact(table: Table, name: str, dimension: str, context: Context) -> Fact | None:
    if name not in table.names():
        return None
    return read_fact(table.table(name, required=True), dimension, context)


def _default_link(chip: Chip, size: int) -> Link:
    rows, text = _defaults(), _text(chip, "link_topology")
    form = next((row for row in rows.topologies if text and row.fits(text)), _Row(()))
    named = next(row for row in rows.links if row.fits(chip.name))
    own = chip.facts.get("link_bandwidth")
    if named.bandwidth is not None and (named.patterns != ("*",) or own is None):
        bandwidth = named.bandwidth
    elif own is not None:
        bandwidth = scaled(own, 0.5, "half of both directions")
    else:  # a row that gives the reach or the topology only
        bandwidth = next(row.bandwidth for row in rows.links[::-1] if row.bandwidth is not None)
    if "link" not in chip.facts or bandwidth.interval[1] <= 0:
        return _host(chip, size)
    topology = _topology(chip, form.topology, named.topology)
    reach = named.reach or form.reach
    # A node with fewer chips than it could have leaves links of a mesh unused.
    joined = reach or chip.chips_per_node or size
    links = named.links or form.links or _links(str(topology.value), joined)
    reach = reach or size
    return Link(_text(chip, "link"), topology, bandwidth, reach, links)


def _topology(chip: Chip, read: str | None, taken: str | None) -> Fact:
    """The topology that the chip's file states in words, else one `taken` for it."""
    stated = chip.facts.get("link_topology")
    if taken is None and read is not None and stated is not None:
        return Fact(read, "text", stated.tier, stated.source, note=str(stated.value))
    found = taken or "switch"
    note = f"the chip's file does not say it; taken as: {TOPOLOGIES[found]}"
    return Fact(found, "text", "assumed", "reasoned in the note", note=note)


def _links(topology: str, joined: int) -> int:
    """Links a chip has, where nothing says it: one to each neighbour of the topology."""
    return {"mesh": max(joined - 1, 1), "ring": 2, "torus": 4}.get(topology, 1)


def _host(chip: Chip, size: int) -> Link:
    own = chip.facts.get("host_bandwidth")
    bandwidth = scaled(own, 0.5, "half of both directions") if own else _defaults().host
    topology = Fact("host", "text", "derived", "PCIe is the way without a link of the chip's own")
    return Link(_text(chip, "host_interface") or "PCIe", topology, bandwidth, size)


def _default_network(chip: Chip) -> Network:
    row = next(row for row in _defaults().networks if row.fits(chip.name))
    assert row.name is not None  # the reader asks for both
    assert row.bandwidth is not None
    return Network(row.name, row.bandwidth)


def _text(chip: Chip, key: str) -> str:
    return str(chip.facts[key].value) if key in chip.facts else ""


@cache
def _defaults() -> _Defaults:
    top, context = _open(DEFAULTS)
    rows: Mapping[str, tuple[_Row, ...]] = {
        kind: tuple(_read_row(row, context, kind) for row in top.tables(kind))
        for kind in ("topology", "link", "network")
    }
    host = _fact(top.table("host", required=True), "bandwidth", "bytes/s", context)
    top.close(("sources", "topology", "link", "network", "host"))
    return _Defaults(rows["topology"], rows["link"], rows["network"], host)


def _read_row(table: Table, context: Context, kind: str) -> _Row:
    patterns = (table.take("match", str),) if kind == "topology" else table.texts("chips")
    topology = table.choose("topology", TOPOLOGIES) if "topology" in table.names() else None
    row = _Row(
        patterns,
        table.take("name", str) if kind == "network" else None,
        topology,
        table.optional("links", int),
        table.optional("reach", int),
        _optional_fact(table, "bandwidth", "bytes/s", context),
    )
    table.close(("match", "chips", "name", "topology", "links", "reach", "bandwidth"))
    return row
