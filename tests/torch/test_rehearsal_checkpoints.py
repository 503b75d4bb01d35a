"""A rehearsal writes no checkpoints, leaves those that are there, and loads what it saved."""

import json
import os
import subprocess
import sys
from pathlib import Path

from rehearsed import PROGRAMS, perform

from offramp.launch.player import Part


def test_checkpoints_stay_in_memory(tmp_path: Path) -> None:
    (tmp_path / "real.pt").write_text("of a real run")
    done = perform("saves", tmp_path, "nvidia-h100", Part(0, 1, str(tmp_path / "a.tape"), steps=0))
    said = done.said
    assert said["files"] == ["data.pt", "real.pt"]
    assert said["real"] == "of a real run"
    assert (said["step"], said["device"], said["whole"]) == (2, "cuda", "Linear")
    assert said["tokens"] == [0, 1, 2, 3]
    assert said["held"] == 0  # a checkpoint that is kept holds none of the chip's memory
    assert done.note is not None
    assert done.note["declared"]["checkpoints that were not written"] == 3 * 6


def test_a_run_with_values_writes_them(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, PROGRAMS / "saves.py", tmp_path / "none.tape"],
        env={**os.environ, "OFFRAMP_CHIP": "nvidia-h100"},
        capture_output=True,
        text=True,
        check=True,
    )
    files = json.loads(done.stdout.splitlines()[-1])["files"]
    assert {"last.pt", "model.safetensors", "real.pt", "sharded", "whole.pt"} <= set(files)
