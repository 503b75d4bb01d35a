"""What one process's device and identity have counted, in the form of a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from offramp.launch.record import joined
from offramp.launch.schema import DeviceRow, MissingOpRow, RefusedRow, Snapshot

if TYPE_CHECKING:
    from offramp.chips import Fact
    from offramp.device import VirtualDevice
    from offramp.identity import Identity


def snapshot(device: VirtualDevice, identity: Identity) -> Snapshot:
    """Everything counted so far; cheap, and safe to call from another thread."""
    return joined(_of_device(device), cast(Snapshot, identity.record()))


def _of_device(device: VirtualDevice) -> Snapshot:
    counts = device.operator_counts()
    formats = dict(device.formats_used())
    missing: list[MissingOpRow] = []
    refused: list[RefusedRow] = []
    for op, (reason, count) in device.operators_refused().items():
        if (lacking := _lacking(op, device.chip.missing_ops)) is not None:
            missing.append({"op": op, "reason": lacking, "count": count})
        else:
            refused.append({"name": op, "reason": reason, "count": count})
    return {
        # A process that never used a chip, such as torchrun's agent, has none to tell of.
        "devices": [_memory(device, index) for index in range(device.count if counts else 0)],
        "ops": dict(counts),
        "dtypes": formats,
        "missing_ops": missing,
        "arithmetic": [
            {"setting": setting, "op": op, "applied": applied, "count": count}
            for setting, op, applied, count in device.arithmetic_met()
        ],
        "refused": refused,
        "unknown_formats": sorted(device.chip.unknown_formats & formats.keys()),
    }


def _lacking(op: str, missing_ops: Mapping[str, Fact]) -> str | None:
    """Why the chip lacks `op`: a chip file may name an op or only one overload of it."""
    fact = missing_ops.get(op) or missing_ops.get(op.partition(".")[0])
    return str(fact.value) if fact is not None else None


def _memory(device: VirtualDevice, index: int) -> DeviceRow:
    stats = device.memory_stats(index)
    return {
        "index": index,
        "capacity_bytes": device.memory_bytes,
        "peak_allocated_bytes": stats["allocated_bytes"]["all"]["peak"],
        "peak_reserved_bytes": stats["reserved_bytes"]["all"]["peak"],
        "allocated_bytes": stats["allocated_bytes"]["all"]["current"],
    }
