"""`torch.cuda` on a PyTorch without CUDA: its own code, above the boundary that `driver` gives.

After `install`, a program that asks for CUDA finds it: the module's functions run as they do in a
CUDA build. What cannot be had is refused by name, with the reason and the way out.
"""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Callable
from typing import Any

import torch

from offramp.identity import properties, streams, tally
from offramp.identity.driver import Driver
from offramp.identity.patches import Patches
from offramp.identity.runtime import Runtime
from offramp.identity.tally import Tally

# PyTorch's classes that a program may instantiate but that nothing stands behind.
_REFUSED_CLASSES = ("CUDAGraph", "MemPool", "GreenContext")


def install(runtime: Runtime, counts: Tally, patches: Patches) -> None:
    """Make `torch.cuda` answer for `runtime`. Undone by `patches.undo()`."""
    _install_boundary(runtime, counts, patches)
    _install_streams(runtime, patches)
    _install_module(runtime, counts, patches)
    _install_backends(runtime, counts, patches)
    _count_public_names(counts, patches)


def _install_boundary(runtime: Runtime, counts: Tally, patches: Patches) -> None:
    for name, function in Driver(runtime, counts).functions().items():
        patches.set(torch._C, name, function)
    patches.set(torch.cuda, "_is_in_bad_fork", runtime.in_forked_child)
    patches.set(torch.cuda, "_exchange_device", torch._C._cuda_exchangeDevice)
    patches.set(torch.cuda, "_maybe_exchange_device", torch._C._cuda_maybeExchangeDevice)
    capturing = torch._C._cuda_isCurrentStreamCapturing  # imported by name at `import torch`
    patches.set(torch.cuda.graphs, "_cuda_isCurrentStreamCapturing", capturing)
    patches.set(torch.version, "cuda", _toolkit_version(runtime, counts))


def _toolkit_version(runtime: Runtime, counts: Tally) -> str:
    """`torch.version.cuda`: the chip's fact, or this build's, or a default that can be parsed.

    Packages compare the version that they were built for with it, and refuse another.
    """
    fact = runtime.chip.presentation.facts.get("cuda_version")
    if fact is not None:
        return str(fact.value)
    answer = torch.version.cuda or "12.8"
    counts.answered_by_default("torch.version.cuda", answer, "not public for this chip's wheel")
    return answer


def _install_streams(runtime: Runtime, patches: Patches) -> None:
    """Build PyTorch's own Stream and Event classes again, over bases that work."""
    module = importlib.import_module("torch.cuda.streams")
    names = ("Stream", "ExternalStream", "Event")
    before = {name: getattr(module, name) for name in names}
    patches.item(torch._C.__dict__, "_CudaStreamBase", streams.stream_base(runtime))
    patches.item(torch._C.__dict__, "_CudaEventBase", streams.event_base(runtime))
    importlib.reload(module)
    for name in names:
        patches.set(torch.cuda, name, getattr(module, name))
    patches.on_undo(lambda: vars(module).update(before))


def _install_module(runtime: Runtime, counts: Tally, patches: Patches) -> None:
    cuda = torch.cuda
    patches.set(cuda, "_cudart", _cudart(runtime))
    patches.set(cuda, "_initialized", False)
    patches.set(cuda, "_queued_calls", [])  # their checks concern NVIDIA's own kernels
    patches.set(cuda, "_CudaDeviceProperties", properties.DeviceProperties)
    patches.set(torch._C, "_CudaDeviceProperties", properties.DeviceProperties)
    patches.set(cuda, "default_generators", ())
    patches.set(cuda, "device_count", lambda: torch._C._cuda_getDeviceCount())

    def get_device_properties(index: int) -> properties.DeviceProperties:
        return properties.read(runtime.chip, runtime.mem_get_info(index)[1], index, counts)

    patches.set(cuda, "_get_device_properties", get_device_properties)

    def mem_get_info(device: Any = None) -> tuple[int, int]:
        cuda._lazy_init()
        return runtime.mem_get_info(cuda._utils._get_device_index(device, optional=True))

    patches.set(cuda.memory, "mem_get_info", mem_get_info)
    patches.set(cuda, "mem_get_info", mem_get_info)
    for name in _REFUSED_CLASSES:
        _refuse_class(name, counts, patches)
    _refuse_functions(counts, patches)
    for name in ("utilization", "temperature", "power_draw", "clock_rate"):
        patches.set(cuda, name, _sensor(name, counts))

    def device_memory_used(device: Any = None) -> int:
        free, total = mem_get_info(device)
        return total - free

    patches.set(cuda, "device_memory_used", device_memory_used)
    patches.set(cuda, "memory_usage", _sensor("memory_usage", counts))
    patches.set(cuda.nccl, "version", lambda: _nccl_version(counts))


