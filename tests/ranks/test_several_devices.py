"""Several chips in one process: DataParallel and the functions below it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conftest import same

ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def test_data_parallel_is_one_device(play: Callable[..., list[Any]]) -> None:
    results = play("several_devices:data_parallel", 1, count=4)[0]
    same(results["four"], results["one"], **ROUNDING)
    assert results["devices"] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]


def test_copies(play: Callable[..., list[Any]]) -> None:
    results = play("several_devices:copies", 1, count=4)[0]
    same(results["found"], results["expected"])
