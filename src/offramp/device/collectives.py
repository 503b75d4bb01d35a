"""Collectives between the processes that play chips.

The class is native: it runs a group's calls in their order, makes the reductions, formats and
splits that CUDA's collectives have, and gives handles whose futures hold the chip's tensors. The
bytes travel by Gloo, which PyTorch has on every machine.
"""

from __future__ import annotations

from datetime import timedelta
from types import ModuleType
from typing import Any

from offramp.errors import OfframpError


def process_group_class(core: ModuleType) -> type:
    """The backend class, a subclass of `torch._C._distributed_c10d.Backend`.

    It is constructed as PyTorch constructs `ProcessGroupNCCL`: store, rank, size, options.
    """
    if not hasattr(core, "ProcessGroupNCCL"):
        core.bind_collectives()
        core.connect_groups_with(_connect)
    found: type = core.ProcessGroupNCCL
    return found


def _connect(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    """The Gloo backend that carries a group's bytes; blocks until every rank is there."""
    import torch.distributed as dist

    if not dist.is_gloo_available():
        raise OfframpError(
            "groups of virtual chips need a PyTorch with Gloo, and this one has none"
        )
    return dist.ProcessGroupGloo(store, rank, size, timeout=timeout)
