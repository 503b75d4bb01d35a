"""What the test groups share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

# The tests' chip multiplies float32 on tensor cells unless its variable says otherwise. Comparisons
# with the CPU are of everything else; tests/torch/test_arithmetic_*.py are of the arithmetic.
os.environ.setdefault("PPU_FP32_TENSOR_OVERRIDE", "0")


@pytest.fixture(scope="session")
def opened_chip() -> Iterator[Any]:
    """Two virtual chips in this process; CUDA's names lead to them until the session ends.

    PyTorch keeps a device for the life of a process: tests of another chip start a process.
    """
    import offramp

    with offramp.use("zhenwu-810e:2") as session:
        yield session.device


@pytest.fixture(scope="session")
def chip(opened_chip: Any) -> Any:
    """The chips of this process; tests of chips by name have a parameter of this name instead."""
    return opened_chip


@pytest.fixture
def arith(chip: Any) -> Iterator[Any]:
    """Sets the chip's arithmetic by hand, by texts KEY=VALUE, until the end of the test."""
    from offramp.chips.arithmetic import resolve

    yield lambda *texts: chip.set_arithmetic(resolve((), texts))
    chip.set_arithmetic(resolve((), ()))
