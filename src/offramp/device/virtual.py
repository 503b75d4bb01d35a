"""Opening a virtual chip, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch.utils import backend_registration

from offramp.chips import Chip
from offramp.chips.arithmetic import Arithmetic, resolve
from offramp.device import (
    build,
    collectives,
    composed,
    cover,
    ending,
    holdings,
    printing,
    sharing,
    storage,
    threads,
)
from offramp.errors import UsageError

# Names that PyTorch keeps for its own devices, beside `cuda`.
_IN_TREE = frozenset({"cpu", "hip", "mps", "xpu", "mtia", "hpu", "xla", "meta"})
_opened: VirtualDevice | None = None


def opened() -> VirtualDevice | None:
    """The virtual chip that this process plays, if any."""
    return _opened


def open_device(
    chip: Chip,
    *,
    count: int = 1,
    memory_bytes: int | None = None,
    arithmetic: Arithmetic | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> VirtualDevice:
    """Make this process play `count` chips of one kind. Once per process; it cannot be closed.

    Args:
        chip: the catalogue's entry.
        count: how many of them the process sees.
        memory_bytes: memory of each; the chip's own when None.
        arithmetic: how it computes, where that is not as the host; as its file says when None.
        announce: told, in one line, before something that takes long.

    Raises:
        UsageError: another chip is open already, or a number is out of range.
        BuildError: the native core cannot be compiled.
    """
    global _opened
    memory_bytes = chip.memory_bytes if memory_bytes is None else memory_bytes
    arithmetic = resolve(chip.arithmetic, ()) if arithmetic is None else arithmetic
    if _opened is not None:
        asked = (chip, count, memory_bytes, arithmetic)
        if (_opened.chip, _opened.count, _opened.memory_bytes, _opened.arithmetic) == asked:
            return _opened
        raise UsageError(
            f"this process already plays {_opened.chip.name}; PyTorch keeps a device for the life "
            f"of a process, so start another process for {chip.name}"
        )
    if chip.presentation.device_type in _IN_TREE:
        raise UsageError(
            f"{chip.name} presents itself as `{chip.presentation.device_type}`, a device that "
            "PyTorch has built in and that offramp cannot play; it can play chips that present "
            "themselves as `cuda` or under a name of their maker's own"
        )
    if not 1 <= count <= 64:
        raise UsageError(f"a process plays 1 to 64 chips, not {count}")
    core = build.load(announce)
    _open_core(core, chip, count, memory_bytes)
    kind = chip.presentation.device_type
    core.explain_out_of_memory_with(lambda index: holdings.explain(kind, index))
    threads.install(core)
    if kind == "cuda":
        storage.install(kind, core)
    if "float64" in chip.absent_formats:
        printing.install()
    composed.install("CUDA" if kind == "cuda" else "PrivateUse1")
    shared = sharing.install(kind, core)
    made = _opened = VirtualDevice(core, chip, count, memory_bytes, shared)
    made.set_arithmetic(arithmetic)
    ending.install(lambda: [made.device(index) for index in range(made.count)])
    return _opened


def _open_core(core: ModuleType, chip: Chip, count: int, memory_bytes: int) -> None:
    """Register the chip in PyTorch's dispatcher, with what it is known to lack."""
    kind = chip.presentation.device_type
    for op_name, fact in chip.missing_ops.items():
        core.declare_missing(_qualified(op_name), str(fact.value))
    if kind != "cuda":
        backend_registration.rename_privateuse1_backend(kind)
    brand = "CUDA" if kind == "cuda" else kind.upper()
    cover.settle()
    core.open(chip.name, brand, kind, count, memory_bytes)
    cover.install(core)
    if chip.is_synchronous:
        core.tape_requested_bytes()
    core.refuse_formats(_format_mask(chip.absent_formats, core.scalar_types()))


