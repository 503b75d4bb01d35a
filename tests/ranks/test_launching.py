"""Programs of several processes, started as users start them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import CHIP, HERE, environment

LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"],
    "accelerate": [
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes=2"),
        *("--main_process_port=0", "--mixed_precision=no", "--dynamo_backend=no"),
        "--num_machines=1",
    ],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers(launcher: str) -> None:
    command = [sys.executable, "-m", *LAUNCHERS[launcher], str(HERE / "programs" / "launched.py")]
    done = subprocess.run(
        command, env=environment(f"{CHIP}:2"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "nccl [3.0, 3.0, 3.0] [[3.0, 3.0, 3.0]] PPU-ZW810E" in done.stdout
