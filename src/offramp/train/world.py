"""The processes of a job: who this one is, on which device, and in which groups."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from offramp.chips import Chip
from offramp.errors import UsageError
from offramp.launch.autoload import CHIP_VARIABLE
from offramp.launch.choice import choose
from offramp.train.layout import AXES, Layout

HOST = "cpu"


@dataclass(frozen=True, eq=False)
class World:
    """This process among those of the job.

    mesh is None where the job is one process without collectives; its axes are layout.AXES.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device
    mesh: DeviceMesh | None

    @property
    def is_main(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def coordinate(self, axis: str) -> int:
        """This process's place on an axis."""
        return 0 if self.mesh is None else self.mesh.get_local_rank(axis)

    def place(self, *axes: str) -> int:
        """This process's number among those that differ from it on those axes only."""
        number = 0
        if self.mesh is not None:
            for axis in axes:
                number = number * self.mesh[axis].size() + self.mesh.get_local_rank(axis)
        return number

    def group(self, *axes: str) -> dist.ProcessGroup | None:
        """The processes that differ from this one on those axes only; None: only this one."""
        if self.mesh is None or all(self.mesh[axis].size() == 1 for axis in axes):
            return None
        if len(axes) == 1:
            return self.mesh.get_group(axes[0])
        return self.mesh[axes]._flatten("_".join(axes)).get_group()

    def close(self) -> None:
        """Leave the job's groups.

        What a cycle keeps of a group keeps its threads, and one that drops a tensor while Python
        ends aborts the process: so cycles are collected here.
        """
        if dist.is_initialized():
            dist.destroy_process_group()
            gc.collect()


def virtual_chip(env: Mapping[str, str] = os.environ) -> Chip | None:
    """The chip that this process was started with, if it is a virtual one."""
    started_with = env.get(CHIP_VARIABLE)
    return choose(started_with, None).chip if started_with else None


def device_type(name: str, env: Mapping[str, str] = os.environ) -> str:
    """'cpu' where the job says so, else that of this process's virtual chip, or of PyTorch's own.

    Raises UsageError where there is none: nothing trains on the processor that was not told to.
    """
    if name == HOST:
        return HOST
    if chip := virtual_chip(env):  # by its own name, which no neutral question tells
        return chip.presentation.device_type
    if not torch.accelerator.is_available():
        raise UsageError(
            f"chip.name is {name!r}, and PyTorch finds no accelerator in this process; "
            "expected a device, or chip.name = 'cpu'"
        )
    found = torch.accelerator.current_accelerator()
    assert found is not None
    return found.type


def join(layout: Layout, chip: str, env: Mapping[str, str] = os.environ) -> World:
    """Join the processes that the launcher started (torchrun's variables), or be alone.

    Raises UsageError when their number is not the layout's.
    """
    size, rank = int(env.get("WORLD_SIZE", 1)), int(env.get("RANK", 0))
    local_rank = int(env.get("LOCAL_RANK", rank))
    layout.check_world(size)
    kind = device_type(chip, env)
    device = torch.device(kind)
    if kind != HOST:
        count = torch.accelerator.device_count()
        if local_rank >= count:
            raise UsageError(
                f"process {local_rank} of this node has no chip: {count} are visible here"
            )
        device = torch.device(kind, local_rank)
        torch.accelerator.set_device_index(local_rank)
    if size == 1 and "MASTER_ADDR" not in env:
        return World(rank, size, local_rank, device, None)
    timeout = timedelta(seconds=float(env.get("OFFRAMP_COLLECTIVE_TIMEOUT_S", 1800)))
    # Without device_id: with it, a mesh splits groups, and Gloo's split hangs from four ranks on.
    dist.init_process_group(_backend(kind), timeout=timeout)
    shape = tuple(getattr(layout, axis) for axis in AXES)
    return World(rank, size, local_rank, device, init_device_mesh(kind, shape, mesh_dim_names=AXES))


def _backend(kind: str) -> str:
    """Collectives of the device, and of host memory beside them: checkpoints use those."""
    own = dist.get_default_backend_for_device(kind)
    return "gloo" if kind == HOST else f"cpu:gloo,{kind}:{own}"
