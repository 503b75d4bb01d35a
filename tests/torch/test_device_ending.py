"""A program may end right after its last backward pass."""

from __future__ import annotations

import own_name_process
import pytest


@pytest.mark.parametrize(("chip", "device"), [("zhenwu-810e:2", "cuda:1"), ("ascend-910b", "npu")])
def test_processes_that_end_at_once_end_well(chip: str, device: str) -> None:
    """Without the wait, one in two to five of them aborted on a busy machine."""
    started = [own_name_process.start("ending", device, chip=chip) for _ in range(4)]
    assert [own_name_process.last_line(process) for process in started] == ["done"] * 4
