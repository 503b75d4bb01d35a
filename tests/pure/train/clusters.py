"""A Slurm of two small programs, for scripts that are to run without a cluster."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

# What srun does here: one task a node, all on this machine; USR1 goes to each task's first process,
# or to every process that it has started, as where a site's Slurm signals whole steps.
SRUN = """\
import os, signal, subprocess, sys
first = next(i for i, word in enumerate(sys.argv) if word == "torchrun")
nodes = range(int(os.environ["SLURM_NNODES"]))
tasks = [subprocess.Popen(sys.argv[first:], start_new_session=True) for _ in nodes]
send = os.killpg if os.environ["WHOLE_STEP"] == "1" else os.kill
signal.signal(signal.SIGUSR1, lambda *_: [send(task.pid, signal.SIGUSR1) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """\
import os, sys
if sys.argv[1:3] == ["show", "hostnames"]:
    print("localhost\\nlocalhost")
else:
    with open(os.environ["REQUEUED"], "a") as file:
        print(*sys.argv[1:], file=file)
"""


class Slurm:
    """Runs batch scripts in `folder`, with srun and scontrol replaced."""

    def __init__(self, folder: Path, nodes: int, *, whole_step: bool = False) -> None:
        self.folder, self.requeued = folder, folder / "requeued"
        self._bin = folder / "bin"
        self._bin.mkdir()
        self.program("srun", SRUN)
        self.program("scontrol", SCONTROL)
        self.job_id = free_port() - 20000
        self.env = {
            **os.environ,
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "WHOLE_STEP": str(int(whole_step)),
            "REQUEUED": str(self.requeued),
            "SLURM_JOB_ID": str(self.job_id),
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_NNODES": str(nodes),
            "SLURM_SUBMIT_DIR": str(folder),
            "OFFRAMP_CHIP": "must-not-reach-the-processes",
            "OMP_NUM_THREADS": "1",
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        }

    def program(self, name: str, text: str) -> None:
        """Put a Python program of that name first on the path."""
        path = self._bin / name
        path.write_text(f"#!{sys.executable}\n{text}")
        path.chmod(0o755)

    def torchrun(self) -> None:
        """Put PyTorch's own torchrun on the path."""
        self.program("torchrun", "from torch.distributed.run import main\nmain()\n")

    def start(self) -> subprocess.Popen[str]:
        """Start train.sbatch as Slurm does, in the folder it was submitted from."""
        return subprocess.Popen(
            ["bash", "train.sbatch"],
            cwd=self.folder,
            env=self.env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def requeues(self) -> list[str]:
        """What the script asked of scontrol."""
        return self.requeued.read_text().splitlines() if self.requeued.exists() else []


def free_port() -> int:
    """A port that the script will choose for some job's number."""
    for port in range(23000 + os.getpid() % 9000, 40000):
        with socket.socket() as one:
            try:
                one.bind(("localhost", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def wait_for(done: Callable[[], bool], process: subprocess.Popen[str], limit_s: float = 90) -> None:
    """Wait until `done()` holds while the process runs."""
    end_s = time.monotonic() + limit_s
    while not done():
        assert process.poll() is None, process.communicate()[0]
        if time.monotonic() > end_s:
            process.send_signal(signal.SIGKILL)
            raise AssertionError("it took too long")
        time.sleep(0.05)
