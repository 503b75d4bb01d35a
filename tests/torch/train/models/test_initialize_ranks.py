"""Initial values of sharded models equal those of one process: four processes over gloo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from offramp.train.job import LoraSection, ModelSection
from offramp.train.models.build import build, configure
from offramp.train.models.folder import load_weights, save_folder
from offramp.train.models.initialize import initialize
from offramp.train.models.lora import adapt, base_name, initialize_adapters, is_adapter

WORLD = 4
UNEVEN = {"num_hidden_layers": 1, "vocab_size": 301}


def make(preset: str, **changes: Any) -> Any:
    return build(configure(ModelSection(preset=preset, config=changes)))


def whole_values(preset: str, **changes: Any) -> dict[str, torch.Tensor]:
    model = make(preset, **changes)
    initialize(model, seed=1, device="cpu")
    return model.state_dict()


def check(model: Any, whole: dict[str, torch.Tensor]) -> int:
    """Local parts equal what PyTorch itself cuts from the whole; returns how many are sharded."""
    initialize(model, seed=1, device="cpu")
    count = 0
    for key, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, DTensor):
            count += 1
            assert torch.equal(value.full_tensor(), whole[key]), key
        else:
            assert torch.equal(value, whole[key]), key
    return count


def fsdp_over_tensor_parallel(rank: int) -> None:
    whole = whole_values("llama-nano", **UNEVEN)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = make("llama-nano", **UNEVEN)
    for layer in model.model.layers:
        plan: dict[str, Any] = {f"self_attn.{key}_proj": ColwiseParallel() for key in "qkv"}
        plan |= {"self_attn.o_proj": RowwiseParallel(), "mlp.down_proj": RowwiseParallel()}
        plan |= {f"mlp.{key}_proj": ColwiseParallel() for key in ("gate", "up")}
        parallelize_module(layer, mesh["tp"], plan)
        fully_shard(layer, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    assert check(model, whole) == len(whole)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    dp, tp = divmod(rank, 2)
    for key, value in model.named_parameters():
        part = whole[key]
        if any(name in key for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")):
            part = part.chunk(2, 0)[tp]
        elif any(name in key for name in ("o_proj", "down_proj")):
            part = part.chunk(2, 1)[tp]
        assert torch.equal(value._local_tensor, part.chunk(2, 0)[dp]), key
    logits = model(input_ids=torch.arange(8)[None], use_cache=False).logits
    assert torch.isfinite(logits).all()


def fsdp_and_hsdp(rank: int) -> None:
    whole = whole_values("gpt2-nano", n_layer=1, vocab_size=301)
    flat = init_device_mesh("cpu", (4,), mesh_dim_names=("dp",))
    hybrid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for mesh in (flat, hybrid):
        model = make("gpt2-nano", n_layer=1, vocab_size=301)
        fully_shard(model.transformer.h[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert check(model, whole) == len(whole)


def sharded_experts(rank: int) -> None:
    whole = whole_values("qwen3-moe-nano", num_hidden_layers=1)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "ep"))
    for axis in (0, 1):
        model = make("qwen3-moe-nano", num_hidden_layers=1)
        experts = model.model.layers[0].mlp.experts
        for key, value in list(experts.named_parameters()):
            split = distribute_tensor(value, mesh["ep"], [Shard(0)])
            setattr(experts, key, torch.nn.Parameter(split))
        fully_shard(experts, mesh=mesh["dp"], shard_placement_fn=lambda _, axis=axis: Shard(axis))
        assert check(model, whole) == 2


def uneven_and_replicated(rank: int) -> None:
    whole = whole_values("gpt2-nano", n_layer=1, vocab_size=301)
    mesh = init_device_mesh("cpu", (4,))
    for placement in (Shard(0), Shard(1), Replicate()):
        model = make("gpt2-nano", n_layer=1, vocab_size=301)
        table = distribute_tensor(model.transformer.wte.weight, mesh, [placement])
        model.lm_head.weight = model.transformer.wte.weight = torch.nn.Parameter(table)
        assert check(model, whole) == 2


def folder_into_shards(rank: int, folder: str) -> None:
    """Weights of a folder that one process wrote reach every rank's slices."""
    plain = make("qwen3-moe-nano", num_hidden_layers=1)
    initialize(plain, seed=3, device="cpu")
    target = Path(folder) / "weights"
    if rank == 0:
        save_folder(target, plain.config, plain.state_dict(), dtype=torch.float32)
    dist.barrier()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = adapt(make("qwen3-moe-nano", num_hidden_layers=1), LoraSection(rank=2))
    attention = model.model.layers[0].self_attn
    parallelize_module(attention, mesh["tp"], {"o_proj.base_layer": RowwiseParallel()})
    fully_shard(model.model.layers[0], mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    load_weights(model, target, device="cpu", name_of=base_name, skip=is_adapter)
    initialize_adapters(model, seed=3)
    whole = plain.state_dict()
    for key, value in model.named_parameters():
        if not is_adapter(key):
            assert torch.equal(value.full_tensor(), whole[base_name(key)]), key
        elif ".lora_B." in key:
            assert not value.full_tensor().any()
        else:
            bound = value.shape[1] ** -0.5
            assert 0.9 * bound < value.full_tensor().abs().max() <= bound


CASES = (fsdp_over_tensor_parallel, fsdp_and_hsdp, sharded_experts, uneven_and_replicated)


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    for case in CASES:
        case(rank)
        (Path(folder) / f"{case.__name__}-{rank}").touch()
    folder_into_shards(rank, folder)
    (Path(folder) / f"folder-{rank}").touch()
    dist.destroy_process_group()


@pytest.mark.ranks
@pytest.mark.skipif(sys.platform != "linux", reason="gloo over a file needs Linux here")
def test_sharded_models_equal_one_process(tmp_path: Path) -> None:
    mp.start_processes(run_rank, args=(str(tmp_path),), nprocs=WORLD, start_method="spawn")
    done = {path.name for path in tmp_path.iterdir()}
    cases = [*(case.__name__ for case in CASES), "folder"]
    assert {f"{case}-{rank}" for case in cases for rank in range(WORLD)} <= done
