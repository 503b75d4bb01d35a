"""The process of `offramp.launch.warm`: it has imported what `offramp train` needs, and forks.

It opens no chip and computes nothing, so that it has one thread and forking it is safe. Each fork
takes its own environment, meets its chip as at `import torch`, and runs `offramp` as if it had been
started.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import socket
import sys
from collections.abc import Sequence
from typing import Any

from offramp.launch.autoload import autoload
from offramp.launch.process import die_with
from offramp.launch.warm import LINE, POLL_S

# What every played rank of `offramp train` imports.
IMPORTED = (
    "torch._meta_registrations",
    "torch.distributed.pipelining",
    "torch.distributed.tensor.parallel",
    "transformers.models.auto.modeling_auto",
    "transformers.integrations",
    "transformers.modeling_utils",
    "offramp.launch.player",
    "offramp.cli.train",
    "offramp.train.run",
)


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """Fork for every order; in a fork, its order. None in the process itself, at the end."""
    heard, alive = b"", set[int]()
    while True:
        for pid in list(alive):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                alive.remove(pid)
                _tell(connection, pid=pid, status=os.waitstatus_to_exitcode(status))
        readable, _, _ = select.select([connection], [], [], POLL_S)
        if not readable:
            continue
        told = connection.recv(1 << 16)
        if not told:
            return None
        *orders, heard = (heard + told).split(LINE)
        for order in orders:
            parent = os.getpid()
            ready, done = os.pipe()
            pid = os.fork()
            if pid == 0:
                die_with(parent)
                os.setsid()
                os.close(ready)
                os.close(done)
                return dict(json.loads(order))
            os.close(done)
            os.read(ready, 1)  # ends when the fork has a session, by which it can be ended
            os.close(ready)
            alive.add(pid)
            _tell(connection, pid=pid)


def _tell(connection: socket.socket, **message: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(json.dumps(message).encode() + LINE)


def _become(order: dict[str, Any]) -> None:
    """Take on the files, environment and arguments of an order."""
    said = os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(said, stream.fileno())
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = list(order["argv"])


def main(words: Sequence[str]) -> None:
    """Serve the parent at the socket of this number; in a fork, run its command."""
    fd, parent = (int(word) for word in words)
    die_with(parent)
    connection = socket.socket(fileno=fd)
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # forks look for garbage in what is their own, and share the pages of the rest
    order = _serve(connection)
    if order is None:
        return
    connection.close()
    _become(order)
    autoload()
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
