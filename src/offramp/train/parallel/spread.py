"""Data parallelism: FSDP2, its hybrid form, and DDP, with gradients that are sums over all ranks.

Sums and not means, because the loss is already divided by the tokens of the whole batch; and SUM is
the one reduction that every chip's collectives have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp import register_fsdp_forward_method as shard_for_method
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel

from offramp.train.layout import Layout
from offramp.train.model import LanguageModel
from offramp.train.parallel.experts import experts_of
from offramp.train.parallel.meshes import Meshes
from offramp.train.parallel.numbers import Numbers
from offramp.train.world import World


class Spread:
    """One process, or ranks that hold whole weights and reduce no gradients."""

    def __init__(self, part: LanguageModel) -> None:
        self.part = part
        self.call: Callable[..., Any] = part

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-batch; gradients are reduced in the last one."""
        yield

    def settle(self) -> None:
        """After a step or an evaluation: parameters are what the optimizer knows."""


class Replicated(Spread):
    """DDP: gradients are summed in buckets while the backward pass goes on."""

    def __init__(self, part: LanguageModel, world: World) -> None:
        super().__init__(part)
        group = world.group("dp_replicate")
        assert group is not None
        self._ddp = DistributedDataParallel(
            part, process_group=group, broadcast_buffers=False, gradient_as_bucket_view=True
        )
        # DDP reads a hook's annotations, and knows them only as objects; a lambda has none.
        self._ddp.register_comm_hook(group, lambda group, bucket: _sum_bucket(group, bucket))
        self.call = self._ddp

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        with nullcontext() if last else self._ddp.no_sync():
            yield


class Sharded(Spread):
    """FSDP2: `zero` says what is given back when, and what is reduced when."""

    def __init__(self, part: LanguageModel, layout: Layout) -> None:
        super().__init__(part)
        self._zero = layout.zero

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        root = self.part
        assert isinstance(root, FSDPModule)
        root.set_is_last_backward(last)
        root.set_reshard_after_backward(last or self._zero == 3)
        root.set_requires_all_reduce(last)
        root.set_requires_gradient_sync(last or self._zero > 1)
        yield

    def settle(self) -> None:
        for module in self.part.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def shard(part: LanguageModel, layout: Layout, numbers: Numbers, meshes: Meshes) -> None:
    """Shard the weights of `part`, layer by layer."""
    policy = MixedPrecisionPolicy(
        param_dtype=None if numbers.precision == "fp32" else numbers.dtype,
        reduce_dtype=torch.float32 if layout.reduce == "fp32" else None,
        cast_forward_inputs=False,
    )
    whole = {p for name, p in part.named_parameters() if _is_state(name)}
    options: dict[str, Any] = {"mp_policy": policy, "ignored_params": whole}
    # Zero-bubble looks for the gathered weights after the forward pass, in its own weight passes.
    splits_backward = layout.pp > 1 and layout.pipeline == "zero-bubble"
    release = layout.zero == 3 and not splits_backward
    groups: list[list[FSDPModule]] = []
    for layer in part.layers:
        group: list[FSDPModule] = []
        for experts in experts_of(layer) if meshes.sparse is not meshes.dense else ():
            fully_shard(
                experts,
                mesh=meshes.sparse,
                reshard_after_forward=release,
                shard_placement_fn=_expert_placement(meshes) if meshes.ep is not None else None,
                **options,
            )
            group.append(_fsdp(experts))
        fully_shard(layer, mesh=meshes.dense, reshard_after_forward=release, **options)
        groups.append([_fsdp(layer), *group])
    embedding = part.embedding
    if embedding is not None and not part.is_tied:
        fully_shard(embedding, mesh=meshes.dense, reshard_after_forward=release, **options)
    # The head is not called as a module (its loss is), so it belongs to the root.
    fully_shard(part, mesh=meshes.dense, reshard_after_forward=False, **options)
    shard_for_method(part, "logits")
    for module in part.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    _prefetch(groups, layout.prefetch)


def _prefetch(groups: list[list[FSDPModule]], ahead: int) -> None:
    """Gather the weights of `ahead` layers while one computes, in both directions."""
    if not ahead:
        return
    for index, group in enumerate(groups):
        later = groups[index + 1 : index + 1 + ahead]
        earlier = groups[max(0, index - ahead) : index][::-1]
        group[0].set_modules_to_forward_prefetch([m for other in later for m in other])
        group[0].set_modules_to_backward_prefetch([m for other in earlier for m in other])


def _expert_placement(meshes: Meshes) -> Callable[[nn.Parameter], Shard]:
    """Experts' first dimension is ep's; FSDP takes the second where it divides."""
    size = meshes.sparse.size(-1)

    def placement(parameter: nn.Parameter) -> Shard:
        even = parameter.ndim > 1 and parameter.shape[1] % size == 0
        return Shard(1 if even else 0)

    return placement


def _is_state(name: str) -> bool:
    """Whether a parameter is changed by rule and not by gradients: the bias of a router."""
    return name.endswith("e_score_correction_bias")


def _fsdp(module: nn.Module) -> FSDPModule:
    assert isinstance(module, FSDPModule)
    return module


def _sum_bucket(group: dist.ProcessGroup, bucket: Any) -> Any:
    """The future of a bucket of gradients, summed."""
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])
