"""Says what `accelerate launch` would start: `python -P -m offramp.launch.catcher WORDS`.

It runs in the Python that has accelerate, calls that command's own code, and stops it where it
would start processes. The last line that it writes is JSON:

own        what each process runs
variables  the environment variables that were set for it
nodes      machines; null where one process is started without a launcher
per_node   processes a machine; 0: as many as there are devices
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

_ALL = 1 << 20  # devices that torch is said to have: so many processes are as many as there are
_FOREIGN = ("deepspeed", "tpu", "tpu_pod", "sagemaker")


class Caught(BaseException):
    """What was about to start. Not an Exception: nobody on the way is to handle it."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        super().__init__()
        self.found = found


def catch(words: Sequence[str]) -> Mapping[str, Any]:
    """What `accelerate launch WORDS` would start. Raises whatever it raises itself."""
    import torch
    import torch.distributed.run as torchrun

    launch: Any = importlib.import_module("accelerate.commands.launch")
    given: Any = torch.get_device_module("cuda")
    given.is_available = given.is_bf16_supported = lambda *args, **kwargs: True
    given.device_count = lambda: _ALL
    before = dict(os.environ)

    def one(own: Sequence[str], env: Mapping[str, str], **others: Any) -> NoReturn:
        raise Caught({"own": list(own), "variables": _new(env, before)})

    def several(options: Any) -> NoReturn:
        own = [options.training_script, *options.training_script_args]
        if options.module:
            own = ["-m", *own]
        if not options.no_python:
            own = [sys.executable, "-u", *own]
        count, nodes = int(options.nproc_per_node), int(str(options.nnodes).split(":")[-1])
        counts = {"nodes": nodes, "per_node": 0 if count * nodes >= _ALL else count}
        raise Caught({"own": own, "variables": _new(os.environ, before), **counts})

    launch.subprocess = SimpleNamespace(Popen=one)
    torchrun.run = several
    for name in _FOREIGN:
        setattr(launch, f"{name}_launcher", _refusal(name))
    try:
        launch.launch_command(launch.launch_command_parser().parse_args(list(words)))
    except Caught as caught:
        return {"nodes": None, "per_node": None, **caught.found}
    raise RuntimeError("it starts nothing")


def _new(env: Mapping[str, str], before: Mapping[str, str]) -> dict[str, str]:
    """Variables that were set; but not which of a machine's devices are used."""
    told = {name: value for name, value in env.items() if before.get(name) != value}
    return {name: value for name, value in told.items() if name != "CUDA_VISIBLE_DEVICES"}


def _refusal(name: str) -> Any:
    def refuse(*args: Any) -> NoReturn:
        raise RuntimeError(f"it hands over to {name}, which starts processes of its own")

    return refuse


if __name__ == "__main__":
    sys.stdout.write(f"{json.dumps(catch(sys.argv[1:]))}\n")
