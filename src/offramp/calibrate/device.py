"""The device that is measured: chosen, and described in the facts of a chip file."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from offramp.chips.host import host_memory_bytes
from offramp.errors import UsageError


def choose(name: str) -> torch.device:
    """The device of that name; without one the machine's accelerator, else its processor.

    Raises UsageError where PyTorch has no such device here.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if not name:
        return torch.device(accelerator or "cpu")
    there = ["cpu", *([accelerator.type] if accelerator is not None else [])]
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise _no_such(name, there) from error
    count = torch.accelerator.device_count() if device.type != "cpu" else 1
    if device.type not in there or (device.index or 0) >= count:
        raise _no_such(name, there)
    return device


def _no_such(name: str, there: list[str]) -> UsageError:
    return UsageError(f"no device {name!r} on this machine; PyTorch has {', '.join(there)} here")


def title(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cpu":
        return _processor()
    module: Any = torch.get_device_module(device)
    named = getattr(module, "get_device_name", None)
    return str(named(device)) if named is not None else device.type


def memory_bytes(device: torch.device) -> int:
    """The memory that programs on it may fill."""
    if device.type == "cpu":
        return host_memory_bytes()
    module: Any = torch.get_device_module(device)
    return int(module.mem_get_info(device)[1])


def capability(device: torch.device) -> str:
    """Such as "9.0", or nothing where the device has none."""
    ask = getattr(torch.get_device_module(device), "get_device_capability", None)
    said = ask(device) if ask is not None and device.type != "cpu" else None
    return ".".join(map(str, said)) if isinstance(said, tuple) and len(said) == 2 else ""


def multiprocessors(device: torch.device) -> int:
    """How many it has, 0 where it does not say or is the host."""
    ask = getattr(torch.get_device_module(device), "get_device_properties", None)
    if device.type == "cpu" or ask is None:
        return 0
    return int(getattr(ask(device), "multi_processor_count", 0))


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
