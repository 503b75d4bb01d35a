"""`pynvml`, as far as training programs ask it: names, memory, utilization.

The makers of CUDA-alike chips ship an NVML of their own, so programs that import `pynvml` find
one there too. What a virtual chip has no sensor for is answered 0 and reported as a default.
"""

from __future__ import annotations

import os
import types
from types import SimpleNamespace
from typing import Any

from offramp.identity.runtime import Runtime
from offramp.identity.tally import Tally

_SENSORS = {
    "nvmlDeviceGetTemperature": 0,
    "nvmlDeviceGetPowerUsage": 0,
    "nvmlDeviceGetClockInfo": 0,
    "nvmlDeviceGetMaxClockInfo": 0,
    "nvmlDeviceGetFanSpeed": 0,
    "nvmlDeviceGetTotalEnergyConsumption": 0,
    "nvmlDeviceGetEnforcedPowerLimit": 0,
}


class NVMLError(Exception):
    """What pynvml raises; also for a device that is not there."""


class NVMLError_DriverNotLoaded(NVMLError):  # noqa: N801, N818 -- pynvml's spelling
    """What pynvml raises without a driver: never here, but `torch.cuda` imports it."""


def module(runtime: Runtime, counts: Tally) -> types.ModuleType:
    """A `pynvml` module over `runtime`. A handle is the device's index."""
    made: Any = types.ModuleType("pynvml", __doc__)
    made.NVMLError = NVMLError
    made.NVMLError_DriverNotLoaded = NVMLError_DriverNotLoaded
    made.NVML_TEMPERATURE_GPU = made.NVML_CLOCK_SM = 0
    made.nvmlInit = made.nvmlShutdown = lambda *flags: None
    made.nvmlDeviceGetCount = lambda: runtime.count
    made.nvmlDeviceGetName = lambda handle: runtime.chip.presentation.device_name
    made.nvmlDeviceGetHandleByIndex = lambda index: _checked(runtime, index)
    made.nvmlDeviceGetIndex = lambda handle: handle

    def driver_version() -> str:
        name = "pynvml.nvmlSystemGetDriverVersion"
        counts.answered_by_default(name, "0.0", "a virtual chip has no driver")
        return "0.0"

    made.nvmlSystemGetDriverVersion = driver_version

    def memory(handle: int, version: int | None = None) -> SimpleNamespace:
        free, total = runtime.mem_get_info(handle)
        return SimpleNamespace(free=free, total=total, used=total - free)

    def processes(handle: int) -> list[SimpleNamespace]:
        free, total = runtime.mem_get_info(handle)
        return [SimpleNamespace(pid=os.getpid(), usedGpuMemory=total - free)]

    made.nvmlDeviceGetMemoryInfo = memory
    made.nvmlDeviceGetComputeRunningProcesses = processes

    def sensor(name: str, answer: Any) -> Any:
        def read(*args: object) -> Any:
            counts.answered_by_default(f"pynvml.{name}", 0, "a virtual chip has no such sensor")
            return answer

        return read

    for name, answer in _SENSORS.items():
        setattr(made, name, sensor(name, answer))
    idle = SimpleNamespace(gpu=0, memory=0)
    made.nvmlDeviceGetUtilizationRates = sensor("nvmlDeviceGetUtilizationRates", idle)
    counts.met("pynvml")
    result: types.ModuleType = made
    return result


def _checked(runtime: Runtime, index: int) -> int:
    if not 0 <= index < runtime.count:
        raise NVMLError(f"Invalid Argument: device {index} of {runtime.count}")
    return index
