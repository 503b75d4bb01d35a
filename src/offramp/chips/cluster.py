"""Clusters: chips in nodes, the links inside a node, the networks between nodes.

Ranks are numbered node by node. Every figure is a fact with unit, tier and source. What a cluster
file leaves out comes from the chip's file, then from `clusters/defaults.toml`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from offramp.chips.facts import Fact
from offramp.errors import UsageError

# topology -> what it means for the chips that a link joins
TOPOLOGIES = {
    "switch": "every chip reaches every other at its full bandwidth",
    "mesh": "point to point: a chip's bandwidth is divided over its links, one to each neighbour",
    "ring": "each chip has links to two neighbours",
    "torus": "a ring in each of two or three dimensions",
    "host": "through PCIe and the host, without links of the chips' own",
}


@dataclass(frozen=True, slots=True)
class Link:
    """What joins the chips of a node.

    `bandwidth`: bytes/s that one chip sends, in one direction, over all its `links` together.
    `reach`: how many chips with adjacent ranks it joins; more than a node's where it joins nodes.
    `latency`: seconds a step; None: what the link's family has. `costs_file`: where curves of
    collectives measured on this link are; empty: nowhere.
    """

    name: str
    topology: Fact
    bandwidth: Fact
    reach: int
    links: int = 1
    latency: Fact | None = None
    costs_file: str = ""


@dataclass(frozen=True, slots=True)
class Network:
    """What joins nodes.

    `bandwidth`: bytes/s in one direction that each chip gets while all chips of its node send, as
    they do in programs that all ranks run alike. `oversubscription`: by how much the ports of all
    nodes exceed what the network carries at once.
    """

    name: str
    bandwidth: Fact
    oversubscription: float = 1.0
    latency: Fact | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes of one kind. `host` is the way between chips of a node that `link` does not join.

    `chip_file`: where the chip was read from; empty: it is the catalogue's.
    """

    chip: str
    count: int
    chips_per_node: int
    link: Link
    host: Link
    network: Network
    chip_file: str = ""

    @property
    def chips(self) -> int:
        return self.count * self.chips_per_node


@dataclass(frozen=True, slots=True)
class Spread:
    """Where some ranks are.

    `nodes`: nodes that hold at least one; `per_node`: how many each holds. `domains`: how many
    are in each set of chips joined by one of `links`. `network` joins the domains; None where
    there is one. `grid`: every domain holds as many, at the same places.
    """

    ranks: int
    nodes: int
    per_node: tuple[int, ...]
    domains: tuple[int, ...]
    grid: bool
    links: tuple[Link, ...]
    network: Network | None


