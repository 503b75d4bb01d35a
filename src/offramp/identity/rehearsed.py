"""Ranks of a rehearsal: one process plays its own, and every other does as it does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.multiprocessing
from torch.distributed import distributed_c10d

from offramp.identity import checkpoints, compilers
from offramp.identity.patches import Patches


def install(core: Any, backend: Any, declare: Callable[[str], None], patches: Patches) -> None:
    """Let groups of any size form in this process alone, on the chip and on host memory.

    backend   of torch.compile, in place of those that generate kernels
    declare   counts, by its name, something that was not done
    """
    checkpoints.install(declare, patches)
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
    # The function hides its module, too; programs take it from either.
    for owner in (torch.multiprocessing, sys.modules["torch.multiprocessing.spawn"]):
        patches.set(owner, "spawn", _start_one)
        patches.set(owner, "start_processes", _start_one)


class _Ended:
    """What a program holds of processes that it started: those that are played have ended."""

    def join(self, timeout: float | None = None, grace_period: float | None = None) -> bool:
        """Whether all have ended."""
        return True


def _start_one(
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    nprocs: int = 1,
    join: bool = True,
    *rest: Any,
    **others: Any,
) -> _Ended | None:
    """Of the processes that a program would start on a node, run the played one's here.

    Raises RuntimeError where they are not as many as the node has chips.
    """
    room = int(os.environ.get("LOCAL_WORLD_SIZE") or torch.cuda.device_count())
    if nprocs != room:
        raise RuntimeError(
            f"the program starts {nprocs} processes a node, and this rehearsal's nodes have "
            f"{room}; rehearse it with --per-node {nprocs}"
        )
    fn(int(os.environ.get("LOCAL_RANK", 0)), *args)
    return None if join else _Ended()
