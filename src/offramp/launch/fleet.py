"""Which chip each rank of a cluster has, and which ranks must be played where chips differ."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import cast

from offramp import chips
from offramp.chips.cluster import Cluster
from offramp.chips.facts import Fact, Tier
from offramp.costs.cost import Span


@dataclass(frozen=True)
class Kind:
    """Ranks that are alike: the same chip, in nodes of the same size.

    chip_name   as `OFFRAMP_CHIP` takes it: in the catalogue, or the path of a chip file
    """

    chip: chips.Chip
    chip_name: str
    per_node: int


@dataclass(frozen=True)
class Fleet:
    """The kinds of a cluster's ranks, in the order of its groups of nodes.

    sizes   how many ranks each group has
    which   the kind of each group, a place in `kinds`
    """

    kinds: tuple[Kind, ...]
    sizes: tuple[int, ...]
    which: tuple[int, ...]

    @classmethod
    def of(cls, cluster: Cluster, chip: chips.Chip, chip_name: str) -> Fleet:
        """The fleet of a cluster; `chip` is that of all nodes where they are alike.

        Raises UsageError where a chip is not known.
        """
        groups = cluster.groups
        if len({(group.chip_file or group.chip, group.chips_per_node) for group in groups}) == 1:
            kind = Kind(chip, chip_name, groups[0].chips_per_node)
            return cls((kind,), (cluster.world_size,), (0,))
        kinds: list[Kind] = []
        which = []
        for group in groups:
            name = group.chip_file or group.chip
            kind = Kind(chips.load(name), name, group.chips_per_node)
            if kind not in kinds:
                kinds.append(kind)
            which.append(kinds.index(kind))
        return cls(tuple(kinds), tuple(group.chips for group in groups), tuple(which))

    @property
    def is_mixed(self) -> bool:
        """Whether ranks differ."""
        return len(self.kinds) > 1

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.sizes))

    def place(self, rank: int) -> int:
        """The kind of a rank, a place in `kinds`."""
        return self.which[bisect_right(self._ends, rank)]

    def kind(self, rank: int) -> Kind:
        """The kind of a rank."""
        return self.kinds[self.place(rank)]

    def firsts(self) -> set[int]:
        """The first rank of each kind."""
        starts = [0, *self._ends[:-1]]
        return {starts[self.which.index(place)] for place in range(len(self.kinds))}

    def counts(self) -> list[int]:
        """How many ranks there are of each kind."""
        pairs = list(zip(self.which, self.sizes, strict=True))
        return [
            sum(size for place, size in pairs if place == kind) for kind in range(len(self.kinds))
        ]

    def companions(self, rank: int, groups: Iterable[Sequence[int]]) -> set[int]:
        """Ranks to play beside `rank`: of every other kind in each of its groups, the first.

        groups   the ranks of each group that it calls collectives in

        A rank of its own kind does as it does; one of another kind may be late.
        """
        if not self.is_mixed:
            return set()
        found = set()
        for ranks in groups:
            first: dict[int, int] = {}
            for other in ranks:
                first.setdefault(self.place(other), other)
            found |= {other for place, other in first.items() if place != self.place(rank)}
        return found

    def stands_for(self, played: Sequence[int]) -> list[float]:
        """How many ranks each of the played ones stands for: those of its kind, shared evenly."""
        places = [self.place(rank) for rank in played]
        return [self.counts()[place] / places.count(place) for place in places]

    def peak_flops(self) -> float | None:
        """A chip's 16-bit matrix rate in FLOP/s, the mean of all; None where one is not known."""
        total = 0.0
        for kind, count in zip(self.kinds, self.counts(), strict=True):
            rates = kind.chip.matrix_rates
            rate = rates.get("bfloat16") or rates.get("float16")
            if rate is None or not isinstance(rate.value, int | float):
                return None
            total += float(rate.value) * count
        return total / sum(self.sizes)

    def power(self) -> Fact | None:
        """What a chip draws, in watts, the mean of all; None where one's is not known."""
        facts = [kind.chip.facts.get("power") for kind in self.kinds]
        known = [fact for fact in facts if fact is not None]
        if len(known) < len(facts):
            return None
        if not self.is_mixed:
            return known[0]
        counts, total = self.counts(), sum(self.sizes)
        parts = [Span.of_fact(fact) * (n / total) for fact, n in zip(known, counts, strict=True)]
        mean = parts[0]
        for part in parts[1:]:
            mean = mean + part
        note = "the mean of " + " and ".join(
            f"{count:,} {kind.chip.title}" for kind, count in zip(self.kinds, counts, strict=True)
        )
        tier = cast(Tier, mean.tier)
        return Fact(mean.value, "W", tier, known[0].source, mean.low, mean.high, note)
