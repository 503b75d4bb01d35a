"""Mixtures of experts: tokens travel to the ranks that hold their experts, and back.

transformers looks the computation of stacked experts up by the name in a model's configuration;
under attention.NAME it finds `forward`. Where the weights are DTensors over a mesh, as `spread_out`
makes them, each rank has some of the experts and gets the tokens that are routed to them (GShard,
arXiv:2006.16668, without a capacity: no token is dropped). Elsewhere all experts are at hand.

Shapes: N tokens, K experts a token, S = N x K of a rank's tokens or those it received, E experts,
D hidden numbers, F numbers inside an expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from offramp.errors import UsageError
from offramp.train.attention import NAME
from offramp.train.formats import product_dtype
from offramp.train.model import LanguageModel
from offramp.train.parallel.collect import waited

_WEIGHTS = ("gate_up_proj", "down_proj")


def experts_of(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that hold all experts of a layer in stacked weights."""
    for child in module.modules():
        if all(name in child._parameters for name in _WEIGHTS):
            yield child


def register(part: LanguageModel, device: torch.device, dtype: torch.dtype) -> None:
    """Let the model's experts, if it has any, compute with `forward`, in products of `dtype`.

    Raises UsageError.
    """
    found = list(experts_of(part))
    if not found:
        return
    # Asked before any layer runs: where activations are computed again, both times must be alike.
    _has_grouped(device.type, dtype)
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    for experts in found:
        if not experts.has_gate or experts.has_bias or experts.is_transposed:
            raise UsageError(
                f"{type(experts).__name__} has biases, no gate, or transposed weights; expected "
                "gated experts as Qwen3's, ERNIE's or DeepSeek's"
            )
    # How many tokens an expert gets is not known when layers are compiled.
    ALL_EXPERTS_FUNCTIONS.register(NAME, torch.compiler.disable(forward))
    part.causal.config._experts_implementation = NAME


def spread_out(part: LanguageModel, mesh: DeviceMesh) -> None:
    """Give each rank of the mesh some experts of every layer. Raises UsageError."""
    found = list(experts_of(part))
    for experts in found:
        for name in _WEIGHTS:
            whole = experts._parameters[name]
            assert whole is not None
            if len(whole) % mesh.size():
                raise UsageError(
                    f"layout.ep is {mesh.size()}; expected a divisor of the {len(whole)} experts"
                )
            spread = distribute_tensor(whole.detach(), mesh, [Shard(0)])
            experts.register_parameter(name, nn.Parameter(spread))


