"""PyTorch's profiler: a chip whose kernels are the host's has no timeline of its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd.profiler

from offramp.identity.patches import Patches
from offramp.identity.runtime import Runtime
from offramp.identity.tally import Tally

_NAME = "torch.profiler.ProfilerActivity.CUDA"


def install(runtime: Runtime, counts: Tally, patches: Patches) -> None:
    """Profile the host's side alone when the program asks for the device's as well."""
    profile: Any = torch.autograd.profiler.profile
    start = profile.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("use_cuda") or kwargs.get("use_device") in ("cuda", runtime.kind):
            why = "kernels of a virtual chip run on the host, and are timed there"
            counts.answered_by_default(_NAME, "no events of the device", why)
            kwargs.pop("use_cuda", None)
            kwargs["use_device"] = None
        start(self, *args, **kwargs)

    patches.set(profile, "__init__", init)
