"""What `accelerate launch` would start on each rank: its own code is asked, in its own Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from offramp.errors import UsageError
from offramp.launch.command import AUTOLOAD, interpreter_of, prepare

_MODULES = {"accelerate.commands.launch": 0, "accelerate.commands.accelerate_cli": 1}
_TIMEOUT_S = 120


def words_of(name: str, module: str, words: Sequence[str]) -> tuple[str, ...] | None:
    """What follows `accelerate launch` in a command; None where it runs something else.

    name    the program, without its folder
    module  the one that `python -m` runs, if it is that
    words   the arguments of either

    Raises UsageError for another command of accelerate.
    """
    if name == "accelerate-launch":
        return tuple(words)
    if name != "accelerate" and module not in _MODULES:
        return None
    if not _MODULES.get(module, 1):
        return tuple(words)
    if not words or words[0] != "launch":
        said = " ".join(["accelerate", *words[:1]])
        raise UsageError(f"{said} trains nothing; expected: accelerate launch TRAIN.PY")
    return tuple(words[1:])


@cache
def read(python: tuple[str, ...], words: tuple[str, ...]) -> Mapping[str, Any]:
    """The own command, variables, nodes and processes a node, as in `catcher`.

    python  the command's own program, or the Python that runs accelerate's module
    words   what follows `accelerate launch`

    Raises UsageError with accelerate's own last words.
    """
    prepared = prepare(python, {**os.environ, AUTOLOAD: "1"})
    own = interpreter_of(prepared.command[0]) or prepared.command[0]
    if not os.path.basename(own).startswith("python"):
        own = sys.executable
    try:
        done = subprocess.run(
            [own, *prepared.command[1:], "-P", "-m", "offramp.launch.catcher", *words],
            env={**prepared.env, AUTOLOAD: "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(f"accelerate launch could not be read: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1].split("error: ")[-1]
        raise UsageError(f"accelerate launch {' '.join(words)}: {last}")
    found: Mapping[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
