"""What a run notices of itself."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import numpy as np
import pytest

from offramp.train.watch import STALLED, DivergedError, LossScale, LossWatch


def test_a_jump_is_told_and_scatter_is_not() -> None:
    random = np.random.default_rng(0)
    watch = LossWatch(limit=6.0, bad_steps=3)
    for step, noise in enumerate(random.normal(0, 0.05, 2000)):
        assert watch.see(step, 3.0 + noise, 1.0) is None
    said = watch.see(2000, 4.0, 1.0)
    assert said is not None
    assert re.match(r"step 2000: loss 4\.0000 jumped from a mean of (2\.9|3\.0)", said)


def test_the_mean_and_deviation_are_those_of_the_losses() -> None:
    random = np.random.default_rng(1)
    watch = LossWatch(limit=5.0, bad_steps=3)
    for loss in random.normal(2.0, 0.3, 5000):
        watch.see(0, float(loss), 1.0)
    assert watch.mean == pytest.approx(2.0, abs=0.15)
    assert math.sqrt(watch.variance) == pytest.approx(0.3, rel=0.35)


def test_steps_without_finite_gradients_end_a_run() -> None:
    watch = LossWatch(limit=5.0, bad_steps=2)
    assert "was left out" in (watch.see(1, math.nan, 1.0) or "")
    assert watch.see(2, 1.0, 1.0) is None
    watch.see(3, 1.0, math.inf)
    with pytest.raises(DivergedError, match=r"2 steps in a row.*Lower optimizer\.lr"):
        watch.see(4, math.nan, math.nan)


def test_a_resumed_watch_goes_on_alike() -> None:
    one, two = LossWatch(5.0, 3), LossWatch(5.0, 3)
    for step in range(100):
        one.see(step, 2.0 + 0.01 * (step % 7), 1.0)
    two.resume(one.state())
    assert one.see(100, 2.9, 1.0) == two.see(100, 2.9, 1.0)
    assert one.state() == two.state()


def test_the_loss_scale_halves_at_overflow_and_doubles_in_time() -> None:
    scale = LossScale.for_precision("fp16")
    first = scale.value
    scale.update(False)
    assert scale.value == first / 2
    for _ in range(scale.patience):
        scale.update(True)
    assert scale.value == first
    plain = LossScale.for_precision("bf16")
    plain.update(False)
    assert plain.value == 1.0


def test_a_stall_ends_the_process_with_its_own_status() -> None:
    program = (
        "import time\n"
        "from offramp.train.watch import StallWatch\n"
        "watch = StallWatch(0.3, 5)\n"
        "for _ in range(6): time.sleep(0.1); watch.beat()\n"
        "print('steps', flush=True)\n"
        "time.sleep(30)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == STALLED
    assert done.stdout == "steps\n"
    assert "process 5: no step finished" in done.stderr
    assert "time.sleep" in done.stderr or "line 6" in done.stderr
