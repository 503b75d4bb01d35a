"""Finds out, before anything starts, what a command will run, and whether it can meet the chip.

Only a Python that has offramp and torch meets the chip. The rule for `python`, `torchrun` and
everything else that is looked up on PATH: when the Python found there lacks either, PATH is led
by the folder of offramp's own interpreter, as if its environment had been activated; but another
environment that the user did activate is never replaced silently, it is refused.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from offramp.errors import UsageError, nearest

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
PROBE_TIMEOUT_S = 20
_PYTHON = re.compile(r"python(\d+(\.\d+)?)?")
_ASK = (
    "from importlib.util import find_spec\n"
    "print(*(name for name in ('offramp', 'torch') if not find_spec(name)), sep=' and ')"
)
_LAUNCHERS = {"torchrun", "accelerate", "deepspeed"}
_LAUNCHER_MODULES = {"torch.distributed.run", "torch.distributed.launch", "accelerate.commands"}
# Python's short options: flags may stand together, the last of them may take a value.
_OPTION = re.compile(r"-[bBdEhiIOPqRsSuvVx?]*([cmWX])(.*)", re.DOTALL)


@dataclass(frozen=True)
class Prepared:
    """A command that can be started, its environment, and what the user should know of it."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    note: str | None = None


def prepare(command: Sequence[str], env: Mapping[str, str]) -> Prepared:
    """Check `command` and settle which Python it uses.

    Raises UsageError: nothing to run, not found, not executable, a script that does not exist, a
    Python without offramp, autoloading of backends switched off.
    """
    if not command:
        raise UsageError("no command given; expected: offramp run --chip NAME -- COMMAND...")
    if env.get(AUTOLOAD, "1") != "1":
        raise UsageError(f"{AUTOLOAD}={env[AUTOLOAD]} keeps torch from meeting the chip; unset it")
    env, note = _with_own_python(command[0], env)
    program = _find(command[0], env)
    _check_python(command[0], program, env)
    _check_script(command)
    return Prepared((program, *command[1:]), env, note)


def lacks(python: str, env: Mapping[str, str]) -> str:
    """What the interpreter `python` needs to meet a chip and has not; empty when it has all.

    Our own has all; any other is started and asked, which takes some hundredths of a second.
    """
    same_folder = os.path.dirname(python) == os.path.dirname(sys.executable)
    if same_folder and os.path.realpath(python) == os.path.realpath(sys.executable):
        return ""
    try:
        done = subprocess.run(
            [python, "-c", _ASK],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "offramp"
    return done.stdout.strip()


def _with_own_python(name: str, env: Mapping[str, str]) -> tuple[Mapping[str, str], str | None]:
    """`env` whose PATH leads to a Python with offramp, and a note where that changed it."""
    if os.sep in name:
        return env, None
    path = env.get("PATH", os.defpath)
    own = os.path.dirname(sys.executable)
    led = {**env, "PATH": f"{own}{os.pathsep}{path}"}
    wanted = (name,) if _PYTHON.fullmatch(name) else ("python", "python3")
    found = next(filter(None, (shutil.which(python, path=path) for python in wanted)), None)
    lack = lacks(found, env) if found is not None else "python"
    if not lack:
        # A tool of our environment, such as torchrun, where only its Python is on PATH.
        return (env if shutil.which(name, path=path) else led), None
    active = _active_environment(found, env)
    if active:
        if not _PYTHON.fullmatch(name):
            return env, None  # the command may have nothing to do with this Python
        raise UsageError(_cannot_meet(str(found), lack, f"the active environment {active}"))
    if found is None and not _PYTHON.fullmatch(name):
        return led, None
    there = f"{found} has no {lack}" if found else "there is none on PATH"
    return led, f"python is {own}/python ({there})"


def _active_environment(python: str | None, env: Mapping[str, str]) -> str | None:
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        folder = env.get(variable)
        if folder and python and Path(folder) in Path(python).parents:
            return folder
    return None


def _cannot_meet(python: str, lack: str, owner: str) -> str:
    return f"{owner} has no {lack}; install it there: {python} -m pip install offramp"


def _find(name: str, env: Mapping[str, str]) -> str:
    path = env.get("PATH", os.defpath)
    found = shutil.which(name, path=path)
    if found is not None:
        return found
    if os.path.isdir(name):
        raise UsageError(f"cannot run {name!r}: it is a folder")
    if os.path.isfile(name):
        way_out = f"give: python {name}" if name.endswith(".py") else f"chmod +x {name}"
        raise UsageError(f"cannot run {name!r}: it is not an executable on PATH; {way_out}")
    near = nearest(name, _own_programs()) if os.sep not in name else ""
    raise UsageError(f"command not found: {name!r}{near}")


def _own_programs() -> set[str]:
    """What a training command usually is: Python and the tools installed next to it."""
    return {*os.listdir(os.path.dirname(sys.executable)), "python", *_LAUNCHERS}


def _check_python(name: str, program: str, env: Mapping[str, str]) -> None:
    """Refuse a Python, or a script of one such as torchrun, that cannot meet the chip."""
    python = program if _PYTHON.fullmatch(os.path.basename(program)) else interpreter_of(program)
    if python is None or not os.path.isfile(python):
        return
    lack = lacks(python, env)
    if lack:
        raise UsageError(f"cannot run {name!r}: {_cannot_meet(python, lack, python)}")


def interpreter_of(program: str) -> str | None:
    """The Python that the script at this path names in its first line, if it does."""
    try:
        with open(program, "rb") as file:
            first = file.read(256).split(b"\n")[0]
    except OSError:
        return None
    words = first[2:].decode(errors="replace").split() if first.startswith(b"#!") else []
    if words and _PYTHON.fullmatch(os.path.basename(words[0])):
        return words[0]
    return None


def _check_script(command: Sequence[str]) -> None:
    script = script_of(command)
    if script is None or script == "-" or os.path.exists(script):
        return
    folder = os.path.dirname(script) or "."
    near = ""
    if os.path.isdir(folder):
        base = os.path.basename(script)
        near = nearest(base, [name for name in os.listdir(folder) if name.endswith(".py")])
    raise UsageError(f"script not found: {script!r}{near}")


def script_of(command: Sequence[str]) -> str | None:
    """The Python script that `command` runs; None where it runs none, or none can be told."""
    name = os.path.basename(command[0])
    rest = list(command[1:])
    if name in _LAUNCHERS:
        return _launched_script(rest)
    if not _PYTHON.fullmatch(name):
        return None
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return rest[0] if rest else None
        if argument == "-" or not argument.startswith("-"):
            return argument
        option = _OPTION.fullmatch(argument)
        value = option[2] if option else ""
        if (option and not value) or argument == "--check-hash-based-pycs":
            value = rest.pop(0) if rest else ""
        if option and option[1] in "cm":
            return _launched_script(rest) if option[1] == "m" and _launches(value) else None
    return None


def _launches(module: str) -> bool:
    return module in _LAUNCHER_MODULES or module.startswith("accelerate.commands.")


def _launched_script(arguments: Sequence[str]) -> str | None:
    """The first argument named like a script, unless the launcher is to start something else."""
    for argument in arguments:
        if argument in {"-m", "--module", "--no-python", "--no_python"}:
            return None
        if argument.endswith(".py") and not argument.startswith("-"):
            return argument
    return None
