"""One rank: runs `module:function` and leaves its results. Started by conftest."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Place:
    """Where a rank of a program runs."""

    rank: int
    world: int
    kind: str  # "cuda", a maker's name for its device, or "cpu"
    backend: str
    folder: Path

    @property
    def device(self) -> torch.device:
        """This rank's device, as a program takes it from LOCAL_RANK."""
        return torch.device(self.kind, self.rank) if self.kind != "cpu" else torch.device("cpu")


def to_plain(value: Any) -> Any:
    """The same containers, with tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def main(program: str, folder: Path, backend: str, kind: str, rank: int) -> None:
    torch.set_num_threads(1)
    module, _, name = program.partition(":")
    world = int(os.environ["WORLD_SIZE"])
    place = Place(rank, world, kind, backend, folder)
    if kind != "cpu":
        torch.get_device_module(kind).set_device(rank)
    dist.init_process_group(
        backend,
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=120),
    )
    sys.path.insert(0, str(Path(__file__).parent / "programs"))
    torch.manual_seed(0)
    results = getattr(importlib.import_module(module), name)(place)
    torch.save(to_plain(results), folder / f"{rank}.pt")
    dist.destroy_process_group()
    # What a cycle keeps of a group keeps its threads, and one that drops a tensor while Python ends
    # aborts the process (PyTorch's own race, seen with asynchronous checkpoints).
    gc.collect()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
