"""A data-parallel program as torchrun and accelerate start it, with nothing but PyTorch's names."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

if __name__ == "__main__":
    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    x = torch.full((3,), rank + 1.0, device="cuda")
    dist.all_reduce(x)
    model = DistributedDataParallel(torch.nn.Linear(3, 1).cuda(), device_ids=[rank])
    model(x).sum().backward()
    alone = dist.split_group(split_ranks=[[0], [1]])
    dist.all_reduce(x, group=alone)
    grad = next(iter(model.module.parameters())).grad
    if rank == 0:
        print(dist.get_backend(), x.tolist(), grad.tolist(), torch.cuda.get_device_name())
    dist.barrier()
    dist.destroy_process_group()
