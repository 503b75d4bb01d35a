"""The boundary below `torch.cuda`: the functions that a CUDA build of PyTorch has in `torch._C`.

PyTorch's own `torch.cuda` is Python over these. Providing them, instead of replacing what is
above, keeps its behaviour (argument checks, lazy initialization, errors) as programs know it.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from offramp.chips import Chip
from offramp.errors import RefusedError
from offramp.identity.runtime import Runtime
from offramp.identity.tally import Tally

CUDA = 1  # c10::DeviceType::CUDA
PRIVATE = 20  # c10::DeviceType::PrivateUse1


class Driver:
    """The functions by their names without `_cuda_`; `functions` collects them."""

    def __init__(self, runtime: Runtime, tally: Tally) -> None:
        self._runtime = runtime
        self._tally = tally
        self._type = CUDA if runtime.kind == "cuda" else PRIVATE
        self._sync_debug_mode = 0
        self._generators: tuple[torch.Generator, ...] = ()

    def functions(self) -> dict[str, Any]:
        """Name in `torch._C` to function."""
        own = {f"_cuda_{name}": getattr(self, name) for name in vars(Driver) if name[0] not in "_f"}
        return own | dict.fromkeys(_NOTHING, _nothing) | _constants(self._runtime.chip)

    # Devices

    def init(self) -> None:
        self._runtime.set_visible(visible_count(self._runtime.chip, self._runtime.count))
        generators = [self._runtime.default_generator(i) for i in range(self._runtime.count)]
        setattr(torch.cuda, "default_generators", tuple(generators))  # noqa: B010

    def isInBadFork(self) -> bool:  # noqa: N802 -- PyTorch's spelling, here and below
        return self._runtime.in_forked_child()

    def getDeviceCount(self) -> int:  # noqa: N802
        return visible_count(self._runtime.chip, self._runtime.count)

    def getDevice(self) -> int:  # noqa: N802
        return self._runtime.current_device()

    def setDevice(self, index: int) -> None:  # noqa: N802
        if index >= 0:
            self._runtime.set_device(index)

    def exchangeDevice(self, index: int) -> int:  # noqa: N802
        before = self._runtime.current_device()
        if index < 0:
            return -1
        self._runtime.set_device(index)
        return before

    def maybeExchangeDevice(self, index: int) -> int:  # noqa: N802
        return self.exchangeDevice(index)

    def hasPrimaryContext(self, index: int) -> bool:  # noqa: N802
        return bool(torch.cuda.is_initialized())

    def canDeviceAccessPeer(self, index: int, peer: int) -> bool:  # noqa: N802
        return index != peer

    def getCompiledVersion(self) -> int:  # noqa: N802
        major, minor = (torch.version.cuda or "0.0").split(".")[:2]
        return int(major) * 1000 + int(minor) * 10

    def getArchFlags(self) -> str | None:  # noqa: N802
        capability = self._runtime.chip.presentation.capability
        return f"sm_{capability[0]}{capability[1]}" if capability else None

    # Streams

    def synchronize(self) -> None:
        torch.accelerator.synchronize(self._runtime.current_device())

    def getCurrentStream(self, index: int) -> tuple[int, int, int]:  # noqa: N802
        return _triple(torch.accelerator.current_stream(index))

    def getDefaultStream(self, index: int) -> tuple[int, int, int]:  # noqa: N802
        return 0, self._index(index), self._type

    def getStreamFromExternal(self, pointer: int, index: int) -> tuple[int, int, int]:  # noqa: N802
        return pointer, self._index(index), self._type

    def getCurrentRawStream(self, index: int) -> int:  # noqa: N802
        return self.getCurrentStream(index)[0]

    def setStream(self, stream_id: int, device_index: int, device_type: int) -> None:  # noqa: N802
        self._runtime.set_device(device_index)
        stream = torch.Stream(
            stream_id=stream_id, device_index=device_index, device_type=device_type
        )
        torch.accelerator.set_stream(stream)

    def isCurrentStreamCapturing(self) -> bool:  # noqa: N802
        return False

    def sleep(self, cycles: int) -> None:
        clock = self._runtime.chip.facts.get("clock")
        hertz = float(clock.value) if clock and isinstance(clock.value, int | float) else 1e9
        time.sleep(cycles / hertz)

    def get_sync_debug_mode(self) -> int:
        return self._sync_debug_mode

    def set_sync_debug_mode(self, mode: int) -> None:
        self._sync_debug_mode = mode
        self._tally.answered_by_default(
            "torch.cuda.set_sync_debug_mode", "kept, without effect", "every call is synchronous"
        )

    # Memory

    def memoryStats(self, index: int) -> dict[str, Any]:  # noqa: N802
        return dict(self._runtime.memory_stats(self._index(index)))

    def resetPeakMemoryStats(self, index: int) -> None:  # noqa: N802
        self._runtime.reset_peaks(self._index(index))

    def resetAccumulatedMemoryStats(self, index: int) -> None:  # noqa: N802
        self._runtime.reset_accumulated(self._index(index))

    def emptyCache(self, pool: object = None) -> None:  # noqa: N802
        self._runtime.empty_cache()

    def ipc_collect(self) -> None:
        self._runtime.collect_shared()

    def setMemoryFraction(self, fraction: float, index: int) -> None:  # noqa: N802
        self._runtime.set_memory_fraction(fraction, self._index(index))

    def getMemoryFraction(self, index: int) -> float:  # noqa: N802
        return self._runtime.memory_fraction(self._index(index))

    def memorySnapshot(self, *args: object) -> dict[str, Any]:  # noqa: N802
        segments = [
            segment
            for index in range(self._runtime.count)
            for segment in _segments(index, self._runtime.memory_snapshot(index))
        ]
        return {"segments": segments, "device_traces": [], "allocator_settings": {}}

    def getAllocatorBackend(self) -> str:  # noqa: N802
        return "native"

    def cudaCachingAllocator_is_enabled(self) -> bool:  # noqa: N802
        return True

    def cudaCachingAllocator_enable(self, enabled: bool) -> None:  # noqa: N802
        self._tally.answered_by_default(
            "torch.cuda.caching_allocator_enable", "on", "the chip's allocator always caches"
        )

    def hostMemoryStats(self) -> dict[str, Any]:  # noqa: N802
        return {}

    def customAllocator(self, *args: object) -> None:  # noqa: N802
        why = "an allocator written against the CUDA runtime has no CUDA runtime to call here"
        self._tally.refused("torch.cuda.CUDAPluggableAllocator", why)
        raise RefusedError(f"torch.cuda.CUDAPluggableAllocator: {why}")

    def _index(self, index: int) -> int:
        return self._runtime.current_device() if index < 0 else index


def visible_count(chip: Chip, count: int) -> int:
    """How many chips of `count` the chip's visibility variable, or else CUDA's, leaves.

    As CUDA reads it: indices separated by commas; the list ends at the first that does not exist.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chip.presentation.visible_env:
        listed = os.environ.get(chip.presentation.visible_env, listed)
    if listed is None:
        return count
    seen: list[int] = []
    for item in listed.split(","):
        if not item.strip().isdigit() or int(item) >= count or int(item) in seen:
            break
        seen.append(int(item))
    return len(seen)


