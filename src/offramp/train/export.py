"""Writes a run's model as a Hugging Face folder."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from offramp.train.formats import DTYPES
from offramp.train.models import folder as hf_folder
from offramp.train.models import lora
from offramp.train.setup import Run


def write(run: Run) -> None:
    """Gather the weights in the first process's host memory and write the folder there.

    Every process must call it. Adapters are written in peft's format instead.
    """
    state = _whole_state(run)
    if run.world.is_main:
        job = run.job
        if job.lora.rank:
            lora.save_adapter(run.folder.model, run.config, job.lora, state, base=job.model.folder)
        else:
            hf_folder.save_folder(
                run.folder.model,
                run.config,
                state,
                dtype=DTYPES[job.checkpoint.export_format or job.train.precision],
                write_tokenizer=run.tokenizer.save,
            )
    if dist.is_initialized():
        dist.barrier()


def _whole_state(run: Run) -> dict[str, Tensor]:
    """Every weight by name, whole, on the host, in the first process; others get nothing."""
    mine: dict[str, Tensor] = {}
    for name, tensor in run.weights().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if run.world.coordinate("pp") == 0 and not run.world.is_main:
            continue
        mine[name] = whole.to("cpu")
    if run.job.layout.pp == 1:
        return mine if run.world.is_main else {}
    return _from_stages(run, mine)


def _from_stages(run: Run, mine: dict[str, Tensor]) -> dict[str, Tensor]:
    """The stages' weights, one stage after the other, in the first process."""
    group = run.world.group("pp")
    states: list[dict[str, Tensor] | None] = [None] * run.job.layout.pp
    first = run.world.rank == dist.get_global_rank(group, 0) if group else True
    dist.gather_object(mine, states if first else None, group_dst=0, group=group)
    if not run.world.is_main:
        return {}
    return {name: tensor for state in states if state for name, tensor in state.items()}