def _nccl_version(counts: Tally) -> tuple[int, int, int]:
    answer = (2, 21, 5)
    why = "the collectives are no NCCL; programs compare its version"
    counts.answered_by_default("torch.cuda.nccl.version", ".".join(map(str, answer)), why)
    return answer


def _sensor(name: str, counts: Tally) -> Callable[..., int]:
    """A reading that a virtual chip does not have; programs only log it."""

    def read(device: Any = None) -> int:
        counts.answered_by_default(f"torch.cuda.{name}", 0, "a virtual chip has no such sensor")
        return 0

    return read


def _refuse_functions(counts: Tally, patches: Patches) -> None:
    for full, entry in tally.table().items():
        prefix, _, leaf = full.rpartition(".")
        function = getattr(torch.cuda, leaf, None)
        if not isinstance(function, types.FunctionType):
            continue
        if entry.answer == "refused" and prefix == "torch.cuda":
            refuse = functools.wraps(function)(
                counts.refusing(full, entry.reason)
            )  # PyTorch unwraps some
            patches.set(torch.cuda, leaf, refuse)


def _refuse_class(name: str, counts: Tally, patches: Patches) -> None:
    full = f"torch.cuda.{name}"
    refuse = counts.refusing(full, tally.table()[full].reason)
    refused = type(name, (), {"__new__": refuse, "__module__": "torch.cuda"})
    patches.set(torch.cuda, name, refused)
    home = {"CUDAGraph": "graphs", "MemPool": "memory", "GreenContext": "green_contexts"}[name]
    patches.set(getattr(torch.cuda, home), name, refused)


def _cudart(runtime: Runtime) -> types.SimpleNamespace:
    """The CUDA runtime module, as far as PyTorch programs call it: profiler marks and memory."""
    success = 0
    return types.SimpleNamespace(
        cudaError=types.SimpleNamespace(success=success),
        cudaGetErrorString=lambda code: f"CUDA error {code}",
        cudaProfilerStart=lambda: success,
        cudaProfilerStop=lambda: success,
        cudaStreamCreate=lambda pointer: success,
        cudaStreamDestroy=lambda pointer: success,
        cudaHostRegister=lambda pointer, size, flags: success,
        cudaHostUnregister=lambda pointer: success,
        cudaMemGetInfo=lambda index: runtime.mem_get_info(index),
    )


def _install_backends(runtime: Runtime, counts: Tally, patches: Patches) -> None:
    """`torch.backends`: cuDNN is absent, and says so without a warning about the build."""
    patches.set(torch.backends.cudnn, "is_acceptable", lambda tensor: False)
    patches.set(torch.cuda.CUDAPluggableAllocator, "__init__", torch._C._cuda_customAllocator)
    nothing: Callable[..., None] = lambda *args, **kwargs: None  # noqa: E731
    names = ("mark", "range_push", "range_pop", "range_start", "range_end")
    for name in names:
        patches.set(torch.cuda.nvtx, name, nothing)


def _count_public_names(counts: Tally, patches: Patches) -> None:
    """Count the functions of the table that are plain functions in `torch` now."""
    for name, entry in tally.table().items():
        if entry.answer == "refused" or not name.startswith("torch.cuda."):
            continue
        owner: Any = torch
        *path, leaf = name.split(".")[1:]
        for part in path:
            owner = getattr(owner, part, None)
        function = vars(owner).get(leaf) if owner is not None else None
        if isinstance(function, types.FunctionType):
            patches.set(owner, leaf, counts.counted(name, function))
