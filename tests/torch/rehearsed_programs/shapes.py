"""Operators on the CPU and without values on the chip: prints what differs, by name."""

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_flatten

KIND = "cuda" if torch.cuda.is_available() else torch.accelerator.current_accelerator().type


def inputs(device: str) -> Callable[..., torch.Tensor]:
    def make(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.ones(sizes, device=device).to(dtype)

    return make


def whole(*sizes: int, device: str) -> torch.Tensor:
    return torch.zeros(sizes, dtype=torch.int64, device=device)


def heads(qkv: Any) -> list[Any]:
    """Tokens first in memory, as models have them: CUDA's kernels and the CPU's give that back."""
    return [each.transpose(1, 2) for each in qkv]


def with_gradients(
    function: Callable[..., Any], *given: torch.Tensor
) -> tuple[Any, tuple[torch.Tensor, ...]]:
    for tensor in given:
        tensor.requires_grad_()
    out = function(*given)
    first = out[0] if isinstance(out, tuple) else out
    return out, torch.autograd.grad(first.sum(), given)


def resized(function: Callable[..., Any], *given: torch.Tensor, **others: Any) -> Any:
    out = given[0].new_empty(0)
    return function(*given, **others, out=out), out


def in_place(tensor: torch.Tensor, change: Callable[[torch.Tensor], Any]) -> Any:
    return change(tensor), tensor


Case = Callable[[Callable[..., torch.Tensor], str], Any]
CASES: dict[str, Case] = {
    "mm": lambda t, d: t(5, 7) @ t(7, 3),
    "matmul batched": lambda t, d: t(4, 1, 5, 7) @ t(6, 7, 3),
    "matmul vector": lambda t, d: t(4, 5, 7) @ t(7),
    "addmm": lambda t, d: torch.addmm(t(3), t(5, 7), t(7, 3)),
    "baddbmm": lambda t, d: torch.baddbmm(t(2, 5, 3), t(2, 5, 7), t(2, 7, 3)),
    "einsum": lambda t, d: torch.einsum("bhqd,bhkd->bhqk", t(2, 3, 5, 4), t(2, 3, 6, 4)),
    "mm out": lambda t, d: resized(torch.mm, t(5, 7), t(7, 3)),
    "add out": lambda t, d: resized(torch.add, t(5, 1), t(3)),
    "cat out": lambda t, d: _cat_out(t),
    "sort out": lambda t, d: torch.sort(t(4, 6), out=(t(0), whole(0, device=d))),
    "topk out": lambda t, d: torch.topk(t(4, 6), 2, out=(t(0), whole(0, device=d))),
    "sum out": lambda t, d: resized(torch.sum, t(4, 6), dim=1),
    "gather out": lambda t, d: resized(torch.gather, t(4, 6), dim=1, index=whole(4, 2, device=d)),
    "broadcast": lambda t, d: t(4, 1, 3) * t(5, 1) + t(1),
    "number": lambda t, d: (t(4, 3) * 2.5, 3 - t(2, 2), 1 / t(3), t(3) ** 2, 2 ** t(3)),
    "number promotes": lambda t, d: (
        whole(3, device=d) + 1.5,
        whole(3, device=d) / 2,
        t(3, dtype=torch.bfloat16) * 2.5,
        whole(3, device=d) // 2,
    ),
    "scalar tensor": lambda t, d: t(3, dtype=torch.bfloat16) + torch.tensor(2.0),
    "types promote": lambda t, d: t(3, dtype=torch.bfloat16) + t(3, dtype=torch.float16),
    "compare": lambda t, d: (t(3, 1) > t(4), t(3) == 1, torch.logical_and(t(3), t(3))),
    "where": lambda t, d: torch.where(t(3, 1) > 0, t(4), 0.0),
    "clamp": lambda t, d: (t(3).clamp(0, 1), t(3).clamp(min=t(2, 3))),
    "add_": lambda t, d: in_place(t(4, 3), lambda x: x.add_(t(3), alpha=2)),
    "mul_ slice": lambda t, d: in_place(t(4, 6), lambda x: x[:, ::2].mul_(3)),
    "index_put_": lambda t, d: in_place(
        t(4, 6), lambda x: x.index_put_((whole(2, device=d),), t(2, 6), accumulate=True)
    ),
    "masked_fill_": lambda t, d: in_place(t(4, 6), lambda x: x.masked_fill_(x > 0, 2.0)),
    "copy_ converts": lambda t, d: in_place(t(4, 6), lambda x: x.copy_(whole(6, device=d))),
    "foreach": lambda t, d: torch._foreach_add([t(3), t(4, 5)], 1.0),
    "foreach list": lambda t, d: torch._foreach_mul([t(3), t(4, 5)], [t(3), t(4, 5)]),
    "foreach_": lambda t, d: _foreach_in_place(t),
    "foreach norm": lambda t, d: torch._foreach_norm([t(3), t(4, 5)]),
    "transposed": lambda t, d: t(4, 6).t().exp(),
    "permuted": lambda t, d: t(2, 3, 4).permute(2, 0, 1).add(1),
    "expanded": lambda t, d: t(1, 4).expand(3, 4).neg(),
    "strided": lambda t, d: t(4, 6)[:, ::2].relu(),
    "reshape copies": lambda t, d: t(4, 6).t().reshape(3, 8),
    "split": lambda t, d: [x.contiguous() for x in t(4, 9).split([2, 3, 4], 1)],
    "chunk": lambda t, d: t(4, 9).chunk(2, 1),
    "unbind": lambda t, d: t(3, 2).unbind(),
    "view dtype": lambda t, d: t(4, 6).view(torch.bfloat16),
    "unfold": lambda t, d: t(10).unfold(0, 4, 2).sum(1),
    "as_strided": lambda t, d: t(12).as_strided((3, 3), (4, 1), 1).cos(),
    "diagonal": lambda t, d: (torch.diagonal(t(3, 4)).sin(), torch.diag(t(3)), torch.diag(t(3, 3))),
    "channels last": lambda t, d: t(2, 3, 4, 4).to(memory_format=torch.channels_last) * 2,
    "index": lambda t, d: (
        t(4, 6)[whole(5, device=d)],
        t(4, 6)[:, whole(2, 3, device=d)],
        t(4, 6, 2)[whole(3, device=d), :, whole(3, device=d)],
        t(4, 6)[1, None, -2:],
    ),
    "index_select": lambda t, d: t(4, 6).index_select(1, whole(3, device=d)),
    "take_along_dim": lambda t, d: t(4, 6).take_along_dim(whole(4, 2, device=d), 1),
    "gather": lambda t, d: t(4, 6).gather(1, whole(4, 3, device=d)),
    "scatter": lambda t, d: t(4, 6).scatter(1, whole(4, 3, device=d), t(4, 3)),
    "scatter_add_": lambda t, d: in_place(
        t(4, 6), lambda x: x.scatter_add_(1, whole(4, 3, device=d), t(4, 3))
    ),
    "index_add": lambda t, d: t(4, 6).index_add(0, whole(2, device=d), t(2, 6)),
    "sort": lambda t, d: t(4, 6).sort(dim=0, descending=True),
    "argsort": lambda t, d: t(4, 6).argsort(),
    "topk": lambda t, d: t(4, 6).topk(2),
    "kthvalue": lambda t, d: t(4, 6).kthvalue(2),
    "max": lambda t, d: (t(4, 6).max(), t(4, 6).max(1), t(4, 6).amax((0, 1), keepdim=True)),
    "argmax": lambda t, d: t(4, 6).argmax(1, keepdim=True),
    "reductions": lambda t, d: (t(4, 6).mean(), t(4, 6).var(1), t(4, 6).sum(0), t(4, 6).prod()),
    "sum of integers": lambda t, d: (t(4) > 0).sum(),
    "norm": lambda t, d: (t(4, 6).norm(), torch.linalg.vector_norm(t(4, 6), dim=1)),
    "cumsum": lambda t, d: (t(4, 6).cumsum(1), whole(4, device=d).cumsum(0), t(4).cumprod(0)),
    "logsumexp": lambda t, d: t(4, 6).logsumexp(1),
    "softmax": lambda t, d: (t(4, 6).softmax(1), t(4, 6).log_softmax(0)),
    "cross_entropy": lambda t, d: with_gradients(
        lambda x: F.cross_entropy(x, whole(5, device=d)), t(5, 9)
    ),
    "mse_loss": lambda t, d: with_gradients(F.mse_loss, t(5, 9), t(5, 9)),
    "embedding": lambda t, d: with_gradients(
        lambda w: F.embedding(whole(2, 7, device=d), w), t(11, 4)
    ),
    "embedding_bag": lambda t, d: F.embedding_bag(whole(3, 5, device=d), t(11, 4)),
    "layer_norm": lambda t, d: with_gradients(
        lambda x, w, b: F.layer_norm(x, (6,), w, b), t(4, 6), t(6), t(6)
    ),
    "rms_norm": lambda t, d: with_gradients(lambda x, w: F.rms_norm(x, (6,), w), t(4, 6), t(6)),
    "group_norm": lambda t, d: with_gradients(lambda x: F.group_norm(x, 2), t(2, 4, 3, 3)),
    "batch_norm": lambda t, d: with_gradients(
        lambda x, w: F.batch_norm(x, t(3), t(3), w, training=True), t(2, 3, 4, 4), t(3)
    ),
    "gelu": lambda t, d: with_gradients(F.gelu, t(4, 6)),
    "silu": lambda t, d: with_gradients(F.silu, t(4, 6, dtype=torch.bfloat16)),
    "glu": lambda t, d: with_gradients(F.glu, t(4, 6)),
    "dropout": lambda t, d: F.dropout(t(4, 6), 0.5),
    "conv1d": lambda t, d: with_gradients(F.conv1d, t(2, 3, 9), t(5, 3, 3)),
    "conv2d": lambda t, d: with_gradients(
        lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1), t(2, 4, 9, 9), t(6, 4, 3, 3), t(6)
    ),
    "conv2d groups": lambda t, d: F.conv2d(t(2, 4, 9, 9), t(6, 2, 3, 3), groups=2, dilation=2),
    "conv3d": lambda t, d: F.conv3d(t(2, 3, 5, 5, 5), t(4, 3, 3, 3, 3)),
    "conv_transpose2d": lambda t, d: with_gradients(
        lambda x, w: F.conv_transpose2d(x, w, stride=2, output_padding=1),
        t(2, 4, 5, 5),
        t(4, 3, 3, 3),
    ),
    "max_pool2d": lambda t, d: with_gradients(lambda x: F.max_pool2d(x, 2), t(2, 3, 8, 8)),
    "adaptive_avg_pool2d": lambda t, d: with_gradients(
        lambda x: F.adaptive_avg_pool2d(x, 1), t(2, 3, 8, 8)
    ),
    "interpolate": lambda t, d: with_gradients(
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), t(2, 3, 4, 4)
    ),
    "pad": lambda t, d: (F.pad(t(2, 3), (1, 2)), F.pad(t(2, 3, 4), (1, 1), mode="reflect")),
    "attention": lambda t, d: with_gradients(
        lambda *qkv: F.scaled_dot_product_attention(*heads(qkv), is_causal=True),
        t(2, 8, 3, 16),
        t(2, 8, 3, 16),
        t(2, 8, 3, 16),
    ),
    "attention grouped": lambda t, d: with_gradients(
        lambda *qkv: F.scaled_dot_product_attention(*heads(qkv), enable_gqa=True),
        t(2, 8, 4, 16, dtype=torch.bfloat16),
        t(2, 8, 2, 16, dtype=torch.bfloat16),
        t(2, 8, 2, 16, dtype=torch.bfloat16),
    ),
    "attention mask": lambda t, d: with_gradients(
        lambda *qkv: F.scaled_dot_product_attention(*heads(qkv), attn_mask=t(8, 9) > 0),
        t(2, 8, 3, 16),
        t(2, 9, 3, 16),
        t(2, 9, 3, 16),
    ),
    "multihead": lambda t, d: torch.nn.MultiheadAttention(8, 2, batch_first=True, device=d)(
        t(2, 5, 8), t(2, 5, 8), t(2, 5, 8)
    ),
    "lstm": lambda t, d: torch.nn.LSTM(6, 4, num_layers=2, device=d)(t(5, 2, 6)),
    "cholesky": lambda t, d: torch.linalg.cholesky(t(3, 4, 4) + 9 * torch.eye(4, device=d)),
    "qr": lambda t, d: torch.linalg.qr(t(5, 3)),
    "svd": lambda t, d: torch.linalg.svd(t(5, 3), full_matrices=False),
    "solve": lambda t, d: torch.linalg.solve(torch.eye(4, device=d), t(4, 2)),
    "inv": lambda t, d: (torch.linalg.inv(torch.eye(4, device=d)), torch.linalg.det(t(2, 4, 4))),
    "eigh": lambda t, d: torch.linalg.eigh(torch.eye(4, device=d)),
    "triangular": lambda t, d: (t(4, 4).tril(), t(4, 4).triu(1)),
    "fft": lambda t, d: (torch.fft.fft(t(4, 6)), torch.fft.rfft(t(4, 6)), torch.fft.fft2(t(4, 6))),
    "irfft": lambda t, d: torch.fft.irfft(torch.fft.rfft(t(4, 6)), n=6),
    "complex": lambda t, d: (
        torch.view_as_complex(t(4, 3, 2)) * 1j,
        torch.view_as_real(torch.polar(t(4), t(4))),
    ),
    "factories": lambda t, d: (
        torch.arange(2, 11, 3, device=d),
        torch.linspace(0, 1, 5, device=d),
        torch.full((2, 3), 7, device=d),
        torch.eye(3, 4, device=d),
        torch.randperm(6, device=d),
        torch.randint(4, (2, 3), device=d),
        torch.empty_like(t(4, 6).t()),
        torch.zeros_like(t(4, 6)[:, ::2]),
        torch.tril_indices(4, 4, device=d),
    ),
    "stack": lambda t, d: (torch.stack([t(2, 3)] * 4, 1), torch.cat([t(2, 3), t(2, 1)], 1)),
    "repeat": lambda t, d: (t(2, 3).repeat(2, 2), t(2, 3).repeat_interleave(3, 1), t(3).tile(2)),
    "roll flip": lambda t, d: (t(2, 3).roll(1, 0), t(2, 3).flip(1), t(2, 3).rot90()),
    "meshgrid": lambda t, d: torch.meshgrid(t(2), t(3), indexing="ij"),
    "searchsorted": lambda t, d: (torch.searchsorted(t(5), t(2, 3)), torch.bucketize(t(4), t(3))),
    "one_hot": lambda t, d: F.one_hot(whole(3, device=d), 5),
    "cdist": lambda t, d: torch.cdist(t(4, 3), t(5, 3)),
    "lerp": lambda t, d: (torch.lerp(t(3), t(3), 0.5), torch.addcmul(t(3), t(3), t(3))),
    "multinomial": lambda t, d: torch.multinomial(t(4, 6), 3),
    "float8": lambda t, d: t(4, 6).to(torch.float8_e4m3fn),
}


def _cat_out(t: Callable[..., torch.Tensor]) -> Any:
    out = t(0)
    return torch.cat([t(2, 3), t(4, 3)], out=out), out


def _foreach_in_place(t: Callable[..., torch.Tensor]) -> Any:
    all_of = [t(3), t(4, 5)]
    torch._foreach_mul_(all_of, 2.0)
    torch._foreach_addcdiv_(all_of, all_of, all_of, value=-0.1)
    return all_of


def looks(result: Any, kind: str) -> list[Any]:
    found = []
    for value in tree_flatten(result)[0]:
        if isinstance(value, torch.Tensor):
            assert value.device.type == kind, value.device
            found.append([str(value.dtype), list(value.shape), list(value.stride())])
        else:
            found.append(repr(value))
    return found


def attempt(case: Case, device: str) -> Any:
    try:
        return looks(case(inputs(device), device), device)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


different = {}
for name, case in CASES.items():
    host, chip = attempt(case, "cpu"), attempt(case, KIND)
    if host != chip:
        different[name] = {"cpu": host, "chip": chip}
print(json.dumps({"cases": len(CASES), "different": different}))
