"""One rank of 4,096: collectives of plain calls, DDP, FSDP2 and tensor parallelism."""

import json
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

CUDA = torch.device("cuda")
found: dict[str, Any] = {}
dist.init_process_group("nccl")
rank, world = dist.get_rank(), dist.get_world_size()
found["rank"], found["world"] = rank, world


def part() -> None:
    torch.cuda.synchronize()


# Plain calls on small tensors with known values.
small = torch.tensor([1.0, 2.0], device=CUDA)
for how in ("SUM", "AVG", "MAX", "PRODUCT"):
    tensor = small.clone() if how != "PRODUCT" else torch.ones(2, device=CUDA)
    dist.all_reduce(tensor, op=getattr(dist.ReduceOp, how))
    found[how] = tensor.tolist()
objects: list[Any] = [None] * world
dist.all_gather_object(objects, {"loss": 0.5})
found["objects"] = [len(objects), all(each == {"loss": 0.5} for each in objects)]
eight = dist.new_group(range(8))
objects = [None] * 8
large = "x" * (1 << 20)  # beyond the tensors that are computed
dist.gather_object(large, objects, dst=0, group=eight)
found["large objects"] = [len(objects), all(each == large for each in objects)]
gathered = torch.empty(world * 2, device=CUDA)
dist.all_gather_into_tensor(gathered, small)
found["gathered"] = [gathered[:2].tolist(), gathered[-2:].tolist(), gathered.sum().item()]
scattered = torch.empty(1, device=CUDA)
dist.reduce_scatter_tensor(scattered, torch.arange(world, device=CUDA).float())
found["scattered"] = scattered.item()
dist.broadcast(small, 0)
dist.barrier()
wide = torch.randn(1 << 20, device=CUDA)
work = dist.all_reduce(wide, async_op=True)
work.wait()
part()

# Data parallel over all, with one bucket.
plain = nn.Sequential(nn.Linear(256, 512, bias=False), nn.Linear(512, 256, bias=False)).to(CUDA)
wrapped = DistributedDataParallel(plain, device_ids=[0], bucket_cap_mb=25)
optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
for _ in range(2):
    part()
    wrapped(torch.randn(64, 256, device=CUDA)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
part()

# Sharded over 8 of the ranks.
mesh = init_device_mesh("cuda", (world // 8, 8), mesh_dim_names=("replicate", "shard"))
torch.manual_seed(0)
layers = nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(3)]).to(CUDA)
for layer in layers:
    fully_shard(layer, mesh=mesh["shard"])
fully_shard(layers, mesh=mesh["shard"])
optimizer = torch.optim.AdamW(layers.parameters(), lr=0.1)
for _ in range(2):
    part()
    layers(torch.randn(64, 256, device=CUDA)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
part()
found["shard"] = list(next(layers.parameters()).to_local().shape)

# Tensor parallel over the same 8.
mlp = nn.Sequential(nn.Linear(256, 1024, bias=False), nn.ReLU(), nn.Linear(1024, 256, bias=False))
tensors = parallelize_module(
    mlp.to(CUDA), mesh["shard"], {"0": ColwiseParallel(), "2": RowwiseParallel()}
)
part()
out = tensors(torch.randn(64, 256, device=CUDA, requires_grad=True))
out.sum().backward()
part()
found["tensor parallel"] = [list(out.shape), list(mlp[0].weight.to_local().shape)]
found["ranks of the mesh"] = mesh["shard"].mesh.tolist()

# On host memory.
hosts = dist.new_group(range(4), backend="gloo")
if rank < 4:
    tensor = torch.tensor([3])
    dist.all_reduce(tensor, group=hosts)
    dist.monitored_barrier(hosts)
    found["on the host"] = tensor.item()
part()
found["pid"] = os.getpid()
print(json.dumps(found))
dist.destroy_process_group()
