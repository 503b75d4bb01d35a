"""Operators that the CPU lacks, against what defines them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.usefixtures("chip")
aten = torch.ops.aten


def test_synchronized_batch_norm_of_two_parts_is_batch_norm_of_the_whole() -> None:
    torch.manual_seed(0)
    x, grad = torch.randn(2, 7, 3, 5, device="cuda").unbind(0), torch.randn(9, 3, 5, device="cuda")
    whole = torch.cat([x[0][:7], x[1][:2]]).requires_grad_()
    parts, grads = whole.detach().split([7, 2]), grad.split([7, 2])
    norm = nn.BatchNorm1d(3).cuda()
    nn.init.uniform_(norm.weight)
    expected = norm(whole)
    expected.backward(grad)

    mean, invstd = zip(*(aten.batch_norm_stats(p, 1e-5) for p in parts), strict=True)
    counts = torch.tensor([35.0, 10.0], device="cuda")
    running = torch.zeros(3, device="cuda"), torch.ones(3, device="cuda")
    mean, invstd = aten.batch_norm_gather_stats_with_counts(
        parts[0], torch.stack(mean), torch.stack(invstd), *running, 0.1, 1e-5, counts
    )
    torch.testing.assert_close(running[0], norm.running_mean)
    torch.testing.assert_close(running[1], norm.running_var)
    out = [aten.batch_norm_elemt(p, norm.weight, norm.bias, mean, invstd, 1e-5) for p in parts]
    torch.testing.assert_close(torch.cat(out), expected)

    reduced = [
        aten.batch_norm_backward_reduce(g, p, mean, invstd, norm.weight, True, True, True)
        for g, p in zip(grads, parts, strict=True)
    ]
    sum_dy, sum_dy_xmu, d_weight, d_bias = (sum(t) for t in zip(*reduced, strict=True))
    torch.testing.assert_close(d_weight, norm.weight.grad)
    torch.testing.assert_close(d_bias, norm.bias.grad)
    d_x = [
        aten.batch_norm_backward_elemt(
            g, p, mean, invstd, norm.weight, sum_dy, sum_dy_xmu, counts.int()
        )
        for g, p in zip(grads, parts, strict=True)
    ]
    torch.testing.assert_close(torch.cat(d_x), whole.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_with_a_wider_result(dtype: torch.dtype) -> None:
    a, b = torch.randn(2, 3, 4, device="cuda", dtype=dtype), torch.randn(2, 4, 5).cuda().to(dtype)
    bias = torch.randn(3, 5, device="cuda")
    assert torch.equal(torch.mm(a[0], b[0], out_dtype=torch.float32), a[0].float() @ b[0].float())
    assert torch.equal(torch.bmm(a, b, out_dtype=torch.float32), torch.bmm(a.float(), b.float()))
    torch.testing.assert_close(
        torch.addmm(bias, a[0], b[0], out_dtype=torch.float32, beta=2.0),
        2 * bias + a[0].float() @ b[0].float(),
    )


def test_rms_norm_backward_is_its_derivative() -> None:
    x = torch.randn(3, 4, 6, dtype=torch.float64, device="cuda", requires_grad=True)
    w = torch.randn(6, dtype=torch.float64, device="cuda", requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: nn.functional.rms_norm(x, (6,), w), (x, w))
    y, rstd = aten._fused_rms_norm(x, (6,), w, 1e-6)
    grad = torch.randn_like(y)
    formula = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * w
    expected = torch.autograd.grad(formula, (x, w), grad)
    found = aten._fused_rms_norm_backward(grad, x, (6,), rstd, w, [True, True])
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)


def test_fused_dropout_keeps_the_mean() -> None:
    out, mask = aten._fused_dropout(torch.ones(1000, device="cuda"), 0.8)
    assert mask.dtype == torch.uint8
    assert torch.equal(out, mask / 0.8)
    assert torch.equal(aten._masked_scale(torch.ones(1000, device="cuda"), mask, 1.25), out)
    assert 0.7 < mask.float().mean().item() < 0.9


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_float16_into_float32(name: str) -> None:
    x = torch.randn(4, 6).half()
    chip, host = x.cuda().requires_grad_(), x.float().requires_grad_()
    out, expected = (getattr(t, name)(-1, dtype=torch.float32) for t in (chip, host))
    assert torch.equal(out.cpu(), expected)
    grad = torch.randn(4, 6)
    out.backward(grad.cuda())
    expected.backward(grad)
    assert chip.grad.dtype == torch.float16
    assert torch.equal(chip.grad.cpu(), host.grad.half())


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_float16_where_the_cpu_has_float32_only() -> None:
    x = torch.randn(8, 8).half()
    assert torch.fft.rfft(x.cuda()).dtype == torch.complex32
    wide = torch.fft.rfft(x.float())
    torch.testing.assert_close(
        torch.fft.rfft(x.cuda()).to(torch.complex64).cpu(), wide, rtol=1e-3, atol=1e-2
    )
    volume = torch.randn(1, 2, 4, 4, 4, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    pooled = nn.functional.avg_pool3d(volume, 2)
    assert torch.equal(pooled, nn.functional.avg_pool3d(volume.float(), 2).bfloat16())
    pooled.sum().backward()
    assert volume.grad.dtype == torch.bfloat16


def test_what_only_cuda_has_is_refused_with_the_reason() -> None:
    x = torch.randn(2, 3, device="cuda")
    with pytest.raises(NotImplementedError, match=r"aten::cudnn_batch_norm.*zhenwu-810e \(virtual"):
        aten.cudnn_batch_norm(x, x[0], x[0], None, None, True, 0.1, 1e-5)
