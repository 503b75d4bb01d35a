"""What collectives take on the links of a cluster.

The cheapest of the algorithms (`algorithms.py`) and protocols that the library of the link has is
taken, as the libraries themselves do. Figures of links come from the cluster, what libraries reach
on them from the files in `links/`; the interval of a cost is that of all of them at once.

[Note: links of a mesh] Where chips are joined point to point, a chip's bandwidth is divided over
its links. A pair of chips has one of them; k chips have k-1 of each other's, all busy at once in
rings laid over them and in an all-to-all. So groups of two on a mesh of eight get a seventh.

[Note: ports] All chips of a node are taken to communicate at the same time, as they do where each
rank runs the same program: a rank alone in its node gets its chip's share of the ports, no more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from offramp.chips.cluster import Cluster, Link, Network, Spread
from offramp.chips.facts import Tier
from offramp.costs import measured
from offramp.costs.algorithms import NAMES, PAIRED, Case, Hop, Shape, offered, seconds, sent
from offramp.costs.cost import Cost
from offramp.costs.link_family import DATA, Family, find, rate_range, time_range, weakest
from offramp.costs.training import NONE, Factors, of_links
from offramp.errors import OfframpError, UsageError, nearest
from offramp.units import format_quantity

_FIELDS = {
    "collective": str,
    "bytes": int,
    "dtype": str,
    "group": int,
    "peer": int,
    "on_host": bool,
}
_ENDS = (0, 1, 2)  # slow, value, fast: the places of a Range
_HOST = "gloo"


@dataclass(frozen=True, slots=True)
class Collective:
    """One call of a collective by its signature.

    `bytes`: this rank's larger buffer (all_gather: the gathered output; reduce_scatter: the whole
    input; gather, scatter: what the root holds). `group`: index of the tape's groups. `peer`: the
    other's global rank, -1 where there is none. `on_host`: tensors of the CPU.
    """

    name: str
    bytes: int
    dtype: str = ""
    group: int = 0
    peer: int = -1
    on_host: bool = False

    @classmethod
    def parse(cls, text: str) -> Collective:
        """From JSON, `{"collective": "all_gather", "bytes": ...}`. Raises OfframpError."""
        try:
            data = json.loads(text)
        except ValueError:
            data = None
        if (
            not isinstance(data, dict)
            or data.keys() != _FIELDS.keys()
            or any(type(data[field]) is not kind for field, kind in _FIELDS.items())
        ):
            form = ", ".join(f"{field} ({kind.__name__})" for field, kind in _FIELDS.items())
            raise OfframpError(f"{text!r} is not a collective; expected JSON with {form}")
        found = cls(*(data[field] for field in _FIELDS))
        if found.bytes < 0:
            raise OfframpError(f"{text!r}: {found.bytes} is not a number of bytes")
        if found.name not in NAMES:
            raise OfframpError(f"unknown collective {found.name!r}{nearest(found.name, NAMES)}")
        return found


@dataclass(frozen=True, slots=True)
class _Wiring:
    """What joins a group's ranks, with what libraries reach on it."""

    spread: Spread
    links: tuple[tuple[Link, Family], ...]
    network: tuple[Network, Family] | None

    @property
    def shape(self) -> Shape:
        domains = self.spread.domains
        return Shape(self.spread.ranks, len(domains), max(domains), min(domains))

    @property
    def families(self) -> tuple[Family, ...]:
        return tuple(family for _, family in self.links)

    @property
    def is_host(self) -> bool:
        """Whether the ranks are processes of a processor, between which gloo was measured."""
        return all(f.measured and link.name.endswith(_HOST) for link, f in self.links)

    @property
    def algorithms(self) -> list[str]:
        """Those that the libraries of all links have; rings where they have none in common."""
        first, *rest = self.families
        shared = [a for a in first.algorithms if all(a in f.algorithms for f in rest)]
        return shared or ["ring"]

    @property
    def tier(self) -> Tier:
        """The weakest of the tiers that a cost on this wiring rests on."""
        tiers: list[Tier] = []
        if self.shape.most > 1:
            for link, _ in self.links:
                tiers += [link.bandwidth.tier, link.topology.tier]
        if self.network is not None:
            tiers += [self.network[0].bandwidth.tier, self.network[1].tier]
        return weakest(*tiers, *(f.tier for f in self.families))


