"""Tensor and sequence parallelism: the ranks of a group share each layer's matrices.

The plan is found from the modules: matrices into heads and into the MLP's width are split by rows,
those back by columns (Shoeybi et al., arXiv:1909.08053). Between the blocks each rank has a part of
the sequence (Korthikanti et al., arXiv:2205.05198), or, without sequence parallelism, all of it.
Weights are DTensors, so that FSDP and checkpoints know what they are; the layers compute with this
rank's own parts, as plain tensors, and with the collectives of `collect`.

Every weight inside a block that is not split sees only some of the heads' gradients, and those
between blocks only some of the tokens': their gradients are sums over the group.

Shapes: B sequences, T tokens, D hidden numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module
from torch.distributed.tensor.placement_types import Placement
from torch.nn.functional import embedding, linear

from offramp.errors import UsageError
from offramp.train.layout import Layout
from offramp.train.loss import Chunking
from offramp.train.model import HeadInputs, LanguageModel
from offramp.train.parallel import collect
from offramp.train.parallel.experts import experts_of
from offramp.train.parallel.layers import replace_forward

_SPLIT_OUT = {"q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj", "gate_proj", "up_proj"}
_SPLIT_OUT |= {
    "query_key_value",
    "dense_h_to_4h",
}  # GPT-NeoX: q, k and v of each head
_SPLIT_IN = {"o_proj", "down_proj", "dense", "dense_4h_to_h"}
_WHOLE = {"q_a_proj", "kv_a_proj_with_mqa"}  # multi-head latent attention: small, on every rank
SEQUENCE = 1  # the dimension of tokens in hidden states


def apply(part: LanguageModel, layout: Layout, mesh: DeviceMesh) -> None:
    """Split the matrices of a part. Raises UsageError where a module's form is not known."""
    _check_heads(part, layout)
    between = _Whole(summed=layout.sequence_parallel)
    for layer in part.layers:
        parallelize_module(layer, mesh, _layer_plan(layer, layout, between))
    for child in part.body.children():
        if any(True for _ in child.parameters()) and _is_norm(child):
            between._apply(child, mesh)
    embedding, is_tied = part.embedding, part.is_tied
    # Tied weights lie alike in every stage that holds them.
    keeps = part.causal.config.tie_word_embeddings and not layout.loss_parallel
    if embedding is not None:
        _Vocabulary(layout.sequence_parallel, is_split=not keeps)._apply(embedding, mesh)
    if part.has_head:
        if is_tied:
            assert embedding is not None
            part.head.weight = embedding.weight
        else:
            _place(part.head, mesh, lambda _: Shard(0) if layout.loss_parallel else Replicate())
        _arrange_head(part, layout, mesh)


def _layer_plan(layer: nn.Module, layout: Layout, between: ParallelStyle) -> dict[str, Any]:
    plan: dict[str, Any] = {}
    for name, child in layer.named_children():
        if _is_norm(child):
            plan[name] = between
        elif any(True for _ in experts_of(child)):
            plan[name] = _Tokens(layout.sequence_parallel)
            plan |= _mixture_plan(child, f"{name}.")
        elif any(hasattr(child, last) for last in _SPLIT_IN):
            dim = SEQUENCE if layout.sequence_parallel else None
            plan |= _block_plan(child, name, dim)
        elif any(True for _ in child.parameters()):
            raise _unknown(child)
    return plan


def _block_plan(block: nn.Module, name: str, dim: int | None) -> dict[str, Any]:
    """Attention, or an MLP; `dim` is the one whose parts are gathered, None: nothing is."""
    plan: dict[str, Any] = {name: _Block(dim)}
    for inner, module in block.named_modules():
        last = inner.rpartition(".")[2]
        full = f"{name}.{inner}"
        if not module._parameters:
            continue
        if last in _SPLIT_OUT and isinstance(module, nn.Linear):
            plan[full] = _SplitOut()
        elif last in _SPLIT_IN and isinstance(module, nn.Linear):
            plan[full] = _SplitIn(dim)
        elif last in _WHOLE or _is_norm(module):
            plan[full] = _Whole(summed=True)
        else:
            raise _unknown(block)
    return plan


