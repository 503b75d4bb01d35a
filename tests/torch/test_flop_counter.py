"""Work counted in operations against PyTorch's own counter, on the shapes of real calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from offramp.costs import Operation, Tensor
from offramp.costs.flops import attention, products


class Recorder(TorchDispatchMode):
    """Every call as an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outs = result if isinstance(result, tuple) else (result,)
        names = [a.name for a in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | (kwargs or {})
        ins = tuple(_tensor(v) for v in given.values() if v is None or torch.is_tensor(v))
        values = {k: v for k, v in given.items() if not torch.is_tensor(v) and v is not None}
        written = tuple(t for t in map(_tensor, outs) if t is not None)
        name = func.name()
        self.operations.append(Operation(name, ins, written, values))
        return result


def _tensor(value: Any) -> Tensor | None:
    if not torch.is_tensor(value):
        return None
    return Tensor(str(value.dtype)[6:], tuple(value.shape), tuple(value.stride()))


def counted(function: Any) -> tuple[float, float]:
    """Work by our count and by PyTorch's."""
    with FlopCounterMode(display=False) as counter, Recorder() as recorder:
        function()
    ours = 0.0
    for op in recorder.operations:
        shape = attention(op)
        ours += sum(part.flops for part in products(op)) + (shape.flops if shape else 0.0)
    return ours, float(counter.get_total_flops())


def _convolutions(transposed: bool, groups: int, backward: bool) -> None:
    kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    layer = kind(8, 12, 3, stride=2, padding=1, groups=groups)
    result = layer(torch.randn(2, 8, 14, 14, requires_grad=True))
    if backward:
        result.sum().backward()


def _linear() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.GELU(), torch.nn.Linear(48, 16))
    layer(torch.randn(4, 10, 32, requires_grad=True)).sum().backward()


def _batched() -> None:
    a, b = (torch.randn(s, requires_grad=True) for s in ((4, 6, 8), (4, 8, 10)))
    torch.baddbmm(torch.randn(4, 6, 10), a, b).sum().backward()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("groups", "backward"), [(1, False), (1, True), (2, False)])
def test_convolutions(transposed: bool, groups: int, backward: bool) -> None:
    """Backward without groups: PyTorch counts the weight's gradient as if there were none."""
    ours, theirs = counted(lambda: _convolutions(transposed, groups, backward))
    assert ours == theirs > 0


@pytest.mark.parametrize("work", [_linear, _batched])
def test_products(work: Any) -> None:
    ours, theirs = counted(work)
    assert ours == theirs > 0


def test_attention_without_a_mask() -> None:
    """PyTorch counts no mask, so this is the full square; the kernel is the CPU's flash one."""
    q, k, v = (torch.randn(2, 4, 64, 16, requires_grad=True) for _ in range(3))
    with Recorder() as recorder:
        torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()
    found = [shape for op in recorder.operations if (shape := attention(op)) is not None]
    assert [shape.backward for shape in found] == [False, True]
    forward = 4 * 2 * 4 * 64 * 64 * 16
    assert [shape.flops for shape in found] == [forward, 2.5 * forward]
