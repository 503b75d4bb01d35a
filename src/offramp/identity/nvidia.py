"""What a CUDA build of PyTorch has of NVIDIA's own libraries, and a build without CUDA has not.

On a virtual chip both are to answer alike. Functions of `torch._C` that neither `driver` nor
another part of identity replaced would reach for a GPU of NVIDIA's: they are refused by name.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from offramp.identity.patches import Patches
from offramp.identity.runtime import Runtime
from offramp.identity.tally import Tally

_PREFIXES = ("_cuda_", "_nccl_", "_gds_", "_cudnn_")
_WHY = "it drives an NVIDIA GPU"


def install(runtime: Runtime, counts: Tally, patches: Patches) -> None:
    """Close the ways to NVIDIA's libraries; to be called after what it would close otherwise."""
    refusals = _refusals(counts)
    for name, (_, refuse) in refusals.items():
        patches.set(torch._C, name, refuse)
    _rebind(list(refusals.values()), patches)
    for name in ("cudnn", "cusparselt", "magma", "gds"):
        patches.set(torch._C, f"_has_{name}", False)
    patches.set(torch.cuda, "has_magma", False)
    patches.set(torch.backends.cudnn, "version", lambda: None)
    patches.set(torch.backends.cusparselt, "_init", lambda: False)
    patches.set(torch._C, "_is_flash_attention_available", lambda: False)
    for kind in ("flash", "mem_efficient", "cudnn"):
        patches.set(torch._C, f"_can_use_{kind}_attention", lambda *arguments: False)
    if torch.distributed.is_available():
        patches.set(torch._C._distributed_c10d, "_is_nvshmem_available", lambda: False)
    _keep_from_fusing(patches)


def _keep_from_fusing(patches: Patches) -> None:
    """TorchScript fuses operators into kernels of CUDA where it was compiled with it."""
    before = torch._C._jit_can_fuse_on_gpu()
    torch._C._jit_override_can_fuse_on_gpu(False)
    patches.on_undo(lambda: torch._C._jit_override_can_fuse_on_gpu(before))


def _refusals(counts: Tally) -> dict[str, tuple[Any, Callable[..., NoReturn]]]:
    """Name in `torch._C` to the function there and what takes its place."""
    left = {
        name: value
        for name, value in vars(torch._C).items()
        if name.startswith(_PREFIXES) and isinstance(value, types.BuiltinFunctionType)
    }
    return {
        name: (value, counts.refusing(f"torch._C.{name}", _WHY)) for name, value in left.items()
    }


def _rebind(replaced: list[tuple[Any, Any]], patches: Patches) -> None:
    """The same in modules of `torch.cuda` that imported a function by its name."""
    taken = {id(before): after for before, after in replaced}
    modules = [module for name, module in sys.modules.items() if name.startswith("torch.cuda")]
    for module in modules:
        for name, value in list(vars(module).items()):
            if id(value) in taken:
                patches.set(module, name, taken[id(value)])
