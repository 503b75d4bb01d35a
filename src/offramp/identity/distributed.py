"""The collectives' names: `nccl` groups, and the chip's own (`hccl`, `mccl`), for the device's.

PyTorch without NCCL has everything but the class; the class given by the device takes its place.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from torch.distributed import constants, distributed_c10d

from offramp.identity.patches import Patches
from offramp.identity.runtime import Runtime

TIMEOUT = timedelta(minutes=10)  # NCCL's default, torch/distributed/constants.py


def install(runtime: Runtime, patches: Patches) -> None:
    """Make process groups called `nccl`, or by the chip's own name, those of `runtime`."""
    group = runtime.process_group_class()
    c10d: Any = torch._C._distributed_c10d
    for owner in (c10d, distributed_c10d, torch.distributed):
        patches.set(owner, "ProcessGroupNCCL", group)
    patches.set(group, "__module__", "torch.distributed.distributed_c10d")
    patches.set(distributed_c10d, "_NCCL_AVAILABLE", True)
    patches.set(c10d, "_DEFAULT_PG_NCCL_TIMEOUT", TIMEOUT)
    patches.set(constants, "default_pg_nccl_timeout", TIMEOUT)
    patches.set(distributed_c10d, "default_pg_nccl_timeout", TIMEOUT)
    name = runtime.chip.presentation.collectives
    if name != "nccl":
        _install_own_name(name, runtime.kind, group, patches)
    if runtime.kind != "cuda":
        _register_cuda_as(runtime.kind, patches)


def _install_own_name(name: str, kind: str, group: Any, patches: Patches) -> None:
    """The maker's name for its collectives, as its PyTorch package would register it."""

    def create(given: Any, options: Any) -> Any:
        if options is None:
            options = group.Options()
            options._timeout = timedelta(seconds=given.timeout.total_seconds())
        options._backend_name = name
        options.global_ranks_in_group = given.global_ranks_in_group
        options.group_name = given.group_id
        return group(given.store, given.group_rank, given.group_size, options)

    backend: Any = distributed_c10d.Backend
    patches.set(backend, "backend_list", [*backend.backend_list, name])
    patches.set(backend, name.upper(), name)
    patches.item(backend.backend_capability, name, [kind])
    custom = distributed_c10d.ProcessGroup.BackendType.CUSTOM
    patches.item(backend.backend_type_map, name, custom)
    patches.item(backend._plugins, name.upper(), backend._BackendPlugin(create, True))
    if kind != "cuda":
        patches.item(backend.default_device_backend_map, kind, name)


def _register_cuda_as(kind: str, patches: Patches) -> None:
    """A group for `cuda` is one for `kind` too: there PyTorch files the tensors called `cuda`."""
    process_group: Any = distributed_c10d.ProcessGroup
    register = process_group._register_backend

    def register_backend(self: Any, device: torch.device, *rest: Any) -> None:
        register(self, device, *rest)
        if device.type == "cuda":
            register(self, torch.device(kind), *rest)

    patches.set(process_group, "_register_backend", register_backend)
