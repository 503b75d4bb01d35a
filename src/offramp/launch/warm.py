"""A process that forks for each rank of `offramp train` that is played; `forker` is its own side.

It has imported PyTorch and transformers, which takes longer than to play a small rank.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

from offramp.launch.command import Prepared
from offramp.launch.playing import Child, spawn

POLL_S = 0.01
LINE = b"\n"
_SERVER = "offramp.launch.forker"


class Forked:
    """A fork of the warm process, as far as whoever waits for it must know it."""

    def __init__(self, warm: Warm, pid: int) -> None:
        self._warm, self.pid = warm, pid

    def poll(self) -> int | None:
        """Its status, negative for a signal as subprocess has it; None while it runs."""
        self._warm.hear(0)
        return self._warm.statuses.get(self.pid)

    def wait(self) -> int:
        """Its status, once it has one."""
        while (status := self._warm.statuses.get(self.pid)) is None:
            self._warm.hear(POLL_S)
        return status


class Warm:
    """The warm process, as its parent has it. As a context, ended with all its forks."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        env = {name: value for name, value in os.environ.items() if name != "OFFRAMP_CHIP"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _SERVER, str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(),),
                env=env,
                stdin=subprocess.DEVNULL,
            )
        self._socket = ours
        self._pids: list[int] = []
        self._heard = b""
        self.statuses: dict[int, int] = {}

    def suits(self, prepared: Prepared) -> bool:
        """Whether a command is `offramp` of this very Python, which alone can be forked."""
        program = Path(prepared.command[0])
        return program.name == "offramp" and program.parent == Path(sys.executable).parent

    def start_or_spawn(self, prepared: Prepared, said: Path) -> Child:
        """Fork for a command where that can be, else start it; see `playing.spawn`."""
        return self.start(prepared, said) if self.suits(prepared) else spawn(prepared, said)

    def start(self, prepared: Prepared, said: Path) -> Forked:
        """Fork for a command; what it says is added to the file `said`."""
        order = {"argv": list(prepared.command), "env": dict(prepared.env), "said": str(said)}
        order["cwd"] = os.getcwd()
        self._socket.sendall(json.dumps(order).encode() + LINE)
        while not self._pids:
            self.hear(POLL_S)
        return Forked(self, self._pids.pop())

    def hear(self, patience_s: float) -> None:
        """Take in what the process tells: pids of forks, and how they ended."""
        readable, _, _ = select.select([self._socket], [], [], patience_s)
        if not readable:
            return
        told = self._socket.recv(1 << 16)
        if not told:
            raise ChildProcessError(f"{sys.executable} -m {_SERVER} ended by itself")
        *lines, self._heard = (self._heard + told).split(LINE)
        for line in lines:
            message = json.loads(line)
            if "status" in message:
                self.statuses[message["pid"]] = message["status"]
            else:
                self._pids.append(message["pid"])

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()