def _mixture_plan(mixture: nn.Module, prefix: str) -> dict[str, Any]:
    """Experts are whole for their tokens; experts that all tokens use are an MLP."""
    plan: dict[str, Any] = {}
    for name, child in mixture.named_children():
        if hasattr(child, "down_proj") and isinstance(child.down_proj, nn.Linear):
            plan |= _block_plan(child, prefix + name, 0)
        elif not any(True for _ in experts_of(child)):
            plan[prefix + name] = _Whole(summed=True)
    return plan


class _Whole(ParallelStyle):
    """Weights that every rank has; `summed`: ranks see other tokens or heads through them."""

    def __init__(self, *, summed: bool) -> None:
        self._grad: Placement = Partial() if summed else Replicate()

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        for inner in module.modules():
            _place(inner, mesh, lambda _: Replicate())
            if inner._parameters:
                _compute_locally(inner, lambda _: self._grad)
        return module


class _SplitOut(ParallelStyle):
    """A linear layer of which each rank has some outputs."""

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        _place(module, mesh, lambda _: Shard(0))
        _compute_locally(module, lambda _: Shard(0))
        return module


class _SplitIn(ParallelStyle):
    """A linear layer of which each rank has some inputs: outputs are summed over ranks."""

    def __init__(self, dim: int | None) -> None:
        self._dim = dim

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, nn.Linear)
        _place(module, mesh, lambda name: Shard(1) if name == "weight" else Replicate())
        group, dim = mesh.get_group(), self._dim

        def forward(part: Tensor) -> Tensor:
            out = linear(part, _local(module.weight, Shard(1)))
            if dim is None:
                out = collect.sum_forward(out, group)
            else:
                out = collect.scatter_sum(out, dim, group)
            bias = module._parameters["bias"]
            if bias is None:
                return out
            return out + _local(bias, Replicate() if dim is None else Partial())

        replace_forward(module, forward)
        return module


class _Block(ParallelStyle):
    """What a block is given: all tokens, of which each rank computes some heads or columns."""

    def __init__(self, dim: int | None) -> None:
        self._dim = dim

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        group, dim = mesh.get_group(), self._dim

        def enter(hidden: Tensor) -> Tensor:
            if dim is None:
                return collect.sum_backward(hidden, group)
            return collect.gather(hidden, dim, group)

        _change_input(module, enter)
        return module


class _Tokens(ParallelStyle):
    """A mixture of experts: each rank routes its own part of the tokens."""

    def __init__(self, is_split: bool) -> None:
        self._is_split = is_split

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        if self._is_split:
            return module
        group = mesh.get_group()
        _change_input(module, lambda hidden: collect.split(hidden, SEQUENCE, group))
        module.register_forward_hook(lambda _, __, out: collect.join(out, SEQUENCE, group))
        return module


class _Vocabulary(ParallelStyle):
    """An embedding of which each rank has some tokens' vectors."""

    def __init__(self, is_sequence: bool, *, is_split: bool) -> None:
        self._is_sequence, self._is_split = is_sequence, is_split

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, nn.Embedding)
        group, size, padding = mesh.get_group(), module.num_embeddings, module.padding_idx
        _place(module, mesh, lambda _: Shard(0) if self._is_split else Replicate())

        def split_forward(tokens_BT: Tensor) -> Tensor:
            weight = _local(module.weight, Shard(0))
            first, count = _first(size, mesh), len(weight)
            own_BT = tokens_BT - first
            here_BT = (own_BT >= 0) & (own_BT < count)
            untrained = None
            if padding is not None and first <= padding < first + count:
                untrained = padding - first
            out_BTD = embedding(own_BT.clamp(0, count - 1), weight, untrained) * here_BT[..., None]
            if self._is_sequence:
                return collect.scatter_sum(out_BTD, SEQUENCE, group)
            return collect.sum_forward(out_BTD, group)

        def whole_forward(tokens_BT: Tensor) -> Tensor:
            if not self._is_sequence:
                return embedding(tokens_BT, _local(module.weight, Replicate()), padding)
            own_BT = tokens_BT.chunk(mesh.size(), SEQUENCE)[mesh.get_local_rank()]
            return embedding(own_BT, _local(module.weight, Partial()), padding)

        replace_forward(module, split_forward if self._is_split else whole_forward)
        return module


