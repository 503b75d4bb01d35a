"""8-bit linear layers, against exact products of the values that 8 bits can hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from offramp.errors import UsageError
from offramp.train import fp8


def held(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The values as the format holds them, largest at its end, in float64."""
    scale = torch.finfo(dtype).max / value.abs().max().double()
    return (value.double() * scale).float().to(dtype).double() / scale


def test_outputs_and_gradients_are_products_of_8_bit_values() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(64, 48, bias=True))
    assert fp8.convert(layer, 32) == 1
    input = torch.randn(2, 16, 64, dtype=torch.bfloat16, requires_grad=True)
    grad = torch.randn(2, 16, 48, dtype=torch.bfloat16)
    out = layer(input)
    out.backward(grad)
    x, w = input.detach().flatten(0, 1), layer[0].weight.detach().bfloat16()
    x8, w8, g8 = held(x, fp8.FORWARD), held(w, fp8.FORWARD), held(grad.flatten(0, 1), fp8.BACKWARD)
    near = {"rtol": 2e-2, "atol": 2e-2}
    exact = x8 @ w8.T + layer[0].bias.detach().double()
    torch.testing.assert_close(out.detach().flatten(0, 1).double(), exact, **near)
    assert input.grad is not None
    torch.testing.assert_close(input.grad.flatten(0, 1).double(), g8 @ w8, **near)
    torch.testing.assert_close(layer[0].weight.grad.double(), g8.T @ x8, rtol=2e-2, atol=5e-2)
    plain = x.double() @ w.double().T + layer[0].bias.detach().double()
    assert (exact - plain).abs().max() > 3e-2, "8 bits should be told from 16"


def test_layers_that_hardware_cannot_take_stay_as_they_are() -> None:
    layer = nn.ModuleDict({"odd": nn.Linear(40, 48), "even": nn.Linear(32, 48)})
    assert fp8.convert(layer, 16) == 1
    assert type(layer["odd"]) is nn.Linear
    with pytest.raises(UsageError, match="multiple of 16 tokens; got 24"):
        fp8.convert(layer, 24)
