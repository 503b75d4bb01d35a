"""What a job runs on: the chip behind the device, and which of its peculiarities matter here."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from offramp import chips
from offramp.chips.detect import identify
from offramp.errors import UsageError
from offramp.train.formats import DTYPES
from offramp.train.job import Job
from offramp.train.world import HOST, virtual_chip

# Quirks of chip files that training takes account of, by the names they have there.
SUM_ONLY = "reduce-average"
BLOCKING_COPIES = "non-blocking-device-to-host"
WEAK_COMPILER = "inductor-weak"
FORMATS = {name: str(dtype).removeprefix("torch.") for name, dtype in DTYPES.items()}
FP8 = "float8_e4m3fn"
HERE = "here"


@dataclass(frozen=True)
class Ground:
    """A chip as training sees it; `chip` is None where nothing tells which one it is."""

    chip: chips.Chip | None
    device: torch.device
    virtual: bool

    @property
    def title(self) -> str:
        """For people."""
        name = self.chip.title if self.chip else "unknown chip"
        if self.device.type == HOST:
            return f"{name} ({torch.get_num_threads()} threads)"
        kind = "virtual" if self.virtual else "real"
        return f"{name}, {kind}, as {self.device.type}"

    def cautions(self, job: Job) -> list[str]:
        """What the chip's file says against what the job asks for, and training cannot mend."""
        quirk = self.quirk(WEAK_COMPILER)
        if self.chip is None or quirk is None or not job.train.compile:
            return []
        return [f"train.compile on {self.chip.title}: {quirk.what}; {quirk.effect} ({quirk.tier})"]

    def quirk(self, name: str) -> chips.Quirk | None:
        """What the chip's file says under that name, if it says anything."""
        found = self.chip.quirks if self.chip else ()
        return next((quirk for quirk in found if quirk.name == name), None)

    def peak_flops(self, precision: str) -> tuple[float | None, str]:
        """Dense matrix operations a second of one chip, or None; and why, in either case.

        A virtual chip computes at the speed of this machine, which says nothing of the chip's use.
        """
        if self.virtual:
            return None, "a virtual chip has this machine's speed"
        fact = self.chip.matrix_rates.get(FORMATS[precision]) if self.chip else None
        if fact is None or not isinstance(fact.value, int | float):
            name = self.chip.name if self.chip else "this chip"
            return None, f"{name} has no known {FORMATS[precision]} rate"
        return float(fact.value), f"{fact.tier}: {fact.source}"

    def check(self, job: Job) -> None:
        """Refuse formats that the chip is known not to have. Raises UsageError."""
        absent = self.chip.absent_formats if self.chip else frozenset()
        if FORMATS[job.train.precision] in absent:
            others = [p for p, name in FORMATS.items() if name not in absent]
            raise UsageError(
                f"train.precision is {job.train.precision!r}, and {self.title} has no "
                f"{FORMATS[job.train.precision]}; expected one of {', '.join(map(repr, others))}"
            )
        if job.train.fp8:
            known = self.chip.formats.get(FP8) if self.chip else None
            if known is None or known.value != "native":
                said = "nothing public says that it has them" if known is None else known.value
                raise UsageError(
                    f"train.fp8 asks for 8-bit products on {self.title}: {said}; "
                    "expected fp8 = false"
                )


def find(job: Job, device: torch.device) -> Ground:
    """The chip behind `device`: the virtual one that this process has, or a real one.

    Raises UsageError where the job names another chip than the one that is there.
    """
    name = job.chip.name
    if name == HOST or device.type == HOST:
        return Ground(chips.load(HOST), device, virtual=False)
    if chip := virtual_chip():
        return Ground(chip, device, virtual=True)
    found = identify(torch.get_device_module(device).get_device_name(device)).chip
    if name == HERE:
        return Ground(chips.load(found) if found else None, device, virtual=False)
    if found not in (None, name):
        raise UsageError(
            f"chip.name is {name!r}, and the device here is {found!r}; expected that, or 'here'"
        )
    return Ground(chips.load(name), device, virtual=False)