class Links:
    """Costs of collectives on one cluster; each is worked out once.

    `folder`: the link families to use. `factors`: what they are in training.
    """

    def __init__(self, cluster: Cluster, folder: Path = DATA, factors: Factors = NONE) -> None:
        self.cluster, self._folder, self._factors = cluster, folder, factors
        self._wirings: dict[tuple[int, ...], _Wiring] = {}
        self._costs: dict[tuple[str, int, bool, tuple[int, ...]], Cost] = {}
        self._curves: dict[str, measured.Measured | None] = {}

    def cost(self, collective: Collective, ranks: Sequence[int], rank: int | None = None) -> Cost:
        """Seconds from when the last of `ranks` is ready until the collective has ended.

        send and recv go between `rank` and the peer; without `rank`, between the two of a group
        of two, or to the dearer of the peer's neighbours in the group. Raises UsageError for
        ranks that are not in the cluster, and for a pair that cannot be told.
        """
        if collective.name not in PAIRED:
            return self._cached(collective, tuple(ranks))
        pairs = _pairs(collective, tuple(ranks), rank)
        return max((self._cached(collective, p) for p in pairs), key=lambda c: c.seconds)

    def _cached(self, collective: Collective, ranks: tuple[int, ...]) -> Cost:
        size = 0 if collective.name == "barrier" else collective.bytes
        key = (collective.name, size, collective.on_host, ranks)
        if key not in self._costs:
            self._costs[key] = self._work_out(collective.name, size, collective.on_host, ranks)
        return self._costs[key]

    def _work_out(self, name: str, size: int, on_host: bool, ranks: tuple[int, ...]) -> Cost:
        if ranks not in self._wirings:
            self._wirings[ranks] = self._wire(ranks)
        wiring = self._wirings[ranks]
        if len(ranks) == 1:
            return Cost(0.0, 0.0, 0.0, "collective", "a group of one rank moves nothing", 0.0, 0.0)
        if on_host and not wiring.is_host:
            return self._on_host(name, size, len(ranks))
        curve = self._measured(name, size, wiring)
        if curve is not None:
            return curve
        shape = wiring.shape
        choices = [
            (algorithm, protocol)
            for algorithm in wiring.algorithms
            if offered(algorithm, name, shape)
            for protocol in _protocols(wiring, algorithm)
        ]
        times = [
            [seconds(a, name, size, shape, _case(wiring, p, end)) for a, p in choices]
            for end in _ENDS
        ]
        slow, value, fast = (min(end) for end in times)
        algorithm, protocol = choices[times[1].index(value)]
        basis = _basis(wiring, algorithm, protocol, _case(wiring, protocol, 1))
        return Cost(value, fast, slow, "collective", basis, 0.0, sent(name, size, len(ranks)))

    def _measured(self, name: str, size: int, wiring: _Wiring) -> Cost | None:
        """What was measured on the link itself; None where nothing was, or ranks are beyond it."""
        files = {link.costs_file for link, _ in wiring.links}
        if wiring.network is not None or len(files) > 1 or not all(files):
            return None
        (file,) = files
        if file not in self._curves:
            self._curves[file] = measured.read(Path(file))[1]
        curves = self._curves[file]
        return None if curves is None else curves.collective(name, size, wiring.shape.ranks)

    def _wire(self, ranks: tuple[int, ...]) -> _Wiring:
        spread = self.cluster.spread(ranks)
        links = tuple((link, self._find(link.name)) for link in spread.links)
        network = spread.network
        if network is None:
            return _Wiring(spread, links, None)
        return _Wiring(spread, links, (network, self._find(network.name, between_nodes=True)))

    def _find(self, name: str, *, between_nodes: bool = False) -> Family:
        family = find(name, self._folder)
        if family.measured:
            return family
        return of_links(family, self._factors, between_nodes=between_nodes)

    def _on_host(self, name: str, size: int, ranks: int) -> Cost:
        """Between processes of the CPU: a ring over what its family says in bytes/s."""
        family = find(_HOST, self._folder)
        protocol = family.protocols[-1]
        shape = Shape(ranks, ranks, 1, 1)
        ends = []
        for end in _ENDS:
            rate = family.nominal * family.ring[end]
            hop = Hop(rate, rate, protocol.step[end], protocol.tree_step[end])
            case = Case(hop, hop, protocol.base[end], peers=family.peers)
            ends.append(seconds("ring", name, size, shape, case))
        basis = f"{_HOST}, ring over {ranks} ranks; weakest: {family.tier}"
        return Cost(ends[1], ends[2], ends[0], "collective", basis, 0.0, sent(name, size, ranks))


