"""What `torch.cuda.get_device_properties` answers, from the chip's facts."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from offramp.chips import Chip
from offramp.identity.tally import Tally

# Programs read these and break on None. Where a chip's own figure is not public they get that of an
# NVIDIA A100 of 40 GB, as a plausible answer and no fact; the report says which were answered so.
_DEFAULTS = {
    "multi_processor_count": 108,
    "max_threads_per_multi_processor": 2048,
    "warp_size": 32,
    "regs_per_multiprocessor": 65536,
    "shared_memory_per_block": 49152,
    "shared_memory_per_block_optin": 166912,
    "shared_memory_per_multiprocessor": 167936,
    "L2_cache_size": 41943040,
    "clock_rate": 1410000,
    "memory_clock_rate": 1215000,
    "memory_bus_width": 5120,
    "max_threads_per_block": 1024,
}
_FACTS = {
    "multi_processor_count": ("multiprocessors", 1.0),
    "max_threads_per_multi_processor": ("threads_per_multiprocessor", 1.0),
    "warp_size": ("warp_size", 1.0),
    "L2_cache_size": ("l2_cache", 1.0),
    "clock_rate": ("clock", 1e-3),  # kHz
}


@dataclass(frozen=True)
class DeviceProperties:
    """Same fields as PyTorch's `_CudaDeviceProperties`; unknown ones are answered by default."""

    name: str
    major: int
    minor: int
    total_memory: int
    uuid: str
    gcnArchName: str = ""
    is_integrated: int = 0
    is_multi_gpu_board: int = 0
    pci_bus_id: int = 0
    pci_device_id: int = 0
    pci_domain_id: int = 0
    _tally: Tally = field(repr=False, compare=False, kw_only=True)
    _known: dict[str, int] = field(repr=False, compare=False, kw_only=True)

    def __getattr__(self, name: str) -> int:
        known: dict[str, int] = object.__getattribute__(self, "_known")
        if name in known:
            return known[name]
        if name not in _DEFAULTS:
            raise AttributeError(f"device properties have no field {name!r}")
        answer = _DEFAULTS[name]
        self._tally.answered_by_default(
            f"torch.cuda.get_device_properties().{name}", answer, f"not public for {self.name}"
        )
        return answer

    def __repr__(self) -> str:
        memory = self.total_memory // 2**20
        return (
            f"_CudaDeviceProperties(name='{self.name}', major={self.major}, minor={self.minor}, "
            f"total_memory={memory}MB, uuid={self.uuid})"
        )


def read(chip: Chip, memory_bytes: int, index: int, tally: Tally) -> DeviceProperties:
    """The properties of chip `index`, whose memory may be less than the chip's own."""
    major, minor = chip.presentation.capability or (8, 0)
    if chip.presentation.capability is None:
        tally.answered_by_default(
            "torch.cuda.get_device_capability", "(8, 0)", f"{chip.name} has no such number"
        )
    known: dict[str, int] = {}
    for name, (key, scale) in _FACTS.items():
        fact = chip.facts.get(key)
        if fact is not None and isinstance(fact.value, int | float):
            known[name] = int(fact.value * scale)
    identifier = uuid.uuid5(uuid.NAMESPACE_OID, f"offramp:{chip.name}:{index}")
    return DeviceProperties(
        chip.presentation.device_name,
        major,
        minor,
        memory_bytes,
        str(identifier),
        _tally=tally,
        _known=known,
    )
