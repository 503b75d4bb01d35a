"""What a chip's facts allow: rates of matrix products, bandwidths, links, as spans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from offramp.chips import Chip, Fact
from offramp.costs.constants import Constants
from offramp.costs.cost import Span
from offramp.errors import UsageError

# PyTorch dtype -> the arithmetic that multiplies it.
_ARITHMETIC: Mapping[str, str] = {
    "float4_e2m1fn_x2": "float4",
    "complex32": "float16",
    "complex64": "float32",
    "complex128": "float64",
    "bool": "int8",
    "uint8": "int8",
    "int16": "float32",
    "int32": "float32",
    "int64": "float64",
}
_HALF = (
    *(("matrix", "bfloat16"), ("matrix", "float16"), ("matrix", "tf32"), ("matrix", "float32")),
    *(("vector", "bfloat16"), ("vector", "float16"), ("vector", "float32")),
)
# Arithmetic -> where its rate is looked for: the format itself, then wider ones.
_WIDER: Mapping[str, tuple[tuple[str, str], ...]] = {
    "float4": (("matrix", "float4"), ("matrix", "float8"), *_HALF),
    "float8": (("matrix", "float8"), *_HALF),
    "int8": (("matrix", "int8"), *_HALF),
    "bfloat16": _HALF,
    "float16": (("matrix", "float16"), *_HALF),
    "float32": (("vector", "float32"), ("matrix", "float32")),
    "float64": (("matrix", "float64"), ("vector", "float64")),
}
_CELLS = (("matrix", "float32"), ("matrix", "tf32"), ("vector", "float32"))
_REDUCED = (("matrix", "tf32"), ("matrix", "float32"), ("vector", "float32"))
_PICO = 1e-12
_NEARLY = 0.01  # of a ratio of power: what rounding of data sheets makes
_NARROW = ("float8", "float4", "int8")
# Quirks that say which float32 work runs on tensor cells unless the program says otherwise.
_CELLS_QUIRK = "fp32-tensor-cell"
_CONVOLUTION_QUIRK = "tf32-default"


class MissingFactError(UsageError):
    """A chip lacks a fact without which nothing can be said; the message has the way out."""

    def __init__(self, chip: Chip, fact: str) -> None:
        way = "give a chip file that has it (--chip FILE.toml)"
        super().__init__(f"{chip.name} has no {fact}, so times on it are unknown; {way}")


@dataclass(frozen=True, slots=True)
class Rate:
    """Operations a second that large products reach, and the facts' peak above it."""

    achieved: Span
    peak: Span
    basis: str


