"""Attention by whole products, against the definition in float64 and PyTorch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from offramp.train import attention, host_attention


def inputs(tokens: int, dtype: torch.dtype, widths: tuple[int, int] = (16, 16)) -> list[Tensor]:
    """Queries of 4 heads, keys and values of 2, and a gradient of the output."""
    torch.manual_seed(tokens)
    shapes = [(4, widths[0]), (2, widths[0]), (2, widths[1]), (4, widths[1])]
    return [torch.randn(2, tokens, h, d).to(dtype).transpose(1, 2) for h, d in shapes]


def with_gradients(call: Any, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in (q, k, v)]
    out = call(*leaves)
    out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def definition(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scale is None else scale)
    queries, tokens = q.shape[2], k.shape[2]
    later = torch.ones(queries, tokens, dtype=torch.bool).triu(1 + tokens - queries)
    return scores.masked_fill(later, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("tokens", [1, 5, 128, 200, 300])
@pytest.mark.parametrize("widths", [(16, 16), (24, 8)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_output_and_gradients_are_the_definition_s(
    tokens: int, widths: tuple[int, int], scale: float | None
) -> None:
    given = inputs(tokens, torch.float64, widths)
    own = with_gradients(
        lambda q, k, v: host_attention.causal_attention(q, k, v, scale),
        *(t.float() for t in given),
    )
    exact = with_gradients(lambda q, k, v: definition(q, k, v, scale), *given)
    for mine, right in zip(own, exact, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("queries", [1, 130, 256])
@pytest.mark.parametrize("masked", [False, True])
def test_fewer_queries_than_keys_are_the_last(queries: int, masked: bool) -> None:
    q, k, v, grad = inputs(300, torch.float64)
    given = q[:, :, -queries:], k, v, grad[:, :, -queries:]
    mask = torch.ones(queries, 300, dtype=torch.bool).tril(300 - queries) if masked else None
    own = with_gradients(
        lambda q, k, v: host_attention.causal_attention(q, k, v, None, mask),
        *(t.float() for t in given),
    )
    for mine, right in zip(own, with_gradients(definition, *given), strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 90])
def test_layers_of_a_host_take_it_with_a_window_too(window: int | None) -> None:
    q, k, v, _ = inputs(300, torch.bfloat16)
    assert host_attention.suits(q, k, 0.0)
    found, _ = attention.attend(nn.Module(), q, k, v, None, sliding_window=window)
    place = torch.arange(300)
    seen = place[:, None] - place
    seen = (seen >= 0) & (seen < (window or 300))
    k, v = (t.double().repeat_interleave(2, 1) for t in (k, v))
    scores = q.double() @ k.mT / 4
    exact = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(found.transpose(1, 2).double(), exact, rtol=2e-2, atol=2e-2)


def test_a_mask_keeps_documents_apart() -> None:
    """Each of three documents as if it were alone; the masks of compiled layers."""
    q, k, v, grad = inputs(300, torch.float32)
    numbers_BT = torch.zeros(2, 300, dtype=torch.int64)
    numbers_BT[0, 70:] = 1
    numbers_BT[0, 220:] = 2
    mask_B1TT = attention.causal_mask(numbers_BT)
    own = with_gradients(
        lambda q, k, v: host_attention.causal_attention(q, k, v, None, mask_B1TT), q, k, v, grad
    )
    for row, first, past in attention.find_spans(numbers_BT) or ():
        part = [t.double()[row : row + 1, :, first:past] for t in (q, k, v, grad)]
        for mine, right in zip(own, with_gradients(definition, *part), strict=True):
            alone = mine[row : row + 1, :, first:past].double()
            torch.testing.assert_close(alone, right, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_as_exact_as_pytorch_s_own() -> None:
    given = inputs(300, torch.bfloat16)
    exact = with_gradients(definition, *(t.double() for t in given))
    own = with_gradients(host_attention.causal_attention, *given)
    pytorch = with_gradients(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        *given,
    )
    for mine, theirs, right in zip(own, pytorch, exact, strict=True):
        error, bar = ((t.double() - right).norm() / right.norm() for t in (mine, theirs))
        assert error < 2 * bar
        assert error < 0.01


def test_under_autocast_products_are_in_its_format() -> None:
    q, k, v, _ = inputs(200, torch.float32)
    assert not host_attention.suits(q, k, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert host_attention.suits(q, k, 0.0)
        cast, _ = attention.attend(nn.Module(), q, k, v, None)
    short = [t.bfloat16() for t in (q, k, v)]
    assert cast.dtype == torch.bfloat16
    assert torch.equal(cast, host_attention.causal_attention(*short).transpose(1, 2))


@pytest.mark.parametrize("what", ["float32", "short", "dropout", "fewer keys", "another device"])
def test_elsewhere_attention_is_pytorch_s(what: str) -> None:
    dtype = torch.float32 if what == "float32" else torch.bfloat16
    q, k, _, _ = inputs(20 if what == "short" else 200, dtype)
    if what == "fewer keys":
        k = k[:, :, :100]
    if what == "another device":
        q, k = q.to("meta"), k.to("meta")
    assert not host_attention.suits(q, k, 0.1 if what == "dropout" else 0.0)
