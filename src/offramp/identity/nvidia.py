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
    patches.set(torch._C, "_can_use_flash_attention", _can_use_flash)
    for kind in ("mem_efficient", "cudnn"):
        patches.set(torch._C, f"_can_use_{kind}_attention", lambda *arguments: False)
    if torch.distributed.is_available():
        patches.set(torch._C._distributed_c10d, "_is_nvshmem_available", lambda: False)
    _keep_from_fusing(patches)


def _can_use_flash(params: torch.backends.cuda.SDPAParams, debug: bool = False) -> bool:
    """Whether the chip would take its flash kernel, whose causal mask ends with the last key.

    That of nested tensors is another kernel, which a virtual chip has not.
    """
    query, key, value = params.query, params.key, params.value
    short = query.dtype in (torch.float16, torch.bfloat16)
    if not short or not query.is_cuda or query.is_nested or params.attn_mask is not None:
        return False
    chosen = torch._fused_sdp_choice(
        query, key, value, dropout_p=params.dropout, enable_gqa=params.enable_gqa
    )
    return bool(chosen == torch.nn.attention.SDPBackend.FLASH_ATTENTION.value)


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