class VirtualDevice:
    """The chips that this process plays: sizes, memory figures, counters.

    Streams, events and generators need nothing of their own: `torch.Stream`, `torch.Event` and
    `torch.Generator` ask the native core through PyTorch's device-generic interfaces.
    """

    def __init__(
        self,
        core: ModuleType,
        chip: Chip,
        count: int,
        memory_bytes: int,
        shared: sharing.Sharing,
    ) -> None:
        self._core = core
        self._shared = shared
        self.chip = chip
        self.count = count
        self.memory_bytes = memory_bytes
        self.arithmetic = Arithmetic()
        self.kind = chip.presentation.device_type

    @property
    def native(self) -> Any:
        """The native core, for those who lead other names to this device."""
        return self._core

    def device(self, index: int | None = None) -> torch.device:
        """The `torch.device` of chip `index`, or of the current one."""
        index = self.current_device() if index is None else index
        if self.kind == "cuda":
            return torch.device(self.kind, index)
        found: torch.device = self._core.private_device(index)
        return found

    def current_device(self) -> int:
        return int(self._core.current_device())

    def set_device(self, index: int) -> None:
        self._core.set_device(index)

    def has_backward_thread(self) -> bool:
        """Whether autograd has a thread for the chip; see `ending.has_thread`."""
        return ending.has_thread(self.device(0))

    def in_forked_child(self) -> bool:
        """Whether this process was forked after the chip was opened, as CUDA does not allow."""
        return bool(self._core.in_forked_child())

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two recorded events, given by their `event_id`."""
        return float(self._core.elapsed_ms(start, end))

    def memory_stats(self, index: int) -> dict[str, Any]:
        """Counters of the caching allocator, nested as in `memory_stats_as_nested_dict`."""
        stats: dict[str, Any] = torch._C._accelerator_getDeviceStats(index)
        return stats

    def mem_get_info(self, index: int) -> tuple[int, int]:
        """Free and total bytes of one chip."""
        total = int(self._core.capacity_bytes(index))
        return max(0, total - self.memory_stats(index)["reserved_bytes"]["all"]["current"]), total

    def set_memory_fraction(self, fraction: float, index: int) -> None:
        """Let this process use only `fraction` (0 to 1) of a chip's memory."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
        self._core.set_memory_fraction(index, fraction)

    def memory_fraction(self, index: int) -> float:
        """The share of the chip's memory that this process may use."""
        return float(self._core.memory_fraction(index))

    def set_visible(self, count: int) -> None:
        """Let the process see only the first `count` chips. For before their first use."""
        self._core.set_count(count)
        self.count = count

    def default_generator(self, index: int) -> torch.Generator:
        """The generator that random operators on chip `index` draw from."""
        generator: torch.Generator = self._core.default_generator(index)
        return generator

    def reset_peaks(self, index: int) -> None:
        torch.accelerator.reset_peak_memory_stats(self.device(index))

    def reset_accumulated(self, index: int) -> None:
        torch.accelerator.reset_accumulated_memory_stats(self.device(index))

    def empty_cache(self) -> None:
        for index in range(self.count):
            self._core.empty_cache(index)

    def collect_shared(self) -> None:
        """Free memory that was shared with other processes, where they let go of it."""
        self._shared.collect()

    def memory_snapshot(self, index: int) -> list[dict[str, Any]]:
        """Every block of one chip's memory, in address order within its segment."""
        return list(self._core.snapshot(index))

    def process_group_class(self) -> type:
        """The c10d backend between processes that play this chip; see `device.collectives`."""
        return collectives.process_group_class(self._core)

    def operator_counts(self) -> Mapping[str, int]:
        """Operator name to its calls, for those called."""
        counts: dict[str, int] = self._core.operator_counts()
        return counts

    def operators_refused(self) -> Mapping[str, tuple[str, int]]:
        """Operator name to (reason of the last refusal, how many), for those refused."""
        refused: dict[str, tuple[str, int]] = self._core.operators_refused()
        return refused

    def set_arithmetic(self, arithmetic: Arithmetic) -> None:
        """Compute so from now on; what is not among the settings, as the host does.

        Stochastic rounding begins its numbers again. float64 is decided when the chip is opened.
        """
        self._core.set_arithmetic(arithmetic.native())
        self.arithmetic = arithmetic

    def arithmetic_met(self) -> list[tuple[str, str, bool, int]]:
        """Setting, operator, whether it was applied there, and how often."""
        met: list[tuple[str, str, bool, int]] = self._core.arithmetic_met()
        return met

    def formats_used(self) -> Mapping[str, int]:
        """torch dtype name to the number of operators called on it."""
        used: dict[str, int] = self._core.formats_used()
        return {_dtype_name(name): count for name, count in used.items()}


def _qualified(op_name: str) -> str:
    return op_name if "::" in op_name else f"aten::{op_name}"


# Where torch's spelling of a ScalarType is not simply its name in lower case.
_SPELLING = {
    "Byte": "uint8",
    "Char": "int8",
    "Short": "int16",
    "Int": "int32",
    "Long": "int64",
    "Half": "float16",
    "Float": "float32",
    "Double": "float64",
    "ComplexHalf": "complex32",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}


def _dtype_name(scalar_type: str) -> str:
    return _SPELLING.get(scalar_type, scalar_type.lower())


def _format_mask(names: frozenset[str], scalar_types: list[str]) -> int:
    """One bit a ScalarType, in its own order, for the dtypes named."""
    return sum(1 << i for i, name in enumerate(scalar_types) if _dtype_name(name) in names)
