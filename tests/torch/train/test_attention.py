"""Attention within documents, against one attention a document."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from offramp.train.attention import Packing, attend, causal_mask, find_spans

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
