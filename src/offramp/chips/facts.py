"""What a chip file holds, once read: facts, and how PyTorch presents the chip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Tier: TypeAlias = Literal["measured", "vendor", "derived", "press", "assumed"]
Value: TypeAlias = int | float | bool | str
Support: TypeAlias = Literal["native", "emulated", "absent", "unknown"]

# Strongest first.
TIERS: dict[str, str] = {
    "measured": "someone ran it and published the result",
    "vendor": "the maker says so: data sheet, documentation, or a constant in its own code",
    "derived": "arithmetic on other facts",
    "press": "news or an analyst, without the maker's document",
    "assumed": "reasoned, in the note; never to be read as certain",
}
SUPPORT: dict[str, str] = {
    "native": "the chip has units for it",
    "emulated": "PyTorch holds and converts it on this chip, in software",
    "absent": "known not to exist on the chip",
    "unknown": "nothing public says yes or no",
}

# Every PyTorch dtype that a chip file may classify; what it leaves out is unknown.
FORMATS = (
    *("float64", "float32", "float16", "bfloat16"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    *("float8_e8m0fnu", "float4_e2m1fn_x2", "complex128", "complex64", "complex32"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
)

# Formats that peak rates are stated in. These are names of arithmetic, not of storage: one rate
# covers both 8-bit floats, and tf32 is float32 data multiplied at reduced precision.
RATE_FORMATS = ("float64", "float32", "tf32", "bfloat16", "float16", "float8", "int8", "float4")


@dataclass(frozen=True, slots=True)
class Fact:
    """One value about a chip, in base units (`unit`), with how far to trust it and why.

    `value` is None when only a range is known. `low` and `high` bound the truth where the figure
    is uncertain.
    """

    value: Value | None
    unit: str
    tier: Tier
    source: str
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def interval(self) -> tuple[float, float]:
        """The smallest and largest value that the fact allows. TypeError for text."""
        if isinstance(self.value, str):
            raise TypeError(f"{self.value!r} is text and has no interval")
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        if low is None or high is None:  # the reader refuses such a fact
            raise TypeError("a fact without value, low and high has no interval")
        return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Quirk:
    """A known way in which programs meet this chip differently, and what comes of it."""

    name: str
    what: str
    effect: str
    tier: Tier
    source: str


@dataclass(frozen=True, slots=True)
class Detection:
    """One sign of the chip on a machine.

    `env`: a variable is set. `device_name`: PyTorch's name of the device matches the glob.
    `module`: the package can be found. `path`: a file matches the glob. `command`: the program is
    on the path.
    """

    kind: Literal["env", "device_name", "module", "path", "command"]
    value: str


@dataclass(frozen=True, slots=True)
class Presentation:
    """How PyTorch presents the chip to a program.

    `facts` has the tier and source of each field under the field's name.
    """

    device_type: str
    device_name: str
    capability: tuple[int, int] | None
    collectives: str
    visible_env: str
    smi: str | None
    detect: tuple[Detection, ...]
    facts: Mapping[str, Fact] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Cluster:
    """How clusters hand out the chip, and what its training processes need around them.

    `resource`: its name in Kubernetes; `gres`: its name in Slurm; both empty where unknown.
    `environment`: variables to set on the real chip, each a fact whose note says why. `facts` has
    the tier and source of the names.
    """

    resource: str = ""
    gres: str = ""
    environment: Mapping[str, Fact] = field(default_factory=dict, compare=False)
    facts: Mapping[str, Fact] = field(default_factory=dict, compare=False)
