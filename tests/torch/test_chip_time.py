"""Events and clocks of a played program read the chip's time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from offramp.chips import load
from offramp.costs import Costs, Operation, training
from offramp.launch.player import Part

PROGRAM = """
import json, time, torch
x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
torch.cuda.synchronize()
begin.record()
for _ in range(10):
    y = x @ x
end.record()
before = time.perf_counter()
torch.cuda.synchronize()
took = time.perf_counter() - before
time.sleep(1000)
slept = time.monotonic_ns() - 0
time.sleep(1000)
print(json.dumps([begin.elapsed_time(end) / 1e3, took, (time.monotonic_ns() - slept) / 1e9]))
"""
PRODUCT = {
    "op": "aten::mm",
    "in": [["bfloat16", [8192, 8192], [8192, 1]]] * 2,
    "out": [["bfloat16", [8192, 8192], [8192, 1]]],
    "values": {},
}


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Seconds: between the events, of the wait, of a sleep."""
    tape = tmp_path_factory.mktemp("tape") / "0.tape"
    part = Part(0, 1, str(tape), leads_time=True)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **part.env(), "OFFRAMP_CHIP": "nvidia-h100"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        cwd=Path(__file__).parent,
    )
    found: list[float] = json.loads(done.stdout)
    return found


def test_events_are_apart_by_what_the_chip_takes_between_them(read: list[float]) -> None:
    costs = Costs(load("nvidia-h100"), factors=training.factors())
    product = costs.of(Operation.parse(json.dumps(PRODUCT))).seconds
    first = costs.host.operator.value  # the stream was idle until the first launch
    assert read[0] == pytest.approx(first + 10 * product, rel=1e-9)


def test_a_wait_takes_what_the_host_is_ahead_of(read: list[float]) -> None:
    ahead = 10 * Costs(load("nvidia-h100"), factors=training.factors()).host.operator.value
    assert read[1] == pytest.approx(read[0] - ahead, abs=5e-6)  # looks at the clock take 1 us


def test_a_sleep_moves_the_clock_on_and_not_the_machine(read: list[float]) -> None:
    assert read[2] == pytest.approx(1000, abs=1e-3)
