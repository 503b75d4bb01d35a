"""Attention within documents, against one attention a document."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from offramp.train import attention
from offramp.train.attention import Packing, attend, causal_mask, find_spans
from offramp.train.parallel.context import Context

WIDTH = 12


@st.composite
def documents(draw: st.DrawFn) -> torch.Tensor:
    rows = draw(st.integers(1, 4))
    cuts = draw(st.lists(st.sets(st.integers(1, WIDTH - 1)), min_size=rows, max_size=rows))
    numbers = [[sum(cut <= place for cut in one) for place in range(WIDTH)] for one in cuts]
    return torch.tensor(numbers)


def softmax_attention(q, k, v, seen):
    """The definition, in float64, key-value heads repeated."""
    group = q.shape[1] // k.shape[1]
    k, v = (t.double().repeat_interleave(group, 1) for t in (k, v))
    scores = q.double() @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    return scores.masked_fill(~seen, -np.inf).softmax(-1) @ v


@given(documents(), st.sampled_from([None, 3]), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=100)
def test_a_token_sees_the_past_of_its_document_only(
    numbers_BT: torch.Tensor, window: int | None, masked: bool, by_products: bool
) -> None:
    batch = len(numbers_BT)
    torch.manual_seed(batch)
    q = torch.randn(batch, 4, WIDTH, 8)
    k, v = torch.randn(batch, 2, WIDTH, 8), torch.randn(batch, 2, WIDTH, 8)
    place = torch.arange(WIDTH)
    seen = (numbers_BT[:, :, None] == numbers_BT[:, None, :]) & (place[:, None] >= place)
    if window is not None:
        seen &= place[:, None] - place < window
    packing = (
        Packing(mask_BTT=causal_mask(numbers_BT)) if masked else Packing(find_spans(numbers_BT))
    )
    how = {"packing": packing, "by_products": by_products}
    out, _ = attend(nn.Module(), q, k, v, None, sliding_window=window, **how)
    exact = softmax_attention(q, k, v, seen[:, None]).transpose(1, 2)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)


def test_compiled_attention_of_grouped_heads_with_a_mask() -> None:
    """As context parallelism and packing call it in compiled layers."""
    seen = causal_mask(torch.tensor([[0] * 5 + [1] * 7, [0] * 12]))
    q = torch.randn(2, 4, WIDTH, 8)
    k, v = torch.randn(2, 2, WIDTH, 8), torch.randn(2, 2, WIDTH, 8)

    def with_gradients(qkv: list[torch.Tensor], attention: Callable[..., torch.Tensor]):
        qkv = [tensor.requires_grad_() for tensor in qkv]
        out = attention(*qkv)
        return out, *torch.autograd.grad(out.square().sum(), qkv)

    packing = Packing(mask_BTT=seen.cuda())
    on_chip = torch.compile(
        lambda *qkv: attend(nn.Module(), *qkv, None, packing=packing)[0], backend="aot_eager"
    )
    found = with_gradients([tensor.cuda() for tensor in (q, k, v)], on_chip)
    exact = with_gradients(
        [tensor.double() for tensor in (q, k, v)],
        lambda *qkv: softmax_attention(*qkv, seen).transpose(1, 2),
    )
    for mine, other in zip(found, exact, strict=True):
        torch.testing.assert_close(mine.cpu().double(), other, rtol=1e-5, atol=1e-5)


class Share(Context):
    """One rank's part of sequences whose keys and values all ranks have."""

    def __init__(self, size: int, rank: int) -> None:
        self.size, self.rank = size, rank

    def gather(self, own_BHTD: torch.Tensor) -> torch.Tensor:
        return own_BHTD

    def attended(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: Any
    ) -> torch.Tensor:
        """Attention of this rank's tokens of `q`, (B, H, its tokens, D)."""
        own = self.tokens(self.rank, q.shape[2]).to(q.device)
        how = {"packing": Packing(context=self)} | how
        return attend(nn.Module(), q[:, :, own], k, v, None, **how)[0].transpose(1, 2)


