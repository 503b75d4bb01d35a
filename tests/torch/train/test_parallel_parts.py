"""The parts of parallelism that one process can check."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from offramp.train.layout import AXES, Layout
from offramp.train.parallel.context import Context
from offramp.train.parallel.experts import forward
from offramp.train.parallel.stages import own_stages, spans


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.integers(n, 130), st.just(n))))
def test_stages_hold_every_layer_once_and_evenly(case: tuple[int, int]) -> None:
    layers, stages = case
    found = spans(layers, stages)
    assert [layer for span in found for layer in span] == list(range(layers))
    counts = [len(span) for span in found]
    assert len(counts) == stages
    assert min(counts) >= 1
    # With the embedding and the head as a layer each, no stage has two more than another,
    # unless one had none left.
    loads = list(counts)
    loads[0] += 1
    loads[-1] += 1
    assert max(loads) - min(loads) <= 1 or min(counts[0], counts[-1]) == 1


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.integers(n, 130), st.just(n))))
def test_even_stages_hold_as_many_layers(case: tuple[int, int]) -> None:
    layers, stages = case
    found = spans(layers, stages, even=True)
    assert [layer for span in found for layer in span] == list(range(layers))
    counts = [len(span) for span in found]
    assert counts == sorted(counts, reverse=True)
    assert max(counts) - min(counts) == (layers % stages > 0)


@pytest.mark.parametrize(("pp", "stages"), [(2, 1), (4, 1), (2, 3)])
def test_ranks_hold_every_stage_once(pp: int, stages: int) -> None:
    layout: Any = SimpleNamespace(pp=pp, stages=stages)
    held = [stage for rank in range(pp) for stage in own_stages(layout, rank)]
    assert sorted(held) == list(range(pp * stages))


def test_the_first_pipeline_is_that_of_the_mesh() -> None:
    layout = Layout(pp=3, dp_replicate=2, dp_shard=4, cp=2, tp=2)
    mesh = torch.arange(layout.world).view([getattr(layout, axis) for axis in AXES])
    assert list(layout.pipeline_ranks) == mesh[:, 0, 0, 0, 0].tolist()
    assert list(Layout(dp_shard=4).pipeline_ranks) == [0]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_context_is_even_causal_work(size: int) -> None:
    context = object.__new__(Context)
    context.size = size
    parts = [context.tokens(rank, 24 * size) for rank in range(size)]
    assert sorted(torch.cat(parts).tolist()) == list(range(24 * size))
    # A token attends to as many keys as its number, and itself.
    work = {int((part + 1).sum()) for part in parts}
    assert len(work) == 1


class Experts(nn.Module):
    """As transformers stacks them."""

    def __init__(self, count: int, hidden: int, inner: int) -> None:
        super().__init__()
        self.num_experts = count
        self.gate_up_proj = nn.Parameter(torch.randn(count, 2 * inner, hidden) / 4)
        self.down_proj = nn.Parameter(torch.randn(count, hidden, inner) / 4)

    def _apply_gate(self, both: torch.Tensor) -> torch.Tensor:
        gate, up = both.chunk(2, -1)
        return nn.functional.silu(gate) * up


def by_token(experts: Experts, hidden: Any, choice: Any, weight: Any) -> torch.Tensor:
    """The definition: each token through each of its experts, one after another."""
    rows = []
    for token, chosen, weights in zip(hidden, choice.tolist(), weight, strict=True):
        outs = [
            share * (experts.down_proj[e] @ experts._apply_gate(experts.gate_up_proj[e] @ token))
            for e, share in zip(chosen, weights, strict=True)
        ]
        rows.append(torch.stack(outs).sum(0))
    return torch.stack(rows)


@pytest.mark.parametrize("idle", [(), (0,), (2, 4)])
def test_experts(idle: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    experts = Experts(5, 8, 6)
    busy = [e for e in range(5) if e not in idle]
    choice = torch.stack([torch.tensor(busy)[torch.randperm(len(busy))[:2]] for _ in range(11)])
    hidden = torch.randn(11, 8, requires_grad=True)
    weight = torch.rand(11, 2, requires_grad=True)
    inputs = [hidden, weight, experts.gate_up_proj, experts.down_proj]
    found = forward(experts, hidden, choice, weight)
    expected = by_token(experts, hidden, choice, weight)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    direction = torch.randn_like(found)
    grads = torch.autograd.grad(found, inputs, direction)
    for grad, wanted in zip(grads, torch.autograd.grad(expected, inputs, direction), strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-6)


def test_experts_under_autocast_keep_the_weights_format() -> None:
    torch.manual_seed(0)
    experts = Experts(3, 8, 6)
    hidden, weight = torch.randn(7, 8), torch.rand(7, 2)
    choice = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2], [1, 0], [2, 1], [0, 1]])
    with torch.autocast("cpu", torch.bfloat16):
        found = forward(experts, hidden, choice, weight)
    found.sum().backward()
    assert experts.down_proj.grad is not None
    assert experts.down_proj.grad.dtype == torch.float32
    expected = by_token(experts, hidden, choice, weight)
    torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-2)
