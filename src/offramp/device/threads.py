"""The number of compute threads that the program chose, for autograd's threads to take over."""

from __future__ import annotations

import functools
import threading
from types import ModuleType
from typing import Any

import torch


def install(core: ModuleType) -> None:
    """Tell the native core what the main thread has, and sets by `torch.set_num_threads`."""
    core.choose_threads(torch.get_num_threads())
    module: Any = torch
    set_num_threads = torch.set_num_threads

    @functools.wraps(set_num_threads)
    def note(count: int) -> None:
        set_num_threads(count)
        if threading.current_thread() is threading.main_thread():
            core.choose_threads(count)

    module.set_num_threads = note
