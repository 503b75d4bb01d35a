"""What the clock asks for: seconds of operators and collectives, and the host's own constants."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from offramp.costs.cost import Cost as Price
from offramp.errors import OfframpError

__all__ = [
    "Call",
    "LaunchPrices",
    "Price",
    "PriceError",
    "PriceList",
    "Prices",
    "RankPrices",
    "operator_name",
    "parse_call",
    "short_name",
]

Pick = Literal["seconds", "low", "high"]
PICKS: tuple[Pick, ...] = ("seconds", "low", "high")
KINDS = ("matmul", "attention", "memory", "copy")  # of work on the chip, heaviest first
VIEW = "view"  # costs the host only


class PriceError(OfframpError, ValueError):
    """A signature that cannot be read, or a price that is no price."""


class Prices(Protocol):
    """Prices by signature (the texts of a tape), and the constants of the host; seconds."""

    @property
    def launch_s(self) -> float:
        """The host, to launch one operator."""
        ...

    @property
    def view_s(self) -> float:
        """The host, for an operator that only describes memory anew."""
        ...

    @property
    def collective_call_s(self) -> float:
        """The host, to call one collective."""
        ...

    @property
    def readback_s(self) -> float:
        """The host, to read one value back, after the stream has ended."""
        ...

    @property
    def overlap_slowdown(self) -> float:
        """How many times longer compute takes while a collective runs; at least 1."""
        ...

    def operator(self, text: str) -> Price:
        """The price of an operator call."""
        ...

    def collective(self, text: str, ranks: Sequence[int]) -> Price:
        """The price of a collective call among `ranks`."""
        ...


@runtime_checkable
class LaunchPrices(Protocol):
    """Prices that also know what each operator takes the host, such as long lists of tensors."""

    def launch(self, text: str) -> tuple[float, float, float]:
        """Seconds of the host for this call, and their low and high; views too."""
        ...


@runtime_checkable
class HostPrices(Protocol):
    """Prices that know whether the host computes operators itself, one after another."""

    @property
    def is_synchronous(self) -> bool:
        """True: the host goes on when the operator has ended, as on a CPU."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """One collective call as its signature tells it; `group` counts in the tape's groups."""

    name: str
    bytes: int
    group: int
    peer: int
    on_host: bool

    @property
    def is_transfer(self) -> bool:
        """Whether it moves data between two ranks."""
        return self.name in ("send", "recv")


def parse_call(text: str) -> Call:
    """The collective call of a signature.

    Raises PriceError where the signature is not a collective's.
    """
    try:
        data = json.loads(text)
        call = Call(
            str(data["collective"]),
            int(data["bytes"]),
            int(data["group"]),
            int(data.get("peer", -1)),
            bool(data.get("on_host", False)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PriceError(f"not the signature of a collective: {text[:200]!r}") from error
    if call.is_transfer and call.peer < 0:
        raise PriceError(f"{call.name} names no peer: {text[:200]!r}")
    return call


def operator_name(text: str) -> str:
    """The operator's name in a signature, such as "aten::mm"."""
    try:
        return str(json.loads(text)["op"])
    except (ValueError, KeyError, TypeError) as error:
        raise PriceError(f"not the signature of an operator: {text[:200]!r}") from error


def short_name(operator: str) -> str:
    """`aten::_foreach_add_.List` as `_foreach_add_`: without library, overload and host's name."""
    name = operator.split("::")[-1].split(".")[0]
    return name.replace("_scaled_dot_product_", "sdpa_").replace("_for_cpu", "")


class PriceList:
    """Every price once: tapes share texts, and three replays share prices."""

    def __init__(self, prices: Prices) -> None:
        self.prices = prices
        self.is_synchronous = isinstance(prices, HostPrices) and prices.is_synchronous
        if not prices.overlap_slowdown >= 1:
            raise PriceError(f"overlap slows compute by {prices.overlap_slowdown}; at least 1")
        self._operators: dict[str, Price] = {}
        self._collectives: dict[tuple[str, tuple[int, ...]], Price] = {}

    def of(self, rank: int) -> PriceList:
        """The prices of one rank's calls: the same for all."""
        return self

    def operator(self, text: str) -> Price:
        """The price of an operator call; raises PriceError unless `0 <= low <= seconds <= high`."""
        price = self._operators.get(text)
        if price is None:
            price = self._operators[text] = _checked(self.prices.operator(text), text)
        return price

    def collective(self, text: str, ranks: tuple[int, ...]) -> Price:
        """The price of a collective call among `ranks`."""
        price = self._collectives.get((text, ranks))
        if price is None:
            price = _checked(self.prices.collective(text, ranks), text)
            self._collectives[text, ranks] = price
        return price

    def launch_s(self, text: str, pick: Pick) -> float:
        """What the call takes the host, in seconds."""
        if isinstance(self.prices, LaunchPrices):
            seconds, low, high = self.prices.launch(text)
            _check((low, seconds, high), text)
            return {"seconds": seconds, "low": low, "high": high}[pick]
        is_view = self.operator(text).kind == VIEW
        return self.prices.view_s if is_view else self.prices.launch_s


class RankPrices(PriceList):
    """The price lists of ranks that differ, as on chips of several kinds, by rank."""

    def __init__(self, lists: Mapping[int, PriceList]) -> None:
        super().__init__(next(iter(lists.values())).prices)
        self._lists = lists

    def of(self, rank: int) -> PriceList:
        """The prices of one rank's calls."""
        return self._lists[rank]


def _checked(price: Price, text: str) -> Price:
    _check((price.low, price.seconds, price.high), text)
    return price


def _check(figures: tuple[float, float, float], text: str) -> None:
    low, seconds, high = figures
    if not 0 <= low <= seconds <= high < float("inf"):
        told = f"low {low}, {seconds}, high {high}"
        raise PriceError(f"{told} s is no price: 0 <= low <= seconds <= high; of {text[:200]!r}")
