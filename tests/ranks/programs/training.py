"""Small models trained by PyTorch's ways to spread work over ranks, as programs for CUDA do it.

Every function trains a few steps and gives losses and final weights. `place.kind` is the device's
name: nothing else differs between a run on chips and one over Gloo on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

STEPS = 3


def network(place: Any, width: int = 16) -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(3)]
    return nn.Sequential(*layers, nn.Linear(width, 4)).to(place.device)


def batch(place: Any, step: int, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(100 * step + place.rank)
    x = torch.randn(6, width, generator=made)
    return x.to(place.device), torch.randn(6, 4, generator=made).to(place.device)


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a DTensor, gathered on the mesh's device wherever the parts are kept."""
    if not isinstance(tensor, DTensor):
        return tensor
    mesh = tensor.device_mesh
    part = tensor.to_local().detach().to(mesh.device_type)
    return DTensor.from_local(part, mesh, tensor.placements).full_tensor()


def train(place: Any, model: nn.Module, forward: Any = None, steps: int = STEPS) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        x, y = batch(place, step)
        loss = nn.functional.mse_loss((forward or model)(x).float(), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses, [full(p) for p in model.parameters()]


def data_parallel(place: Any) -> dict[str, Any]:
    """DDP with each of its options."""
    ids = [place.rank] if place.kind == "cuda" else None
    results = {}
    options = {
        "plain": {},
        "bucket_view": {"gradient_as_bucket_view": True},
        "static": {"static_graph": True},
        "small_buckets": {"bucket_cap_mb": 0.001},
    }
    for name, chosen in options.items():
        results[name] = train(
            place, DistributedDataParallel(network(place), device_ids=ids, **chosen)
        )
    hooks = {"fp16": default_hooks.fp16_compress_hook, "bf16": default_hooks.bf16_compress_hook}
    for name, hook in hooks.items():
        model = DistributedDataParallel(network(place), device_ids=ids)
        if place.kind == "cpu":  # PyTorch looks for CUDA when the hook has its own name
            model.register_comm_hook(hook, _under_another_name)
        else:
            model.register_comm_hook(None, hook)
        results[name] = train(place, model)
    model = DistributedDataParallel(network(place), device_ids=ids)
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    results["power_sgd"] = train(place, model)
    results["unused"] = unused(place, ids)
    results["no_sync"] = no_sync(place, ids)
    return results


def _under_another_name(hook, bucket):  # PyTorch reads a hook's annotations, and these are text
    return hook(None, bucket)


def unused(place: Any, ids: Any) -> Any:
    """A branch that only rank 0 takes."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.side = network(place), network(place)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.trunk(x)
            return out + self.side(x) if place.rank == 0 else out

    return train(
        place, DistributedDataParallel(Branches(), device_ids=ids, find_unused_parameters=True)
    )


def no_sync(place: Any, ids: Any) -> Any:
    model = DistributedDataParallel(network(place), device_ids=ids)
    with model.no_sync():
        x, y = batch(place, 0)
        nn.functional.mse_loss(model(x), y).backward()
    x, y = batch(place, 1)
    nn.functional.mse_loss(model(x), y).backward()
    return [p.grad for p in model.parameters()]


def sharded(place: Any) -> dict[str, Any]:
    """FSDP2 over one dimension, with each of its policies."""
    mesh = init_device_mesh(place.kind, (place.world,))
    low = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "kept": {"reshard_after_forward": False},
        "mixed": {"mp_policy": low},
        "offload": {"offload_policy": CPUOffloadPolicy(pin_memory=place.kind == "cuda")},
    }
    return {
        name: train(place, shard(network(place), mesh, **chosen))
        for name, chosen in options.items()
    }


def shard(model: nn.Module, mesh: Any, **options: Any) -> nn.Module:
    options.setdefault("offload_policy", OffloadPolicy())
    for layer in model[:-1]:
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def meshes(place: Any) -> dict[str, Any]:
    """Four ranks as two by two: hybrid sharding, and tensor parallel within data parallel."""
    from torch.distributed.tensor import parallel

    mesh = init_device_mesh(place.kind, (2, 2), mesh_dim_names=("dp", "tp"))
    hybrid = train(place, shard(network(place), mesh))
    model = network(place)
    plan = {
        "0.0": parallel.ColwiseParallel(),
        "1.0": parallel.RowwiseParallel(),
    }
    data = _Shared(place, mesh["dp"].get_local_rank())
    model = parallel.parallelize_module(model, mesh["tp"], plan)
    for layer in model:
        fully_shard(layer, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    return {"hybrid": hybrid, "tensor_in_data": train(data, model)}


class _Shared:
    """A place whose data is the same for all ranks of one model."""

    def __init__(self, place: Any, rank: int) -> None:
        self.rank, self.device, self.kind = rank, place.device, place.kind


def tensor_parallel(place: Any) -> dict[str, Any]:
    from torch.distributed.tensor import Replicate, Shard, parallel

    mesh = init_device_mesh(place.kind, (place.world,))
    data = _Shared(place, 0)
    plan = {
        "0.0": parallel.ColwiseParallel(),
        "1.0": parallel.RowwiseParallel(output_layouts=Shard(0)),
        "2.0": parallel.SequenceParallel(sequence_dim=0),
    }
    model = network(place)
    model[2] = nn.Sequential(nn.LayerNorm(16), nn.Tanh()).to(place.device)
    model[3] = nn.Linear(16, 4).to(place.device)
    plan["3"] = parallel.ColwiseParallel(input_layouts=Shard(0), output_layouts=Replicate())
    model = parallel.parallelize_module(model, mesh, plan)
    results: dict[str, Any] = {"trained": train(data, model)}
    whole = torch.arange(24, dtype=torch.float32, device=place.device).view(6, 4)
    spread = DTensor.from_local(whole[:3], mesh, [Replicate()]).redistribute(placements=[Shard(0)])
    results["redistributed"] = [
        spread.redistribute(placements=[Shard(1)]).to_local(),
        spread.full_tensor(),
        (spread @ spread.t()).full_tensor(),
    ]
    return results


def fully_sharded_first(place: Any) -> Any:
    """FSDP1, which exists for accelerators only."""
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    results = {}
    for strategy in (ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP):
        model = FullyShardedDataParallel(
            network(place),
            auto_wrap_policy=ModuleWrapPolicy({nn.Linear}),
            sharding_strategy=strategy,
            device_id=place.device if place.kind == "cuda" else None,
        )
        losses, _ = train(place, model)
        with FullyShardedDataParallel.summon_full_params(model):
            results[strategy.name] = losses, [p.detach().clone() for p in model.parameters()]
    return results


def batch_norm(place: Any) -> Any:
    """SyncBatchNorm against one whole batch on one rank."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)).to(place.device)
    x = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(5)).to(place.device)
    if place.kind == "cpu":  # it exists for accelerators only
        loss = model(x).square().mul(torch.arange(4.0).view(4, 1, 1)).mean()
        loss.backward()
        out, grads = model[1].running_var, [p.grad for p in model.parameters()]
        return out, grads
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = DistributedDataParallel(model, device_ids=[place.rank])
    part = x.chunk(place.world)[place.rank]
    weights = torch.arange(4.0, device=place.device).view(4, 1, 1)
    model(part).square().mul(weights).mean().backward()
    return model.module[1].running_var, [p.grad for p in model.parameters()]


