"""Every layout's step equals plain PyTorch's in one process: loss, gradients and their norm."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "programs"))

import parallel

Play = Callable[..., list[Any]]


@cache
def expected(name: str, rows: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    return parallel.plain_step(name, rows)


def check(spec: str, results: list[Any], tolerance: float = 1e-5) -> None:
    name, layout, more = parallel.read(spec)
    want = expected(name, layout.dp * int(more.get("micro", 2)) * parallel.MICRO)
    found: dict[str, torch.Tensor] = {}
    for result in (result[spec] for result in results):
        assert not isinstance(result, str), result
        for what in ("loss", "evaluated"):
            torch.testing.assert_close(result[what], want["loss"], rtol=tolerance, atol=0)
        found |= result["grads"]
    assert found.keys() == want["grads"].keys(), found.keys() ^ want["grads"].keys()
    off = {
        key: float((found[key] - grad).abs().max() / grad.abs().max())
        for key, grad in want["grads"].items()
    }
    wrong = {key: value for key, value in off.items() if not value <= tolerance}
    assert not wrong, wrong
    for result in results:
        norm = result[spec]["norm"]
        torch.testing.assert_close(norm, want["norm"], rtol=tolerance, atol=0)


@pytest.mark.parametrize("spec", parallel.SPECS)
def test_processors(spec: str, play: Play) -> None:
    check(spec, play("parallel:every", parallel.read(spec)[1].world, chip=None))


@pytest.mark.parametrize("spec", parallel.ON_CHIPS)
def test_virtual_chips(spec: str, play: Play) -> None:
    check(spec, play("parallel:on_chips", parallel.read(spec)[1].world))
