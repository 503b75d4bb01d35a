"""What calls on a tape cost on a chip of a cluster: the clock's prices."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.chips import Chip
from offramp.chips.cluster import Cluster
from offramp.costs import Costs, Operation, training
from offramp.costs.collective import Collective, Links
from offramp.costs.training import Factors
from offramp.tape.prices import Price


class ClusterPrices:
    """Prices by the texts of a tape's signatures, in seconds; see `offramp.tape.prices.Prices`.

    They are those of training, by `factors` (None: as `offramp.costs.training` has them).
    """

    def __init__(self, chip: Chip, cluster: Cluster, factors: Factors | None = None) -> None:
        found = training.factors() if factors is None else factors
        self._costs = Costs(chip, factors=found)
        self._links = Links(cluster, factors=found)
        host = self._costs.host
        self.launch_s, self.view_s = host.operator.value, host.view.value
        self.collective_call_s, self.readback_s = host.collective.value, host.readback.value
        self.is_synchronous = chip.is_synchronous
        self.overlap_slowdown = self._costs.overlap_slowdown

    def operator(self, text: str) -> Price:
        """The price of an operator call."""
        return self._costs.of(Operation.parse(text))

    def collective(self, text: str, ranks: Sequence[int]) -> Price:
        """The price of a collective call among `ranks`."""
        return self._links.cost(Collective.parse(text), ranks)

    def launch(self, text: str) -> tuple[float, float, float]:
        """Seconds of the host for one operator call, and their low and high."""
        span = self._costs.host.launch(Operation.parse(text))
        return span.value, span.low, span.high