def pipelines(place: Any) -> dict[str, Any]:
    from torch.distributed import pipelining

    results = {}
    schedules = {"gpipe": pipelining.ScheduleGPipe, "1f1b": pipelining.Schedule1F1B}
    for name, schedule in schedules.items():
        stage = _stages(place, 1)
        results[name] = _pipeline(place, schedule(stage[0], 4, nn.functional.mse_loss), stage)
    stages = _stages(place, 2)
    schedule = pipelining.ScheduleInterleaved1F1B(stages, 4, nn.functional.mse_loss)
    results["interleaved"] = _pipeline(place, schedule, stages)
    return results


def _stages(place: Any, each: int) -> list[Any]:
    from torch.distributed.pipelining import PipelineStage

    count = each * place.world
    torch.manual_seed(2)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(count)]
    mine = range(place.rank, count, place.world)
    return [PipelineStage(layers[i].to(place.device), i, count, place.device) for i in mine]


def _pipeline(place: Any, schedule: Any, stages: list[Any]) -> Any:
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(4)).to(place.device)
    losses: list[torch.Tensor] = []
    if place.rank == 0:
        schedule.step(x, target=x.tanh(), losses=losses) if place.world == 1 else schedule.step(x)
    else:
        schedule.step(target=x.tanh(), losses=losses)
    return losses, [[p.grad for p in stage.submod.parameters()] for stage in stages]


