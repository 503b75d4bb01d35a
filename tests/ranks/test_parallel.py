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
def expected(name: str, rows: int, balance: str | None, documents: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    return parallel.plain_step(name, rows, balance, documents)


def check(spec: str, results: list[Any]) -> None:
    name, layout, more = parallel.read(spec)
    # bf16 has 8 bits, and gradients of it differ most where they are small beside their largest.
    short = more.get("precision") == "bf16"
    tolerance, loss_tolerance = (1e-1, 5e-3) if short else (1e-5, 1e-5)
    rows = layout.dp * int(more.get("micro", 2)) * parallel.MICRO
    want = expected(name, rows, more.get("balance"), more.get("documents", "many"))
    found: dict[str, torch.Tensor] = {}
    for result in (result[spec] for result in results):
        assert not isinstance(result, str), result
        for what in ("loss", "evaluated"):
            torch.testing.assert_close(result[what], want["loss"], rtol=loss_tolerance, atol=0)
        if more.get("balance") != "bias":  # the bias has moved
            torch.testing.assert_close(result["later"], want["later"], rtol=loss_tolerance, atol=0)
        found |= result["grads"]
    assert found.keys() == want["grads"].keys(), found.keys() ^ want["grads"].keys()
    off = {
        key: float((found[key] - grad).abs().max() / grad.abs().max())
        for key, grad in want["grads"].items()
    }
    if short and "experts" in "".join(off):
        return  # tokens near the edge between two experts go to the other one
    wrong = {key: value for key, value in off.items() if not value <= tolerance}
    assert not wrong, wrong
    if "balance" in more:
        check_balance(spec, results, want)
    for result in results:
        norm = result[spec]["norm"]
        torch.testing.assert_close(norm, want["norm"], rtol=tolerance, atol=0)


def check_balance(spec: str, results: list[Any], want: dict[str, Any]) -> None:
    """Counts are over all ranks of a stage, the loss is each rank's own part."""
    layout = parallel.read(spec)[1]
    stages = [result[spec] for result in results[:: layout.world // layout.pp]]
    counts = torch.cat([stage["counts"] for stage in stages])
    assert sorted(counts.tolist()) == sorted(count.tolist() for count in want["counts"])
    if "bias" in spec:
        for bias, count in zip(stages[0]["biases"], want["counts"], strict=True):
            mean = count.float().mean()
            torch.testing.assert_close(bias, parallel.RATE * (mean - count).sign())
        return
    parts = torch.stack([result[spec]["auxiliary"] for result in results])
    torch.testing.assert_close(parts.sum(), want["auxiliary"].detach(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("spec", parallel.SPECS)
def test_processors(spec: str, play: Play) -> None:
    check(spec, play("parallel:every", parallel.read(spec)[1].world, chip=None))


@pytest.mark.parametrize("spec", parallel.ON_CHIPS)
def test_virtual_chips(spec: str, play: Play) -> None:
    check(spec, play("parallel:on_chips", parallel.read(spec)[1].world))


@pytest.mark.programs
@pytest.mark.parametrize("spec", parallel.EIGHT)
def test_eight_processes(spec: str, play: Play) -> None:
    check(spec, play("parallel:eight", 8, chip=None))
