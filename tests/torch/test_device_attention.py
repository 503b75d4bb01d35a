"""Attention chooses its kernel as on CUDA, within what the CPU can compute."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from agree import agree
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("chip")
aten = torch.ops.aten


def inputs(device: str, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(2, 3, 8, 16).to(device, dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention_is_that_of_the_cpu(dtype: torch.dtype, causal: bool) -> None:
    def program(device: str) -> object:
        qkv = inputs(device, dtype)
        out = scaled_dot_product_attention(*qkv, is_causal=causal)
        grads = torch.autograd.grad(out, qkv, torch.ones_like(out))
        return [each.contiguous() for each in (out, *grads)]  # whatever the layout

    agree(program)


def test_masks_and_grouped_heads() -> None:
    def program(device: str) -> object:
        q, k, v = inputs(device)
        mask = torch.ones(8, 8, dtype=torch.bool, device=device).tril()
        bias = torch.randn(8, 8).to(device)
        made = (
            scaled_dot_product_attention(q, k, v, attn_mask=mask),
            scaled_dot_product_attention(q, k, v, attn_mask=bias),
            scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True),
        )
        return [each.contiguous() for each in made]  # whatever the layout

    agree(program, exact=False)


KERNELS: dict[str, tuple[object, ...]] = {  # what each takes after query, key and value
    "flash": (0.0, True, False),
    "efficient": (None, True, 0.0, True),
    "cudnn": (None, True, 0.0, True, False),
}


def layouts(query: torch.Tensor, kernel: str) -> list[tuple[int, ...]]:
    """Strides of a kernel's result and of its gradients; keys are laid out as rows of heads."""
    called = getattr(aten, f"_scaled_dot_product_{kernel}_attention")
    keys = query.new_zeros(2, 8, 3, 16).transpose(1, 2).requires_grad_()
    values = torch.zeros_like(query, requires_grad=True)
    asked = [query.requires_grad_(), keys, values]
    out = called(*asked, *KERNELS[kernel])[0]
    grads = torch.autograd.grad(out.sum(), asked)
    return [out.stride(), *(grad.stride() for grad in grads)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("heads_first", [False, True])
def test_results_are_laid_out_as_pytorch_says_of_cuda(kernel: str, heads_first: bool) -> None:
    def query(device: str) -> torch.Tensor:
        made = torch.zeros(2, 3, 8, 16, device=device, dtype=torch.bfloat16)
        return made if heads_first else made.transpose(1, 2).contiguous().transpose(1, 2)

    assert layouts(query("cuda"), kernel) == layouts(query("meta"), kernel)


def test_values_do_not_move_in_another_layout() -> None:
    def program(device: str) -> object:
        out = scaled_dot_product_attention(*inputs(device), is_causal=True)
        assert out.is_contiguous() == (device == "cpu")
        return out.tolist()

    agree(program)


class Names(TorchDispatchMode):
    """The attention operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "attention" in str(func):
            self.met.append(str(func).split(".")[1].removeprefix("_scaled_dot_product_"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("dtype", "masked", "kind"),
    [
        (torch.bfloat16, False, "flash"),
        (torch.float16, True, "efficient"),
        (torch.float32, False, "efficient"),
    ],
)
def test_the_operators_are_those_of_cuda(dtype: torch.dtype, masked: bool, kind: str) -> None:
    q, k, v = inputs("cuda", dtype)
    mask = torch.zeros(8, 8, device="cuda", dtype=dtype) if masked else None
    with Names() as names:
        scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()
    assert names.met == [f"{kind}_attention", f"{kind}_attention_backward"]


def test_grouped_heads_with_a_mask_take_products() -> None:
    q, k, v = inputs("cuda", torch.bfloat16)
    mask = torch.ones(8, 8, dtype=torch.bool, device="cuda").tril()
    with Names() as names:
        scaled_dot_product_attention(q, k[:, :1], v[:, :1], attn_mask=mask, enable_gqa=True)
    assert not names.met
    with Names() as names:
        scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True)
    assert names.met == ["flash_attention"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("queries", "heads"), [(3, 2), (8, 2), (5, 1)])
def test_the_causal_mask_of_the_flash_kernel_ends_with_the_last_key(
    dtype: torch.dtype, queries: int, heads: int
) -> None:
    """As of FlashAttention from 2.1 on, which CUDA's is."""
    q, k, v = (t.detach() for t in inputs("cpu", dtype))
    given = q[:, :2, :queries], k[:, :heads], v[:, :heads]
    seen = torch.ones(queries, 8, dtype=torch.bool).tril(8 - queries)
    own, exact = (
        [t.to(*to).requires_grad_() for t in given] for to in (("cuda",), (torch.float64,))
    )
    out = aten._scaled_dot_product_flash_attention(*own, is_causal=True)[0]
    want = scaled_dot_product_attention(*exact, attn_mask=seen, enable_gqa=True)
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    )
    torch.testing.assert_close(out.cpu().double(), want, **tolerance)
    out.sum().backward()
    want.sum().backward()
    for mine, other in zip(own, exact, strict=True):
        torch.testing.assert_close(mine.grad.cpu().double(), other.grad, **tolerance)


