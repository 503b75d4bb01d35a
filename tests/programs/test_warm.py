"""Ranks that are played by forks of one process: as processes of their own would play them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from offramp.launch import rehearse
from offramp.launch.command import Prepared
from offramp.launch.warm import Warm
from offramp.tape.summary import to_json

pytestmark = [pytest.mark.programs, pytest.mark.timeout(120)]
TRAIN = (
    *("offramp", "train", "--preset", "qwen3-nano", "--batch", "8", "--sequence", "64"),
    *("--set", "layout.micro_batch=8", "--set", "sample.prompts=[]"),
)


@pytest.fixture(autouse=True)
def own_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", path)


def test_a_fork_plays_as_a_process_of_its_own() -> None:
    plan = rehearse.plan(TRAIN, chip="nvidia-h100")
    with Warm() as warm:
        forked = [to_json(rehearse.execute(plan, warm=warm).summary) for _ in range(2)]
    assert forked == [to_json(rehearse.execute(plan).summary)] * 2


def test_the_status_and_the_words_of_a_fork_are_heard(tmp_path: Path) -> None:
    command = str(Path(sys.executable).parent / "offramp")
    with Warm() as warm:
        said = tmp_path / "said.txt"
        bad = Prepared((command, "train", "--preset", "nobody"), os.environ)
        assert warm.suits(bad)
        assert not warm.suits(Prepared((sys.executable, "-c", "pass"), {}))
        assert warm.start(bad, said).wait() == 2
        assert "unknown preset 'nobody'" in said.read_text()
        long = Prepared((command, "train", "--minutes", "5", "--out", str(tmp_path / "run")), {})
        child = warm.start(long, said)
        assert child.poll() is None
        os.killpg(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL


def test_forks_end_with_their_parent(tmp_path: Path) -> None:
    command = str(Path(sys.executable).parent / "offramp")
    out = tmp_path / "run"
    with Warm() as warm:
        child = warm.start(
            Prepared((command, "train", "--minutes", "5", "--out", str(out)), os.environ),
            tmp_path / "said.txt",
        )
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            os.kill(child.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("the fork lives on")
