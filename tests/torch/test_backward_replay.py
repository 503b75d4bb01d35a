"""Operators of backward passes: kept as autograd calls them, and the faulty one is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from recording_here import record
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

from offramp.compare import run
from offramp.compare.operators import Named, bisect
from offramp.compare.placing import BACKWARD
from offramp.record.recording import Recording

Backward = Callable[[Tensor, Tensor], Tensor]


class Square(torch.autograd.Function):
    """x squared, with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backward: Backward) -> Tensor:
        ctx.save_for_backward(x)
        ctx.backward_of = backward
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.backward_of(gradient, *ctx.saved_tensors), None


class Squares(nn.Module):
    """A product, squared."""

    def __init__(self, backward: Backward) -> None:
        super().__init__()
        self.weight, self.derivative = nn.Parameter(torch.randn(16, 16) / 4), backward

    def forward(self, x_BC: Tensor) -> Tensor:
        return Square.apply(F.linear(x_BC.tanh(), self.weight), self.derivative)


def right(gradient: Tensor, x: Tensor) -> Tensor:
    return gradient * 2.0 * x


def recorded(
    path: Path,
    device: str = "cpu",
    backward: Backward = right,
    *,
    between: Callable[[int], Any] = lambda step: None,
    zeroes: bool = True,
    tensors: str = "1",
    perturb: int = -1,
) -> Recording:
    """Three steps; `between` is called between the forward and the backward pass of each."""

    def work() -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), Squares(backward), nn.Linear(16, 1)).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for step in range(3):
            if zeroes:
                optimizer.zero_grad()
            loss = model(torch.randn(64, 8).to(device)).square().mean()
            between(step)
            loss.backward()
            optimizer.step()

    found, _ = record(path, work, tensors=tensors, steps=(0, 1), perturb=perturb)
    assert not found.notes
    return found


def named(a: Recording, b: Recording, step: int, *noise: Recording) -> str:
    """What `compare --bisect` says, once the verdict is about the planted module."""
    found = run.judged([a], [b], [list(noise)] if noise else [], 0.005)
    place = found.verdict.place
    assert place is not None
    assert (place.step, place.pass_name) == (step, BACKWARD)
    assert (place.step, place.module) in a.operators
    return run.bisect(found, a.path, b.path)[1]


@pytest.fixture(autouse=True)
def opened(chip: Any) -> None:
    """The chip is open before the first backward pass, which starts autograd's threads."""


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """The host, and the virtual chip, whose backward passes run in a thread of their own."""
    return str(request.param)


def test_a_backward_pass_is_kept_node_by_node(device: str, tmp_path: Path) -> None:
    found = recorded(tmp_path / "a.rec", device)
    told = found.operators[(0, "1")].head["backward"]
    calls = [(one["node"], one["name"]) for one in told]
    assert calls[:2] == [("SquareBackward", "aten.mul.Tensor")] * 2
    assert ("MmBackward0", "aten.mm.default") in calls
    assert calls[-1] == ("TanhBackward0", "aten.tanh_backward.default")
    assert "AccumulateGrad" in dict(calls)
    assert not any(node.startswith("Addmm") for node, _ in calls)  # of the layers around it
    assert bisect(found, found, 0, "1", BACKWARD).text.startswith("none of its operators")


def test_the_program_computes_and_fails_as_without_it(device: str, tmp_path: Path) -> None:
    one, other = (recorded(tmp_path / f"{t}.rec", device, tensors=t) for t in ("1", "none"))
    assert one.losses.tolist() == other.losses.tolist()
    assert [s.gradient_norm for s in one.steps] == [s.gradient_norm for s in other.steps]

    def fail(gradient: Tensor, x: Tensor) -> Tensor:
        raise ArithmeticError("planted")

    with pytest.raises(ArithmeticError, match="planted"):
        recorded(tmp_path / "c.rec", device, fail)
    assert _get_current_dispatch_mode() is None


