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


def test_stages_that_are_known_beforehand_give_what_found_ones_give() -> None:
    """Byte by byte; a rank that no message leads to is played and then left out."""
    layout = ("layout.pp=2", "layout.dp_shard=2", "layout.micro_batch=2")
    words = [*TRAIN, *(word for key in layout for word in ("--set", key))]
    chip = {"chip": "nvidia-h100", "nodes": 1, "per_node": 4}
    found = rehearse.execute(rehearse.plan(words, **chip))
    known = rehearse.execute(rehearse.plan(words, **chip, partners=(0, 1, 2)))
    assert [rank["rank"] for rank in found.summary["ranks"]] == [0, 2]
    assert to_json(known.summary) == to_json(found.summary)
