"""Every collective on virtual chips gives what the same program gives over Gloo on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import same

sys.path.insert(0, str(Path(__file__).parent / "programs"))

import collectives

NAMES = [name for name, _ in collectives.cases(2)]


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks(name: str, play: Callable[..., list[Any]]) -> None:
    found = [results[name] for results in play("collectives:every")]
    expected = [results[name] for results in play("collectives:every", chip=None)]
    same(found, expected, name)


@pytest.mark.parametrize("name", NAMES)
def test_three_ranks(name: str, play: Callable[..., list[Any]]) -> None:
    found = [results[name] for results in play("collectives:every", 3)]
    expected = [results[name] for results in play("collectives:every", 3, chip=None)]
    rounding = {"rtol": 2e-2, "atol": 0} if name.startswith("average") else {}
    same(found, expected, name, **rounding)