def checkpoints(place: Any) -> dict[str, Any]:
    """Saved from FSDP2 by torch.distributed.checkpoint, loaded into another model."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import state_dict as states

    mesh = init_device_mesh(place.kind, (place.world,))
    model = shard(network(place), mesh)
    losses, _ = train(place, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loss = model(batch(place, 9)[0]).sum()
    loss.backward()
    optimizer.step()
    saved = states.get_state_dict(model, optimizer)
    target = {"model": saved[0], "optimizer": saved[1]}
    dcp.save(target, checkpoint_id=str(place.folder / "dcp"))
    other = shard(network(place), mesh)
    fresh = torch.optim.AdamW(other.parameters(), lr=5e-2)
    empty = states.get_state_dict(other, fresh)
    loaded = {"model": empty[0], "optimizer": empty[1]}
    dcp.load(loaded, checkpoint_id=str(place.folder / "dcp"))
    states.set_state_dict(
        other, fresh, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"]
    )
    whole = states.get_model_state_dict(
        other, options=states.StateDictOptions(full_state_dict=True)
    )
    return {
        "losses": losses,
        "before": [full(p) for p in model.parameters()],
        "after": [full(p) for p in other.parameters()],
        "moments": [full(fresh.state[p]["exp_avg"]) for p in other.parameters()],
        "whole": whole,
    }


def asynchronous_checkpoint(place: Any) -> Any:
    """Saved in the background; needs a group that has the CPU too."""
    import torch.distributed.checkpoint as dcp

    name = f"x{place.rank}"
    state = {name: torch.full((5,), float(place.rank + 1), device=place.device)}
    path = str(place.folder / "asynchronous")
    dcp.async_save(state, checkpoint_id=path).result()
    state[name].zero_()
    dcp.load(state, checkpoint_id=path)
    host = torch.ones(2)
    dist.all_reduce(host)
    return state[name], host


def drawn_by_shards(place: Any) -> dict[str, Any]:
    """Parameters sharded over ranks are initialized where they lie, as after `to_empty`."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh(place.kind, (place.world,))
    torch.manual_seed(4)
    blank = torch.empty(8, 8, device=place.device)
    parts = distribute_tensor(blank, mesh, [Shard(0)])
    same = distribute_tensor(blank, mesh, [Replicate()])
    nn.init.normal_(parts)
    nn.init.uniform_(same)
    dropped = nn.functional.dropout(distribute_tensor(blank.fill_(1), mesh, [Shard(1)]), 0.5)
    state = torch.cuda.get_rng_state()
    return {
        "parts": parts.full_tensor(),
        "same": same.to_local(),
        "dropped": dropped.full_tensor(),
        "state": state.view(torch.int64),
    }


def attention_of_shards(place: Any) -> dict[str, Any]:
    """Attention with its heads spread over ranks, and over sequences by context parallelism."""
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.experimental import context_parallel
    from torch.distributed.tensor.experimental._attention import context_parallel_unshard
    from torch.nn.attention import SDPBackend, sdpa_kernel

    made = torch.Generator().manual_seed(5)
    qkv = [torch.randn(2, 4, 8, 16, generator=made).to(place.device) for _ in range(3)]
    mesh = init_device_mesh(place.kind, (place.world,))

    def attended(q: Any, k: Any, v: Any) -> list[torch.Tensor]:
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        out = nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)
        out.sum().backward()
        return [full(out.detach()), *(full(leaf.grad) for leaf in leaves)]

    heads = attended(*(distribute_tensor(t, mesh, [Shard(1)]) for t in qkv))
    whole = attended(*qkv)
    buffers = [t.clone() for t in qkv]
    with (
        sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION]),
        context_parallel(mesh, buffers=buffers, buffer_seq_dims=[2, 2, 2]),
    ):
        leaves = [t.detach().requires_grad_() for t in buffers]
        out = nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)
        out.sum().backward()
        parts = [out.detach(), *(leaf.grad for leaf in leaves)]
    sequences = list(context_parallel_unshard(mesh, [*parts], [2] * 4))
    return {"whole": whole, "heads": heads, "sequences": sequences}