def test_a_factor_too_many_in_a_derivative_is_named(device: str, tmp_path: Path) -> None:
    a = recorded(tmp_path / "a.rec", device)
    b = recorded(tmp_path / "b.rec", device, lambda g, x: g * 2.0 * x * 1.01)
    said = named(a, b, 0)
    assert said.startswith("aten.mul.Tensor: operator ")
    assert "of the backward pass (in SquareBackward) is called in the second only" in said


def test_another_factor_in_a_derivative_is_named(device: str, tmp_path: Path) -> None:
    a = recorded(tmp_path / "a.rec", device)
    b = recorded(tmp_path / "b.rec", device, lambda g, x: g * 2.02 * x)
    assert "aten.mul.Tensor was given 2.0 in the first, 2.02 in the second" in named(a, b, 0)


def test_a_stale_saved_tensor_is_named(device: str, tmp_path: Path) -> None:
    saved: list[Tensor] = []

    def stale(gradient: Tensor, x: Tensor) -> Tensor:
        saved.append(x.detach())
        return gradient * 2.0 * saved[max(len(saved) - 2, 0)]

    a, b = recorded(tmp_path / "a.rec", device), recorded(tmp_path / "b.rec", device, stale)
    said = named(a, b, 1, recorded(tmp_path / "n.rec", device, perturb=1))
    assert "(in SquareBackward): aten.mul.Tensor was given the result of aten.mm.default" in said
    assert "in the first, a tensor that no operator of it had before in the second" in said


def test_gradients_that_were_left_are_named(device: str, tmp_path: Path) -> None:
    a = recorded(tmp_path / "a.rec", device)
    b = recorded(tmp_path / "b.rec", device, zeroes=False)
    found = bisect(a, b, 1, "1", BACKWARD)
    assert found.operator == "aten.add_.Tensor"
    assert "(in AccumulateGrad) is called in the second only" in found.text


def narrow(x: Tensor) -> Tensor:
    """float32 with 10 bits of mantissa, by its bits."""
    bits = x.detach().contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) >> 13 << 13).view(torch.float32)


@pytest.fixture
def kernels() -> Iterator[torch.library.Library]:
    """Kernels of the CPU can be replaced in it until the test ends."""
    library = torch.library.Library("aten", "IMPL")
    yield library
    library._destroy()


@pytest.mark.filterwarnings("ignore")  # that a kernel is replaced
def test_a_product_with_fewer_bits_in_backward_alone(kernels: Any, tmp_path: Path) -> None:
    a = recorded(tmp_path / "a.rec", tensors="2")

    def multiply(x: Tensor, y: Tensor) -> Tensor:
        x, y = (narrow(x), narrow(y)) if torch._C._current_graph_task_id() != -1 else (x, y)
        return torch.bmm(x[None], y[None])[0]

    kernels.impl("mm", multiply, "CPU")
    b = recorded(tmp_path / "b.rec", tensors="2")
    check_tf32(named(a, b, 0))


def test_the_same_on_a_chip(arith: Any, tmp_path: Path) -> None:
    a = recorded(tmp_path / "a.rec", "cuda", tensors="2")

    def switch(step: int) -> None:
        arith("matmul.float32=tf32")

    b = recorded(tmp_path / "b.rec", "cuda", between=switch, tensors="2")
    check_tf32(named(a, b, 0))


def check_tf32(said: str) -> None:
    assert said.startswith("aten.mm.default: operator ")
    assert "of the backward pass (in AddmmBackward0) is off by" in said
    assert "its result is that of inputs with 10 bits of mantissa, as TF32's" in said


def test_what_was_not_recorded_is_asked_for(tmp_path: Path) -> None:
    a = recorded(tmp_path / "a.rec")
    found: Named = bisect(a, a, 2, "1", BACKWARD)
    assert "has no operators of 1 in step 2, backward; record both with --tensors '1'" in found.text
