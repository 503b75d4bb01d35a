"""Process groups of a rehearsal: one process plays its rank, and every other does as it does."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed import distributed_c10d

from offramp.identity import compilers
from offramp.identity.patches import Patches


def install(core: Any, backend: Any, patches: Patches) -> None:
    """Let groups of any size form in this process alone, on the chip and on host memory.

    backend   of torch.compile, in place of those that generate kernels
    """
    patches.set(compilers, "stand_in", backend)

    # `torch.distributed.rendezvous` is a function that hides its module.
    rendezvous: Any = sys.modules["torch.distributed.rendezvous"]

    def meet(url: str, *args: Any, **kwargs: Any) -> Iterator[tuple[Any, int, int]]:
        rank = int(kwargs.get("rank", os.environ.get("RANK", 0)))
        size = int(kwargs.get("world_size", os.environ.get("WORLD_SIZE", 1)))
        yield torch._C._distributed_c10d.HashStore(), rank, size

    for scheme in ("env", "tcp", "file"):
        patches.item(rendezvous._rendezvous_handlers, scheme, meet)

    patches.set(distributed_c10d, "ProcessGroupGloo", core.Mirror)
    core.connect_groups_with(lambda store, rank, size, timeout: core.Mirror(store, rank, size))
