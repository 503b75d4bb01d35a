"""Refusals say what NCCL says; a rank that never comes is named as the likely cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_refusals(play: Callable[..., list[Any]]) -> None:
    said = play("refusals:every")[0]
    assert said["bitwise"] == "ValueError: Cannot use ReduceOp.BAND with NCCL"
    assert said["short"].startswith("TypeError: Input tensor data type is not supported for NCCL")
    assert "Cannot use ReduceOp.AVG with boolean inputs" in said["boolean average"]
    assert "Tensors must be contiguous" in said["strided"]
    assert "No backend type associated with device type cpu" in said["host"]
    assert said["sizes"].startswith("ValueError: output tensor size must be equal")


def test_a_missing_rank(play: Callable[..., list[Any]]) -> None:
    said = play("refusals:every")[0]
    assert said["late"].startswith("DistBackendError: nccl allreduce on rank 0 of 2 in group")
    assert "zhenwu-810e" in said["late"]
    assert "timed out" in said["late"]
    assert "every rank of a group must make the same calls" in said["late"]
    assert "DistBackendError" in said["late future"]
