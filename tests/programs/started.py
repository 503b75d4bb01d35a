"""`offramp rehearse` as a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.Popen(
        [sys.executable, "-m", "offramp", "rehearse", *arguments],
        cwd=cwd,
        env={**os.environ, "PATH": path, "TMPDIR": str(cwd), "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As in a terminal: where this runs in the background, interrupts may be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def rehearse(*arguments: str, cwd: Path, status: int = 0) -> tuple[str, str]:
    """What is said on standard output and on standard error."""
    child = start(*arguments, cwd=cwd)
    said = child.communicate()
    assert child.returncode == status, said
    return said
