"""The end of a process that has trained: autograd's device threads let go of Python first.

PyTorch runs a backward pass for an accelerator in a thread of the device, and what the pass kept of
Python is released there, after the caller has gone on. A program that ends within those few
milliseconds finalizes Python under that thread, and the process aborts ("terminate called without
an active exception") with everything done. So the end of the process waits for them.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_TASKS = Path("/proc/self/task")
_NAME = "pt_autograd"


def install(devices: Callable[[], list[torch.device]]) -> None:
    """Wait at exit for the threads of `devices()`."""
    atexit.register(_settle, devices)


def _settle(devices: Callable[[], list[torch.device]]) -> None:
    """A pass of nothing through every thread: it comes after what the thread was still at."""
    if not any(_comm(task).startswith(_NAME) for task in _TASKS.glob("*/comm")):
        return
    for device in devices():
        _pass_of_nothing(device)


def has_thread(device: torch.device) -> bool:
    """Whether autograd has a thread for the device; starts its threads where there are none yet.

    PyTorch starts one for each device that there is at the first backward pass of the process, of
    whatever device, and none later.
    """
    try:
        _pass_of_nothing(device)
    except RuntimeError as error:
        if "device_ready_queues_" not in str(error):
            raise
        return False
    return True


def _pass_of_nothing(device: torch.device) -> None:
    leaf = torch.empty(0, device=device, requires_grad=True)
    # Below torch.autograd.backward, which has each pass keep the caller's context.
    engine: Any = torch.autograd.Variable._execution_engine
    engine.run_backward((leaf,), (leaf.detach(),), False, False, (), accumulate_grad=True)


def _comm(task: Path) -> str:
    try:
        return task.read_text()
    except OSError:  # the thread has ended since
        return ""