def _arrange_head(part: LanguageModel, layout: Layout, mesh: DeviceMesh) -> None:
    """The loss: of all tokens by parts of the vocabulary, or of parts of the tokens."""
    group, size = mesh.get_group(), mesh.size()
    sequence = layout.sequence_parallel
    if layout.loss_parallel:
        first = _first(part.head.out_features, mesh)
        part.chunking = Chunking(part.chunking.tokens, group, first)
    grad = Shard(0) if layout.loss_parallel else Partial() if sequence else Replicate()

    def arrange(inputs: HeadInputs) -> HeadInputs:
        hidden_BTD, weight_VD, bias_V, targets_BT = inputs
        if layout.loss_parallel:
            if sequence:
                hidden_BTD = collect.gather(hidden_BTD, SEQUENCE, group)
            else:
                hidden_BTD = collect.sum_backward(hidden_BTD, group)
        elif sequence:
            targets_BT = targets_BT.chunk(size, SEQUENCE)[mesh.get_local_rank()]
        bias_V = None if bias_V is None else _local(bias_V, grad)
        return hidden_BTD, _local(weight_VD, grad), bias_V, targets_BT

    part.arrange = arrange
    if sequence and not layout.loss_parallel:
        part.finish = lambda loss: collect.sum_forward(loss, group)


def _place(module: nn.Module, mesh: DeviceMesh, placement: Callable[[str], Placement]) -> None:
    """Make the module's own trained weights DTensors."""
    for name, parameter in list(module._parameters.items()):
        if parameter is None or not parameter.requires_grad:
            continue
        spread = distribute_tensor(parameter.detach(), mesh, [placement(name)])
        module.register_parameter(name, nn.Parameter(spread))


def _compute_locally(module: nn.Module, grad: Callable[[str], Placement]) -> None:
    """Let the module's forward see plain tensors where its weights are DTensors."""
    inner = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        # Through vars: nn.Module's own dictionary is for parameters alone.
        held: dict[str, Tensor | None] = vars(module)["_parameters"]
        kept = dict(held)
        for name, weight in kept.items():
            if weight is not None:
                held[name] = _local(weight, grad(name))
        try:
            return inner(*args, **kwargs)
        finally:
            held.update(kept)

    replace_forward(module, forward)


def _local(weight: Tensor, grad: Placement) -> Tensor:
    if isinstance(weight, DTensor):
        return weight.to_local(grad_placements=[grad])
    return weight


def _change_input(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Change the hidden states that the module is called with, its first argument."""

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    module.register_forward_pre_hook(before, with_kwargs=True)


def _first(vocabulary: int, mesh: DeviceMesh) -> int:
    """The first token of this rank's part, as DTensor cuts."""
    return -(-vocabulary // mesh.size()) * mesh.get_local_rank()


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__


def _check_heads(part: LanguageModel, layout: Layout) -> None:
    config = part.causal.config
    for key in ("num_attention_heads", "num_key_value_heads"):
        count = getattr(config, key, layout.tp)
        if count % layout.tp:
            raise UsageError(
                f"layout.tp is {layout.tp}; expected a divisor of {key} = {count}, which this "
                "model has"
            )


def _unknown(module: nn.Module) -> UsageError:
    found = ", ".join(name for name, _ in module.named_children())
    return UsageError(
        f"layout.tp cannot split {type(module).__name__} ({found}); expected separate projections "
        f"named {', '.join(sorted(_SPLIT_OUT | _SPLIT_IN))}; use dp_shard instead, with tp = 1"
    )


def overlap(group: dist.ProcessGroup, *, is_compiled: bool, device: torch.device) -> None:
    """Split products so that their transfers run beside them (asynchronous tensor parallelism).

    Raises UsageError where the device has no symmetric memory, or the layers are not compiled.
    """
    if not is_compiled:
        raise UsageError(
            "layout.async_tp needs compiled layers; set train.compile, or leave async_tp off"
        )
    if not _has_symmetric_memory(device):
        raise UsageError(
            f"layout.async_tp needs symmetric memory between chips, which PyTorch does not offer "
            f"for this device ({device}); leave async_tp off"
        )
    from torch._inductor import config
    from torch.distributed import _symmetric_memory

    config._micro_pipeline_tp = True
    _symmetric_memory.enable_symm_mem_for_group(group.group_name)


def _has_symmetric_memory(device: torch.device) -> bool:
    from torch._C._distributed_c10d import _SymmetricMemory

    return _SymmetricMemory.get_backend(device) is not None