class Limits:
    """One chip's facts with the constants that hold for it."""

    def __init__(self, chip: Chip, constants: Constants) -> None:
        self.chip, self.constants = chip, constants
        self.multiprocessors = chip.multi_processor_count
        self._quirks = frozenset(quirk.name for quirk in chip.quirks)
        self._rates: dict[tuple[str, bool, bool | None], Rate] = {}
        self._bandwidth: Span | None = None

    def rate(self, dtype: str, *, convolution: bool = False, reduced: bool | None = None) -> Rate:
        """The rate of products of `dtype`.

        `reduced` says whether float32 may be multiplied as TF32; None is the chip's default.
        A format without a rate takes that of the next wider one, or, where only narrower ones
        are known, a share of theirs. A 16-bit one that the chip only emulates takes float32's.
        Raises MissingFactError.
        """
        key = (dtype, convolution, reduced)
        if key not in self._rates:
            self._rates[key] = self._find_rate(*key)
        return self._rates[key]

    @property
    def bandwidth(self) -> Span:
        """Bytes a second of the memory; without a fact, from the rate of 16-bit products."""
        if self._bandwidth is None:
            fact = self.chip.facts.get("memory_bandwidth")
            try:
                whole = Span.of_fact(fact) if fact else self._balanced()
            except MissingFactError:
                raise MissingFactError(self.chip, "memory bandwidth") from None
            self._bandwidth = whole
        return self._bandwidth

    @property
    def bandwidth_basis(self) -> str:
        fact = self.chip.facts.get("memory_bandwidth")
        if fact is None:
            return "bandwidth in proportion to the rate of products"
        return "bandwidth" if fact.value is not None else "bandwidth known as a range, its middle"

    @property
    def host_link(self) -> Span:
        """Bytes a second in one direction between the chip and the host's memory."""
        fact = self.chip.facts.get("host_bandwidth")
        both = Span.of_fact(fact) if fact else self.constants["links.host_bandwidth"]
        return both * 0.5 * self.constants["links.host_share"]

    @property
    def peer_link(self) -> Span:
        """Bytes a second in one direction to another chip; through the host where no link is."""
        fact = self.chip.facts.get("link_bandwidth")
        if fact is None or not fact.interval[1]:
            return self.host_link
        return Span.of_fact(fact) * 0.5 * self.constants["links.peer_share"]

    def _balanced(self) -> Span:
        return self.rate("bfloat16").peak / self.constants["memory.balance"]

    def _find_rate(self, dtype: str, convolution: bool, reduced: bool | None) -> Rate:
        arithmetic = _ARITHMETIC.get(dtype, dtype)
        if arithmetic.startswith("float8"):
            arithmetic = "float8"
        places = _WIDER.get(arithmetic, _WIDER["float32"])
        if arithmetic == "float32":
            default = _CELLS_QUIRK in self._quirks
            if reduced or (reduced is None and convolution and _CONVOLUTION_QUIRK in self._quirks):
                places = _REDUCED
            elif default:
                places = _CELLS
        elif self._is_emulated(arithmetic):
            places = _WIDER["float32"]
        for unit, name in places:
            fact = self._rates_of(unit).get(name)
            if fact is not None:
                return self._rate(fact, unit, name, arithmetic)
        return self._narrower(arithmetic)

    def _is_emulated(self, arithmetic: str) -> bool:
        """Whether a 16-bit format has neither units nor a rate of its own."""
        known = self.chip.formats.get(arithmetic)
        own = arithmetic in self.chip.matrix_rates or arithmetic in self.chip.vector_rates
        sixteen = arithmetic in ("bfloat16", "float16")
        return sixteen and not own and known is not None and known.value == "emulated"

    def _narrower(self, arithmetic: str) -> Rate:
        """A share of the rate of a narrower format, for want of anything better."""
        for share, source in self._steps_down(arithmetic):
            for unit, name in source:
                fact = self._rates_of(unit).get(name)
                if fact is not None:
                    rate = self._rate(fact, unit, name, arithmetic)
                    return Rate(rate.achieved * share, rate.peak * share, rate.basis)
        raise MissingFactError(self.chip, f"rate of {arithmetic} products")

    def _steps_down(self, arithmetic: str) -> Iterator[tuple[Span, tuple[tuple[str, str], ...]]]:
        share = Span.exact(1)
        if arithmetic == "float64":
            share = share * self.constants["formats.float64_of_float32"]
            yield share, _CELLS
        if arithmetic in ("float64", "float32"):
            share = share * self.constants["formats.float32_of_half"]
            yield share, _HALF
        yield share * self.constants["formats.half_of_float8"], (("matrix", "float8"),)

    def _rates_of(self, unit: str) -> Mapping[str, Fact]:
        return self.chip.matrix_rates if unit == "matrix" else self.chip.vector_rates

    def _clocked(self) -> Span | None:
        """What a board of less power reaches of the share measured on its family's; else None."""
        full = self.constants["products.full_energy"].value * _PICO
        power, rates = self.chip.facts.get("power"), self.chip.matrix_rates
        peak = rates.get("bfloat16") or rates.get("float16")
        if not full or power is None or peak is None:
            return None
        ratio = Span.of_fact(power).value / Span.of_fact(peak).value / full
        if ratio > 1 - _NEARLY:
            return None
        steep = self.constants["products.power_exponent"]
        return Span(ratio**steep.value, ratio**steep.high, ratio**steep.low, steep.tier)

    def _rate(self, fact: Fact, unit: str, name: str, wanted: str) -> Rate:
        peak = Span.of_fact(fact)
        key = "vector_share" if unit == "vector" else "peak_share"
        if fact.tier == "measured":
            key = "measured_share"
        share = self.constants[f"products.{key}"]
        if key == "peak_share" and name in _NARROW:
            share = share * self.constants["products.narrow_share"]
        limited = ""
        if key == "peak_share" and unit == "matrix" and (clocked := self._clocked()) is not None:
            share, limited = share * clocked, ", held by its power"
        for_what = "" if name == wanted else f" in place of {wanted}"
        middle = ", the middle of its range" if fact.value is None else ""
        basis = f"{name} {unit} rate{for_what}{middle}, {self.constants.family} share{limited}"
        return Rate(peak * share, peak, basis)