def forward(self: Any, hidden_ND: Tensor, choice_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """The weighted sum of each token's experts, (N, D)."""
    choices = choice_NK.shape[1]
    order_S = choice_NK.flatten().argsort(stable=True)
    inverse_S = _inverse(order_S)
    count_E = choice_NK.flatten().bincount(minlength=self.num_experts)
    sent_SD = _take(hidden_ND.to(product_dtype(hidden_ND)), order_S, inverse_S, choices)
    if isinstance(self.gate_up_proj, DTensor):
        out_SD = _remote(self, sent_SD, count_E, self.gate_up_proj.device_mesh.get_group())
    else:
        out_SD = _local(self, sent_SD, count_E)
    out_NKD = _take(out_SD, inverse_S, order_S, 1).unflatten(0, (-1, choices))
    weighted_NKD: Tensor = out_NKD * weight_NK[..., None].to(out_NKD.dtype)
    return weighted_NKD.sum(1).to(hidden_ND.dtype)


def _remote(experts: Any, sent_SD: Tensor, count_E: Tensor, group: dist.ProcessGroup) -> Tensor:
    """What the experts make of this rank's tokens, in order of experts, wherever these are."""
    size = dist.get_world_size(group)
    sent_RE = count_E.view(size, -1)  # by rank, and experts of that rank
    got_RE = torch.empty_like(sent_RE)
    dist.all_to_all_single(got_RE, sent_RE, group=group)
    sent, got = torch.stack([sent_RE.sum(1), got_RE.sum(1)]).tolist()
    got_SD = waited(all_to_all_single_autograd(sent_SD, got, sent, group))
    own_E = torch.arange(got_RE.shape[1], device=count_E.device)
    expert_S = own_E.repeat(size).repeat_interleave(got_RE.flatten(), output_size=sum(got))
    order_S = expert_S.argsort(stable=True)
    inverse_S = _inverse(order_S)
    out_SD = _local(experts, _take(got_SD, order_S, inverse_S, 1), got_RE.sum(0))
    back_SD = _take(out_SD, inverse_S, order_S, 1)
    return waited(all_to_all_single_autograd(back_SD, sent, got, group))


def _local(experts: Any, in_SD: Tensor, count_E: Tensor) -> Tensor:
    """What this rank's experts make of tokens in order of experts."""
    into_EFD, out_EDF = (
        weight.to_local() if isinstance(weight, DTensor) else weight
        for weight in (experts.gate_up_proj, experts.down_proj)
    )
    product: Any = _ByExpert.apply
    counts: Any = count_E
    # The grouped kernels want rows that begin at multiples of 16 bytes.
    widths = (*into_EFD.shape[1:], *out_EDF.shape[1:])
    is_aligned = not any(width * in_SD.element_size() % 16 for width in widths)
    if is_aligned and _has_grouped(in_SD.device.type, in_SD.dtype):
        product, counts = _grouped, count_E.cumsum(0, dtype=torch.int32)
    else:
        counts = count_E.tolist()
    inner_SF = experts._apply_gate(product(in_SD, into_EFD, counts))
    out_SD: Tensor = product(inner_SF, out_EDF, counts)
    return out_SD


class _ByExpert(torch.autograd.Function):
    """x W_e^T for the rows of each expert e, which follow each other."""

    @staticmethod
    def forward(ctx: Any, in_SI: Tensor, weight_EOI: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(in_SI, weight_EOI)
        ctx.counts = counts
        out_SO = in_SI.new_empty(len(in_SI), weight_EOI.shape[1])
        for rows, weight_OI in _pieces(counts, weight_EOI, in_SI.dtype):
            torch.mm(in_SI[rows], weight_OI.T, out=out_SO[rows])
        return out_SO

    @staticmethod
    def backward(ctx: Any, grad_SO: Tensor) -> tuple[Tensor, Tensor, None]:
        in_SI, weight_EOI = ctx.saved_tensors
        grad_SO = grad_SO.contiguous()
        grad_SI = torch.empty_like(in_SI)
        for rows, weight_OI in _pieces(ctx.counts, weight_EOI, in_SI.dtype):
            torch.mm(grad_SO[rows], weight_OI, out=grad_SI[rows])
        grad_EOI = torch.empty_like(weight_EOI)
        first = 0
        for expert, count in enumerate(ctx.counts):
            rows = slice(first, first + count)
            first += count
            if grad_EOI.dtype == in_SI.dtype:
                torch.mm(grad_SO[rows].T, in_SI[rows], out=grad_EOI[expert])
            else:
                grad_EOI[expert] = grad_SO[rows].T @ in_SI[rows]
        return grad_SI, grad_EOI, None


def _pieces(
    counts: list[int], weight_EOI: Tensor, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor]]:
    first = 0
    for count, weight_OI in zip(counts, weight_EOI, strict=True):
        if count:
            yield slice(first, first + count), weight_OI.to(dtype)
        first += count


def _grouped(in_SI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """The same as `_ByExpert`, by one kernel, and without the counts in host memory."""
    weight_EIO = weight_EOI.to(in_SI.dtype).transpose(1, 2)
    out: Tensor = torch.nn.functional.grouped_mm(in_SI, weight_EIO, offs=ends_E)
    return out


@cache
def _has_grouped(device: str, dtype: torch.dtype) -> bool:
    """Whether the device multiplies groups, forward and backward, in that format."""
    if device == "cpu" or not hasattr(torch.nn.functional, "grouped_mm"):
        return False
    try:
        with torch.enable_grad():
            value = torch.ones(32, 16, dtype=dtype, device=device, requires_grad=True)
            weight = torch.ones(2, 16, 16, dtype=dtype, device=device, requires_grad=True)
            ends = torch.tensor([16, 32], dtype=torch.int32, device=device)
            _grouped(value, weight, ends).float().sum().backward()
    except (RuntimeError, NotImplementedError):
        return False
    return True


class _Take(torch.autograd.Function):
    """Rows in another order, each `repeats` times; gradients need no atomic sums for it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor, repeats: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.repeats = repeats
        return rows.index_select(0, order if repeats == 1 else order // repeats)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        back = grad.index_select(0, inverse)
        if ctx.repeats > 1:
            back = back.unflatten(0, (-1, ctx.repeats)).sum(1)
        return back, None, None, None


def _take(rows: Tensor, order: Tensor, inverse: Tensor, repeats: int) -> Tensor:
    out: Tensor = _Take.apply(rows, order, inverse, repeats)
    return out


def _inverse(order: Tensor) -> Tensor:
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return inverse