@dataclass(frozen=True)
class Cluster:
    """Groups of nodes; `network` joins nodes of different groups."""

    title: str
    groups: tuple[Group, ...]
    network: Network

    @classmethod
    def read(cls, path: Path) -> Cluster:
        """The cluster of one TOML file, read strictly. Raises ChipFileError, UnknownNameError."""
        from offramp.chips.clusters.reading import read_cluster

        return read_cluster(path)

    @classmethod
    def of(cls, chip: str, nodes: int = 1, per_node: int | None = None) -> Cluster:
        """`nodes` nodes of one chip of the catalogue, `per_node` chips each. Raises UsageError."""
        from offramp.chips.clusters.reading import plain_cluster

        return plain_cluster(chip, nodes, per_node)

    @cached_property
    def world_size(self) -> int:
        return sum(group.chips for group in self.groups)

    @property
    def node_count(self) -> int:
        """Nodes of all groups."""
        return sum(group.count for group in self.groups)

    @cached_property
    def _first_ranks(self) -> list[int]:
        """The first rank of each group."""
        return [0, *accumulate(group.chips for group in self.groups)][:-1]

    @cached_property
    def _first_nodes(self) -> list[int]:
        return [0, *accumulate(group.count for group in self.groups)][:-1]

    def group_of(self, rank: int) -> Group:
        """The group of nodes that holds `rank`. Raises UsageError."""
        return self.groups[self._locate(rank)[0]]

    def node_of(self, rank: int) -> int:
        """The number of the node that holds `rank`, over all groups. Raises UsageError."""
        index, offset = self._locate(rank)
        return self._first_nodes[index] + offset // self.groups[index].chips_per_node

    def local_rank(self, rank: int) -> int:
        """The place of `rank` in its node. Raises UsageError."""
        index, offset = self._locate(rank)
        return offset % self.groups[index].chips_per_node

    def path(self, one: int, other: int) -> Link | Network | None:
        """What data crosses from rank to rank; None when they are the same. Raises UsageError."""
        if one == other:
            self._locate(one)
            return None
        spread = self.spread((one, other))
        return spread.network if spread.network is not None else spread.links[0]

    def spread(self, ranks: Sequence[int]) -> Spread:
        """Where `ranks` are. Raises UsageError for none, a repeated one, or one not in the world.

        Where a link joins fewer chips than a node has, ranks beyond its reach meet through the
        host.
        """
        if not ranks:
            raise UsageError("no ranks were given; expected at least one")
        places = [self._locate(rank) for rank in ranks]
        if len(set(ranks)) != len(ranks):
            raise UsageError(f"the ranks {_shown(ranks)} are not all different")
        nodes = Counter((g, at // self.groups[g].chips_per_node) for g, at in places)
        sizes, links = {}, []
        for index in sorted({g for g, _ in places}):
            group = self.groups[index]
            link, size = group.link, max(group.link.reach, 1)
            if size < group.chips_per_node and len({(g, at // size) for g, at in places}) > 1:
                link, size = group.host, group.chips_per_node
            sizes[index] = size
            links.append(link)
        domains: dict[tuple[int, int], list[int]] = {}
        for index, offset in places:
            domain, inside = divmod(offset, sizes[index])
            domains.setdefault((index, domain), []).append(inside)
        held = {tuple(sorted(inside)) for inside in domains.values()}
        return Spread(
            ranks=len(ranks),
            nodes=len(nodes),
            per_node=tuple(nodes.values()),
            domains=tuple(len(inside) for inside in domains.values()),
            grid=len(held) == 1 and len(sizes) == 1,
            links=tuple(links),
            network=self._between(tuple(sizes)) if len(domains) > 1 else None,
        )

    def all_facts(self) -> Iterator[tuple[str, Fact]]:
        """Every fact that costs rest on, as (what of which group, fact)."""
        for group in self.groups:
            yield f"link topology of {group.chip}", group.link.topology
            yield f"link bandwidth of {group.chip}, one direction", group.link.bandwidth
            yield f"network bandwidth of {group.chip}, one direction", group.network.bandwidth

    def _between(self, indices: tuple[int, ...]) -> Network:
        """Several groups meet at the speed of the slowest port among theirs and the network's."""
        if len(indices) == 1:
            return self.groups[indices[0]].network
        choices = (self.network, *(self.groups[index].network for index in indices))
        slowest = min(choices, key=lambda network: middle(network.bandwidth))
        return replace(self.network, bandwidth=slowest.bandwidth)

    def _locate(self, rank: int) -> tuple[int, int]:
        """The group of a rank, and the rank's place in it."""
        if not 0 <= rank < self.world_size:
            raise UsageError(
                f"rank {rank} is not in the cluster; expected 0 to {self.world_size - 1}"
            )
        index = bisect_right(self._first_ranks, rank) - 1
        return index, rank - self._first_ranks[index]


def middle(fact: Fact) -> float:
    """The value of a fact, or the geometric mean of its bounds where it has none."""
    if isinstance(fact.value, int | float):
        return float(fact.value)
    low, high = fact.interval
    return float((low * high) ** 0.5)


def scaled(fact: Fact, factor: float, note: str) -> Fact:
    """`fact` times `factor`; `note` says why."""

    def times(number: object) -> float | None:
        return number * factor if isinstance(number, int | float) else None

    return replace(
        fact,
        value=times(fact.value),
        low=times(fact.low),
        high=times(fact.high),
        note=f"{fact.note}; {note}" if fact.note else note,
    )


def _shown(ranks: Sequence[int]) -> str:
    head = ", ".join(map(str, ranks[:8]))
    return f"{head}, ..." if len(ranks) > 8 else head
