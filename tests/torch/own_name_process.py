"""Programs in processes of their own: PyTorch keeps one device for the life of a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent / "own_name"


def start(
    program: str, *arguments: str, chip: str | None, memory: str = "1GiB"
) -> subprocess.Popen[str]:
    """Start `own_name/<program>.py` on `chip`, or without offramp."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OFFRAMP_CHIP")}
    kept |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    if chip is not None:
        kept |= {"OFFRAMP_CHIP": chip, "OFFRAMP_MEMORY": memory}
    return subprocess.Popen(
        [sys.executable, str(HERE / f"{program}.py"), *arguments],
        env=kept,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_line(process: subprocess.Popen[str]) -> str:
    """What the process printed last; fails with its errors when it failed."""
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err[-4000:]
    return out.strip().splitlines()[-1]
