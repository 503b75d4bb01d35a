"""What a layer computes again, and what stays: gradients as without, products once."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from offramp.train import fp8
from offramp.train.parallel import layers


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """What one test compiled is not taken by another."""
    yield
    with warnings.catch_warnings(action="ignore"):
        torch.compiler.reset()


class Counting(TorchDispatchMode):
    """Counts operators by name, of forward and backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Layer(nn.Module):
    """Two products and a gate; `prepares` is called in each forward pass, as FSDP's hooks are."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32, bias=False), nn.Linear(32, 16, bias=False)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.prepare()
        return x + self.down(torch.nn.functional.silu(self.up(x)))

    def prepare(self) -> None:
        """Nothing in the first pass; later other operators, as where weights are not there."""
        self.calls += 1
        if self.calls > 1:
            with torch.no_grad():
                torch.zeros(self.calls).add_(1).chunk(1)


def trained(layer: nn.Module, x: Tensor) -> tuple[list[Tensor], Counter[str]]:
    with Counting() as counting:
        layer(x).square().sum().backward()
    grads = [p.grad for p in layer.parameters()]
    assert all(grad is not None for grad in grads)
    return [grad for grad in grads if grad is not None], counting.counts


def twins() -> tuple[Layer, Layer]:
    torch.manual_seed(0)
    plain, other = Layer(), Layer()
    other.load_state_dict(plain.state_dict())
    return plain, other


@pytest.mark.parametrize(
    ("how", "again"), [("none", 0), ("selective", 0), ("alternate", 0), ("full", 1)]
)
def test_products_are_computed_again_as_the_job_says(how: str, again: int) -> None:
    """Although a layer does other things beside them when it is called again."""
    plain, other = twins()
    layers.prepare(other, how, compiled=False)
    x = torch.randn(4, 16, requires_grad=True)
    expected, without = trained(plain, x)
    found, counts = trained(other, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    # Without: two forward, two for gradients of weights and two of inputs. The last product of
    # a layer need not be computed again: nothing waits for its result.
    assert without["aten.mm.default"] == 6
    assert counts["aten.mm.default"] == 6 + again
    assert counts["aten.silu.default"] == (1 if how == "none" else 2)


class Deep(nn.Module):
    """Four products, each of which another waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = torch.nn.functional.silu(step(x))
        return x


@pytest.mark.parametrize("compiled", [False, True])
def test_every_second_product_is_computed_again(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each of two steps, so that counts begin anew with every pass."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiler(f, backend="aot_eager"))
    torch.manual_seed(0)
    plain, other = Deep(), Deep()
    other.load_state_dict(plain.state_dict())
    layers.prepare(other, "alternate", compiled=compiled)
    for step in (1, 2):
        x = torch.randn(4, 16, requires_grad=True)
        expected, without = trained(plain, x)
        found, counts = trained(other, x)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert without["aten.mm.default"] == 12
        assert counts["aten.mm.default"] == 14, step


def test_products_of_8_bits_stay_as_others_do() -> None:
    x = torch.randn(16, 16, requires_grad=True)
    counted = []
    for how in ("none", "selective", "full"):
        layer = Layer()
        assert fp8.convert(layer, tokens=16) == 2
        layers.prepare(layer, how, compiled=False)
        counted.append(trained(layer, x)[1]["aten._scaled_mm.default"])
    none, selective, full = counted
    assert none == selective == 6  # two linear layers: forward, and two gradients each
    assert full > none


def test_a_layer_that_keeps_products_is_compiled_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, examples: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, examples)

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiler(f, backend=backend))
    monkeypatch.setattr(Layer, "prepare", lambda self: None)
    plain, other = twins()
    layers.prepare(other, "selective", compiled=True)
    x = torch.randn(4, 16, requires_grad=True)
    for layer in (plain, other):
        layer(x).square().sum().backward()
    assert len(graphs) == 1
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad)