def test_a_causal_call_of_other_queries_than_keys_starts_with_the_first_key() -> None:
    """scaled_dot_product_attention's own meaning, for which CUDA leaves its flash kernel."""
    q, k, v = (t.detach() for t in inputs("cpu", torch.bfloat16))
    with Names() as names:
        found = scaled_dot_product_attention(
            *(t.cuda() for t in (q[:, :, :5], k, v)), is_causal=True
        )
    assert names.met == ["efficient_attention"]
    exact = scaled_dot_product_attention(q[:, :, :5], k, v, is_causal=True)
    torch.testing.assert_close(found.cpu(), exact)


def test_programs_that_ask_for_the_flash_kernel_are_told_of_it() -> None:
    def answer(*qkv: torch.Tensor) -> bool:
        params = torch.backends.cuda.SDPAParams(*qkv, None, 0.0, False, False)
        return torch.backends.cuda.can_use_flash_attention(params)

    short = inputs("cuda", torch.bfloat16)
    assert answer(*short)
    assert not answer(*inputs("cuda", torch.float32))
    with sdpa_kernel(SDPBackend.MATH):
        assert not answer(*short)


WITHOUT_FLASH = """
import torch
from torch.nn.functional import scaled_dot_product_attention
q = torch.ones(1, 2, 8, 16, device="cuda", dtype=torch.float16, requires_grad=True)
print(type(scaled_dot_product_attention(q, q, q, is_causal=True).grad_fn).__name__)
try:
    torch.ops.aten._scaled_dot_product_flash_attention(q, q, q)
except NotImplementedError as error:
    print(error)
"""


def test_a_chip_without_the_flash_kernel() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FLASH],
        env={**os.environ, "OFFRAMP_CHIP": "nvidia-v100"},
        capture_output=True,
        text=True,
        check=True,
    )
    kernel, refusal = done.stdout.splitlines()
    assert kernel.startswith("ScaledDotProductEfficientAttention")
    assert "does not exist on nvidia-v100: flash attention needs capability 8.0" in refusal


@pytest.mark.parametrize(
    "backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
)
def test_each_backend_can_be_chosen_alone(backend: SDPBackend) -> None:
    q, k, v = inputs("cuda")
    with sdpa_kernel(backend):
        out = scaled_dot_product_attention(q, k, v)
    expected = torch.softmax(q @ k.transpose(-1, -2) / 4, -1) @ v
    torch.testing.assert_close(out, expected)


def test_nothing_enabled_is_an_error() -> None:
    q, k, v = inputs("cuda")
    with (
        sdpa_kernel([]),
        pytest.raises(RuntimeError, match=r"No available kernel. Aborting execution"),
    ):
        scaled_dot_product_attention(q, k, v)


def test_flash_attention_takes_no_mask_gradient() -> None:
    q, k, v = inputs("cuda")
    bias = torch.zeros(8, 8, device="cuda", requires_grad=True)
    scaled_dot_product_attention(q, k, v, attn_mask=bias).sum().backward()
    assert bias.grad is not None


def test_kernels_called_by_their_own_names() -> None:
    qkv = inputs("cuda")
    expected = scaled_dot_product_attention(*qkv, is_causal=True)
    wanted = torch.autograd.grad(expected, qkv, torch.ones_like(expected))
    calls = {
        "flash": lambda: aten._scaled_dot_product_flash_attention(*qkv, is_causal=True),
        "efficient": lambda: aten._scaled_dot_product_efficient_attention(
            *qkv, None, True, is_causal=True
        ),
        "cudnn": lambda: aten._scaled_dot_product_cudnn_attention(*qkv, None, True, is_causal=True),
    }
    scores = (qkv[0] @ qkv[1].transpose(-1, -2) / 4).masked_fill(
        torch.ones(8, 8, device="cuda").triu(1).bool(), -torch.inf
    )
    for call in calls.values():
        out, logsumexp, *_ = call()
        assert torch.equal(out, expected)
        torch.testing.assert_close(logsumexp, scores.logsumexp(-1))
        for mine, other in zip(
            torch.autograd.grad(out, qkv, torch.ones_like(out)), wanted, strict=True
        ):
            assert torch.equal(mine, other)


def test_dropout_in_a_named_kernel_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"dropout.*zhenwu-810e"):
        aten._scaled_dot_product_flash_attention(*inputs("cuda"), 0.1)


def test_multi_head_attention_module() -> None:
    def program(device: str) -> object:
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        layer = layer.to(device)
        x = torch.randn(2, 5, 16).to(device)
        trained = layer(x)
        layer.eval()
        with torch.no_grad():
            return trained, layer(x)

    agree(program, exact=False)
