"""The loss of a head, chunked or not, against PyTorch's own on whole logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from offramp.train.data.batches import IGNORED
from offramp.train.loss import Chunking, linear_cross_entropy


def example(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(3)
    hidden, weight = torch.randn(37, 16, dtype=dtype), torch.randn(29, 16, dtype=dtype)
    bias, targets = torch.randn(29, dtype=dtype), torch.randint(0, 29, (37,))
    targets[::5] = IGNORED
    return *(t.requires_grad_() for t in (hidden, weight, bias)), targets


@pytest.mark.parametrize("tokens", [0, 1, 8, 37, 1000])
@pytest.mark.parametrize("with_bias", [True, False])
def test_loss_and_gradients_are_pytorchs(tokens: int, with_bias: bool) -> None:
    hidden, weight, bias, targets = example(torch.float32)
    own = linear_cross_entropy(
        hidden, weight, targets, bias if with_bias else None, Chunking(tokens)
    )
    wanted = [hidden, weight, *([bias] if with_bias else [])]
    grads = torch.autograd.grad(own * 0.5, wanted)
    logits = linear(hidden.double(), weight.double(), bias.double() if with_bias else None)
    exact = cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(own.double(), exact, rtol=1e-6, atol=0)
    for grad, reference in zip(grads, torch.autograd.grad(exact * 0.5, wanted), strict=True):
        torch.testing.assert_close(grad, reference.float(), rtol=1e-5, atol=1e-6)


def test_bfloat16_is_as_near_as_pytorchs_own() -> None:
    hidden, weight, _, targets = example(torch.bfloat16)
    exact = cross_entropy(
        linear(hidden.double(), weight.double()), targets, ignore_index=IGNORED, reduction="sum"
    )
    theirs = cross_entropy(
        linear(hidden, weight).float(), targets, ignore_index=IGNORED, reduction="sum"
    )
    own = linear_cross_entropy(hidden, weight, targets, chunking=Chunking(8))
    assert own.dtype == torch.float32
    assert abs(own - exact) <= 1.01 * abs(theirs - exact) + 1e-3


def test_short_products_add_up_in_the_format_of_the_weight() -> None:
    """256 chunks that each add 1 to a weight's gradient: in bfloat16 the sum would stop at 256."""
    hidden = torch.ones(1024, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, requires_grad=True)
    targets = torch.zeros(1024, dtype=torch.int64)
    linear_cross_entropy(hidden, weight, targets, chunking=Chunking(2)).backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor([[-512.0], [512.0]]))


def test_a_batch_without_targets_has_no_loss_and_no_gradient() -> None:
    hidden, weight, _, _ = example(torch.float32)
    loss = linear_cross_entropy(hidden, weight, torch.full((37,), IGNORED))
    loss.backward()
    assert loss == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_logits_are_never_whole() -> None:
    """The largest tensor that is made has a chunk's logits, not the batch's."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max([largest, *(t.numel() for t in [out] if isinstance(t, torch.Tensor))])
            return out

    hidden, weight = torch.randn(512, 4), torch.randn(64, 4, requires_grad=True)
    with Watch():
        linear_cross_entropy(
            hidden, weight, torch.zeros(512, dtype=torch.int64), None, Chunking(32)
        )
    assert largest <= max(32 * 64, hidden.numel())
