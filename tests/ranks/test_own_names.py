"""Groups of chips that are called otherwise than `cuda`, under either name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import same

ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
SPELLINGS = [
    {"chip": "ascend-910b", "backend": "nccl", "device": "cuda"},
    {"chip": "ascend-910b", "backend": "hccl", "device": "npu"},
]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling["device"])
@pytest.mark.parametrize("program", ["data_parallel", "sharded"])
def test_training(program: str, spelling: dict[str, str], play: Callable[..., list[Any]]) -> None:
    found = play(f"training:{program}", **spelling)
    same(found, play(f"training:{program}", chip=None), program, **ROUNDING)