@given(documents(), st.sampled_from([None, 1, 3, 7, 50]), st.sampled_from([1, 2, 3]), st.booleans())
@settings(deadline=None, max_examples=100)
def test_the_ranks_of_a_context_see_what_whole_sequences_see(
    numbers_BT: torch.Tensor, window: int | None, size: int, by_products: bool
) -> None:
    batch = len(numbers_BT)
    torch.manual_seed(batch)
    q = torch.randn(batch, 4, WIDTH, 8)
    k, v = torch.randn(batch, 2, WIDTH, 8), torch.randn(batch, 2, WIDTH, 8)
    seen = causal_mask(numbers_BT)
    if window is not None:
        seen = seen & ~seen.new_ones(WIDTH, WIDTH).tril(-window)
    exact = softmax_attention(q, k, v, seen)
    for rank in range(size):
        share = Share(size, rank)
        packing = share.packing(numbers_BT, whole=find_spans(numbers_BT) is None)
        how = {"packing": packing, "sliding_window": window, "by_products": by_products}
        own = exact[:, :, share.tokens(rank, WIDTH)]
        torch.testing.assert_close(
            share.attended(q, k, v, **how).double(), own, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_ranks_of_a_context_do_the_work_of_one(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A causal sequence of T tokens has T (T + 1) / 2 pairs; every rank does as many of them."""
    tokens, pairs = 24 * size, []
    causal = attention._causal

    def counted(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> torch.Tensor:
        queries, keys = q.shape[2], k.shape[2]
        pairs[-1] += queries * keys - queries * (queries - 1) // 2
        return causal(q, k, *rest)

    monkeypatch.setattr(attention, "_causal", counted)
    q = torch.randn(1, 2, tokens, 8)
    for rank in range(size):
        pairs.append(0)
        Share(size, rank).attended(q, q, q)
    assert set(pairs) == {tokens * (tokens + 1) // 2 // size}


@pytest.mark.parametrize("size", [2, 3])
def test_products_leave_out_the_keys_after_each_part(size: int) -> None:
    heads, length, width = 2, 5, 8
    q = torch.randn(1, heads, 2 * size * length, width)
    with FlopCounterMode(display=False) as counter:
        for rank in range(size):
            Share(size, rank).attended(q, q, q, by_products=True)
    parts = 2 * size
    pairs = length**2 * parts * (parts + 1) // 2
    assert counter.get_total_flops() == 2 * (2 * heads * pairs * width)


def attend_part(
    module: nn.Module, packing: Packing, own: torch.Tensor, q: Any, k: Any, v: Any
) -> torch.Tensor:
    return attend(module, q[:, :, own], k, v, None, packing=packing)[0].transpose(1, 2)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [12, 16])  # the flash kernel takes one of them
def test_parts_of_grouped_heads_on_a_chip(compiled: bool, dtype: torch.dtype, width: int) -> None:
    """Outputs, and gradients of whole keys and values, which add up over ranks."""
    if compiled:  # the code of `partial` is one for all tests, and so is its limit of compilations
        with warnings.catch_warnings(action="ignore"):
            torch.compiler.reset()
    torch.manual_seed(width)
    size, tokens = 2, 20
    shapes = [(2, heads, tokens, width) for heads in (4, 2, 2)]
    exact = [torch.randn(shape).to(dtype).double().requires_grad_() for shape in shapes]
    chips = [tensor.detach().to("cuda", dtype).requires_grad_() for tensor in exact]
    out = softmax_attention(*exact, causal_mask(torch.zeros(2, tokens)))
    grad = torch.randn_like(out)
    out.backward(grad)
    for rank in range(size):
        share = Share(size, rank)
        own = share.tokens(rank, tokens)
        call = partial(attend_part, nn.Module(), Packing(context=share), own.cuda())
        if compiled:
            call = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=False)
        part = call(*chips)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        agree = {"rtol": tolerance, "atol": tolerance}
        torch.testing.assert_close(part.cpu().double(), out[:, :, own], **agree)
        part.backward(grad[:, :, own].to("cuda", dtype))
    for mine, other in zip(chips, exact, strict=True):
        limit = tolerance * float(other.grad.abs().max())
        torch.testing.assert_close(mine.grad.cpu().double(), other.grad, rtol=0, atol=2 * limit)


@given(documents())
def test_spans_are_the_runs_of_equal_numbers(numbers_BT: torch.Tensor) -> None:
    spans = find_spans(numbers_BT)
    expected = []
    for row, numbers in enumerate(numbers_BT.tolist()):
        starts = [0, *(t for t in range(1, WIDTH) if numbers[t] != numbers[t - 1])]
        expected += [(row, a, b) for a, b in zip(starts, [*starts[1:], WIDTH], strict=True)]
    if spans is None:
        assert len(expected) == len(numbers_BT)
    else:
        assert list(spans) == expected


def test_dropout_acts_in_training_only() -> None:
    q = torch.randn(1, 2, WIDTH, 8)
    module = nn.Module().eval()
    quiet, _ = attend(module, q, q, q, None, dropout=0.5)
    same, _ = attend(module, q, q, q, None, dropout=0.0)
    torch.testing.assert_close(quiet, same)
    loud, _ = attend(module.train(), q, q, q, None, dropout=0.5)
    assert not torch.allclose(loud, same)


@pytest.mark.parametrize("scaling", [None, 0.5])
def test_the_scale_is_the_models(scaling: float | None) -> None:
    q = torch.randn(1, 2, WIDTH, 16)
    seen = torch.ones(WIDTH, WIDTH, dtype=torch.bool).tril()
    out, _ = attend(nn.Module(), q, q, q, None, scaling=scaling)
    exact = softmax_attention(q * ((scaling or 0.25) * 4), q, q, seen).transpose(1, 2)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