def _nothing(*args: object, **kwargs: object) -> None:
    """What has no effect on a device whose work is done at once."""


_NOTHING = (
    *("_cuda_clearCublasWorkspaces", "_cuda_record_memory_history"),
    *("_cuda_record_memory_history_legacy", "_cuda_attach_out_of_memory_observer"),
    *("_cuda_resetAccumulatedHostMemoryStats", "_cuda_resetPeakHostMemoryStats"),
    *("_cuda_setMemoryMetadata", "_cuda_lock_mutex", "_cuda_unlock_mutex"),
    *("_cudnn_set_conv_benchmark_empty_cache", "_cuda_set_cudnn_benchmark_limit"),
)


def _constants(chip: Chip) -> dict[str, Any]:
    return {
        "_has_cuda": True,
        "_cuda_getCurrentBlasHandle": lambda: 0,
        "_cuda_getCurrentSolverHandle": lambda: 0,
        "_cuda_isHistoryEnabled": lambda: False,
        "_cuda_get_cudnn_benchmark_limit": lambda: 10,
        "_cuda_getMemoryMetadata": lambda: "",
        "_cuda_CUDAAllocator_AllocatorState": object,
    }


def _triple(stream: torch.Stream) -> tuple[int, int, int]:
    return stream.stream_id, stream.device_index, stream.device_type


def _segments(index: int, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Blocks grouped into the segments of `torch.cuda.memory_snapshot`."""
    segments: list[dict[str, Any]] = []
    for block in blocks:
        if block["segment_start"]:
            segments.append(
                {
                    "device": index,
                    "address": block["address"],
                    "stream": block["stream"],
                    "segment_type": block["segment_type"],
                    "segment_pool_id": (0, 0),
                    "is_expandable": False,
                    "frames": [],
                    "blocks": [],
                    "total_size": 0,
                    "allocated_size": 0,
                    "active_size": 0,
                    "requested_size": 0,
                }
            )
        segment = segments[-1]
        used = block["state"] == "active_allocated"
        segment["total_size"] += block["size"]
        segment["allocated_size"] += block["size"] if used else 0
        segment["active_size"] += block["size"] if used else 0
        segment["requested_size"] += block["requested_size"] if used else 0
        segment["blocks"].append(
            {key: block[key] for key in ("address", "size", "requested_size", "state")}
            | {"frames": []}
        )
    return segments
