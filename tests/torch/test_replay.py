"""Operators of a module replayed in float64: the one that is wrong is named, and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offramp.compare.operators import bisect
from offramp.record.part import Part
from offramp.record.recorder import Recorder
from offramp.record.recording import Recording, read


class Inner(nn.Module):
    """A few operators in one module."""

    def __init__(self, eps: float = 1e-5, linear: Callable[..., Tensor] = F.linear) -> None:
        super().__init__()
        self.weight, self.eps, self.linear = nn.Parameter(torch.randn(16, 16)), eps, linear

    def forward(self, x_BC: Tensor) -> Tensor:
        y_BC = F.layer_norm(x_BC, (16,), eps=self.eps)
        return F.gelu(self.linear(y_BC, self.weight)).softmax(-1)


def recorded(path: Path, scale: float = 1.0, **settings: Any) -> Recording:
    recorder = Recorder(Part(out=str(path), tensors="1", steps=(1,)))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), Inner(**settings), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(scale * torch.randn(4, 8)).sum().backward()
        optimizer.step()
    recorder.close()
    return read(path)


def test_operators_are_kept_of_the_module_and_step(tmp_path: Path) -> None:
    found = recorded(tmp_path / "a.rec")
    assert list(found.operators) == [(1, "1")]
    names = [told["name"] for told in found.operators[(1, "1")].head["operators"]]
    assert "aten.native_layer_norm.default" in names
    assert "aten.gelu.default" in names
    assert "aten._softmax.default" in names


def test_right_operators_are_not_named_whatever_went_in(tmp_path: Path) -> None:
    a, b = recorded(tmp_path / "a.rec"), recorded(tmp_path / "b.rec", scale=1.5)
    found = bisect(a, b, 1, "1")
    assert found.operator == ""
    assert "none of its operators stands out" in found.text
    assert all(max(x, y) < 1e-5 for _, x, y in found.errors)


def test_another_setting_is_named(tmp_path: Path) -> None:
    a, b = recorded(tmp_path / "a.rec"), recorded(tmp_path / "b.rec", eps=1e-3)
    found = bisect(a, b, 1, "1")
    assert found.operator == "aten.native_layer_norm.default"
    assert "was given 1e-05 in the first, 0.001 in the second" in found.text


def test_another_operator_is_named(tmp_path: Path) -> None:
    def doubled(x: Tensor, weight: Tensor) -> Tensor:
        return (x.double() @ weight.double().T).float()

    a, b = recorded(tmp_path / "a.rec"), recorded(tmp_path / "b.rec", linear=doubled)
    found = bisect(a, b, 1, "1")
    assert "in the first, aten" in found.text


def test_an_operator_that_computes_wrongly_is_named(tmp_path: Path) -> None:
    a, b = recorded(tmp_path / "a.rec"), recorded(tmp_path / "b.rec")
    frame = b.operators[(1, "1")]
    at = [told["name"] for told in frame.head["operators"]].index("aten.gelu.default")
    place = str(frame.head["operators"][at]["out"]["<tensor>"])
    frame.arrays[place] = frame.arrays[place] * (1 + 1e-4)  # type: ignore[index]
    found = bisect(a, b, 1, "1")
    assert found.operator == "aten.gelu.default"
    assert f"operator {at} is off by 0.0001 of its size in the second" in found.text


def test_what_was_not_recorded_is_asked_for(tmp_path: Path) -> None:
    a = recorded(tmp_path / "a.rec")
    found = bisect(a, a, 0, "2")
    assert "record both with --tensors '2' --steps 0" in found.text


def test_the_program_is_as_without_it(tmp_path: Path) -> None:
    traced = recorded(tmp_path / "a.rec").losses.tolist()
    path = tmp_path / "b.rec"
    recorder = Recorder(Part(out=str(path)))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), Inner(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).sum().backward()
        optimizer.step()
    recorder.close()
    assert read(path).losses.tolist() == pytest.approx(traced, rel=0, abs=0)