def _pairs(
    collective: Collective, ranks: tuple[int, ...], rank: int | None
) -> list[tuple[int, ...]]:
    """The pairs of ranks that a send may be between; a rank with itself is one."""
    peer = collective.peer
    if rank is not None and peer >= 0:
        return [(rank, peer) if rank != peer else (peer,)]
    if len(ranks) <= 2:
        return [ranks]
    if peer in ranks:
        at = ranks.index(peer)
        return [(other, peer) for other in ranks[max(at - 1, 0) : at + 2] if other != peer]
    raise UsageError(
        f"{collective.name} with peer {peer} in a group of {len(ranks)} ranks; expected the"
        " global rank of a peer in the group"
    )


def _protocols(wiring: _Wiring, algorithm: str) -> list[str]:
    """Names of protocols to choose from; a switch adds up with the one of full bandwidth."""
    names = [protocol.name for protocol in wiring.families[0].protocols]
    return names[-1:] if algorithm == "switch" else names


def _case(wiring: _Wiring, protocol: str, end: int) -> Case:
    """Both levels at one end of all intervals; several kinds of links go at the slowest's pace."""
    families = wiring.families
    near = [_near(link, family, protocol, wiring.shape.most, end) for link, family in wiring.links]
    slowest = Hop(
        min(hop.rate for hop in near),
        min(hop.pair for hop in near),
        max(hop.step for hop in near),
        max(hop.tree_step for hop in near),
        max(hop.hops for hop in near),
    )
    switches = [
        rate_range(link.bandwidth)[end] * family.switch[end]
        for link, family in wiring.links
        if family.switch is not None
    ]
    return Case(
        near=slowest,
        far=_far(wiring.network, protocol, end) if wiring.network is not None else slowest,
        base=max(family.protocol(protocol).base[end] for family in families),
        tree_share=min(family.tree_share for family in families),
        peers=min(family.peers for family in families),
        switch_rate=min(switches, default=0.0),
        switch_latency=max(family.switch_latency[end] for family in families),
    )


def _near(link: Link, family: Family, protocol: str, ranks: int, end: int) -> Hop:
    """A link for `ranks` ranks that it joins. See [Note: links of a mesh]."""
    found = family.protocol(protocol)
    rate = rate_range(link.bandwidth)[end] * family.ring[end] * found.share
    step, tree_step = found.step[end], found.tree_step[end]
    if link.latency is not None:
        step = tree_step = time_range(link.latency)[end]
    if link.topology.value in ("switch", "host"):
        return Hop(rate, rate, step, tree_step)
    used = min(max(ranks - 1, 1), link.links)
    return Hop(rate * used / link.links, rate / link.links, step, tree_step, _hops(link, ranks))


def _far(network: tuple[Network, Family], protocol: str, end: int) -> Hop:
    """A chip's share of its node's ports. The fast end is without a neighbour on the trunks."""
    ports, family = network
    found = family.protocol(protocol)
    rate = rate_range(ports.bandwidth)[end] * family.ring[end] * found.share
    if end != _ENDS[-1]:
        rate /= ports.oversubscription
    step, tree_step = found.step[end], found.tree_step[end]
    if ports.latency is not None:
        step = tree_step = time_range(ports.latency)[end]
    return Hop(rate, rate, step, tree_step)


def _hops(link: Link, ranks: int) -> float:
    """Links that a message between two of `ranks` chips crosses on average.

    On a mesh, one to a neighbour and two to the others. Around a ring of r chips a quarter of r,
    in each of the dimensions of a torus.
    """
    if link.topology.value == "mesh":
        others = max(ranks - 1, 1)
        return 1.0 if others <= link.links else 2 - link.links / others
    dimensions = max(link.links // 2, 1)
    around = math.pow(ranks, 1 / dimensions)
    return max(dimensions * around / 4, 1.0)


def _basis(wiring: _Wiring, algorithm: str, protocol: str, case: Case) -> str:
    """One line: the algorithm, the group, what each level reaches, the weakest tier."""
    spread, parts = wiring.spread, []
    if wiring.shape.most > 1:
        names = " and ".join(sorted({link.name for link, _ in wiring.links}))
        rate = case.switch_rate if algorithm == "switch" else case.near.rate
        parts.append(f"{names} at {format_quantity(rate, 'B/s', 3)}")
    if wiring.network is not None:
        ports = format_quantity(case.far.rate, "B/s", 3)
        parts.append(f"{wiring.network[0].name} at {ports} a chip")
    where = f"{spread.ranks} ranks on {spread.nodes} {'node' if spread.nodes == 1 else 'nodes'}"
    tier = weakest(wiring.tier, *(f.protocol(protocol).tier for f in wiring.families))
    return f"{algorithm} ({protocol}) over {where}; {', '.join(parts)}; weakest: {tier}"
