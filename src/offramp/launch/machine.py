"""What this machine offers to offramp, and what to mend: the data behind `offramp doctor`.

Nothing here imports torch: its version is read from its files, and real accelerators are asked for
in a process of its own, so that a broken driver can neither hang nor end the doctor.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from offramp.cache import cache_dir
from offramp.chips.detect import Probes, identify
from offramp.chips.host import host_memory_bytes
from offramp.launch.command import AUTOLOAD

PROBE_TIMEOUT_S = 60.0
COMPILER_TIMEOUT_S = 20.0
SMALL_SHARED_MEMORY_BYTES = 256 * 2**20
COMPILERS = ("c++", "g++", "clang++")
ENTRY_POINTS = "torch.backends"
_MARK = "offramp-doctor:"
_ASK_TORCH = """
import json, torch
kind = torch.accelerator.current_accelerator(check_available=True)
found = []
for index in range(torch.accelerator.device_count() if kind else 0):
    facts = torch.get_device_module(kind).get_device_properties(index)
    found.append((f"{kind.type}:{index}", str(facts.name), getattr(facts, "total_memory", 0)))
print(MARK + json.dumps(found))
"""
_CPP20 = "#include <span>\n#include <version>\nint f(std::span<int> s) { return s[0]; }\n"
# Package managers by their program, with what installs a C++ compiler.
_INSTALLERS = {
    "apt-get": "apt-get install g++",
    "dnf": "dnf install gcc-c++",
    "yum": "yum install gcc-c++",
    "apk": "apk add g++",
    "pacman": "pacman -S gcc",
    "zypper": "zypper install gcc-c++",
}


@dataclass(frozen=True)
class Finding:
    """Something that keeps offramp from working, and the command or step that mends it."""

    what: str
    fix: str


@dataclass(frozen=True)
class Torch:
    """The installed torch, read from its files; `cuda`, `hip`, `xpu` are what it was built for."""

    version: str
    folder: str
    built_for: Mapping[str, str]


@dataclass(frozen=True)
class Compiler:
    """The C++ compiler that the native core would be built with."""

    command: str
    version: str
    cpp20: bool


@dataclass(frozen=True)
class Accelerator:
    """A real device that torch offers, and the chip of the catalogue that is behind it.

    `behind` is None where the signs do not leave exactly one of `candidates`; `why` tells them.
    """

    device: str
    name: str
    memory_bytes: int
    behind: str | None
    candidates: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Cache:
    """The folder of compiled cores."""

    folder: str
    writable: bool
    builds: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True)
class Machine:
    """Everything that `offramp doctor` reports. Sizes in bytes."""

    python: str
    python_version: str
    system: str
    torch: Torch | None
    registered: bool
    other_backends: tuple[str, ...]
    autoload: bool
    compiler: Compiler | None
    ninja: str | None
    python_headers: bool
    cores: int
    memory_bytes: int
    shared_memory_bytes: int | None
    accelerators: tuple[Accelerator, ...]
    accelerator_note: str
    signs: str | None  # of a real chip that torch does not offer
    cache: Cache
    findings: tuple[Finding, ...] = field(default=())


def examine(env: Mapping[str, str] | None = None) -> Machine:
    """Look at this machine. Takes about 0.2 s, and seconds more where torch must be asked."""
    env = os.environ if env is None else env
    torch = find_torch()
    backends = {point.name: point.value for point in metadata.entry_points(group=ENTRY_POINTS)}
    others = tuple(sorted(set(backends) - {"offramp"}))
    accelerators, note = _accelerators(torch, others, env)
    machine = Machine(
        python=sys.executable,
        python_version=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        torch=torch,
        registered="offramp" in backends,
        other_backends=others,
        autoload=env.get(AUTOLOAD, "1") == "1",
        compiler=_compiler(env),
        ninja=_ninja(env),
        python_headers=Path(sysconfig.get_path("include"), "Python.h").exists(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=host_memory_bytes(),
        shared_memory_bytes=_size_of("/dev/shm"),
        accelerators=accelerators,
        accelerator_note=note,
        signs=None if accelerators else _signs(env),
        cache=_cache(env),
    )
    return Machine(**{**vars(machine), "findings": tuple(_findings(machine, env))})


def find_torch() -> Torch | None:
    """The torch that `import torch` would load, without loading it."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)))
    values: dict[str, str] = {}
    try:
        tree = ast.parse((folder / "version.py").read_text())
    except (OSError, SyntaxError):
        return Torch("unknown", str(folder), {})
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and value.value:
            values[target.id] = str(value.value)
    known = ("debug", "git_version", "__version__")
    built_for = {key: value for key, value in values.items() if key not in known}
    return Torch(values.get("__version__", "unknown"), str(folder), built_for)


def _accelerators(
    torch: Torch | None, backends: tuple[str, ...], env: Mapping[str, str]
) -> tuple[tuple[Accelerator, ...], str]:
    """The real devices, and how that is known."""
    if torch is None:
        return (), "torch is not installed"
    if not torch.built_for and not backends:
        return (), "this torch is a CPU build and no vendor's backend is installed"
    bare = {k: v for k, v in env.items() if not k.startswith("OFFRAMP_")}
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"MARK = {_MARK!r}\n{_ASK_TORCH}"],
            env=bare,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return (), f"torch did not answer within {PROBE_TIMEOUT_S:.0f} s"
    answers = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not answers:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        return (), f"torch failed when asked for devices: {last}"
    rows: list[tuple[str, str, int]] = json.loads(answers[-1].removeprefix(_MARK))
    found = tuple(_accelerator(*row, env) for row in rows)
    return found, "as torch tells" if found else "torch finds none"


def _accelerator(device: str, name: str, size: int, env: Mapping[str, str]) -> Accelerator:
    known = identify(name, Probes(env=env))
    return Accelerator(device, name, size, known.chip, known.candidates, known.why)


def _signs(env: Mapping[str, str]) -> str | None:
    known = identify(None, Probes(env=env))
    return f"{' or '.join(known.vendors)}: {known.why}" if known.evidence else None


def _compiler(env: Mapping[str, str]) -> Compiler | None:
    """The compiler that the core is built with: CXX, or the usual names on PATH."""
    names = (env.get("CXX") or "", *COMPILERS)
    programs = (shutil.which(name, path=env.get("PATH")) for name in names if name)
    program = next(filter(None, programs), None)
    if program is None:
        return None
    version = _output([program, "--version"])
    check = [program, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    return Compiler(program, (version or "unknown").splitlines()[0], _runs(check, _CPP20))


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMPILER_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _runs(command: list[str], text: str) -> bool:
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=COMPILER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _ninja(env: Mapping[str, str]) -> str | None:
    """ninja on PATH, or the one that its Python package brings."""
    own = os.path.dirname(sys.executable)
    return shutil.which("ninja", path=f"{env.get('PATH', '')}{os.pathsep}{own}")


def _size_of(folder: str) -> int | None:
    try:
        return shutil.disk_usage(folder).total
    except OSError:
        return None


def _cache(env: Mapping[str, str]) -> Cache:
    folder = cache_dir(env)
    nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    cores = sorted(folder.glob("**/*.so"))
    return Cache(
        folder=str(folder),
        writable=nearest.is_dir() and os.access(nearest, os.W_OK),
        builds=tuple(str(core.relative_to(folder)) for core in cores),
        size_bytes=sum(core.stat().st_size for core in cores),
    )


def _findings(machine: Machine, env: Mapping[str, str]) -> Iterator[Finding]:
    install = f"{machine.python} -m pip install"
    if machine.torch is None:
        yield Finding("torch is not installed", f"{install} torch")
    elif (least := _least_torch()) and _numbers(machine.torch.version) < _numbers(least):
        what = f"torch {machine.torch.version} is older than {least}, the oldest that works"
        yield Finding(what, f"{install} 'torch>={least}'")
    if not machine.registered:
        what = f"offramp is not registered with torch (entry point group {ENTRY_POINTS})"
        yield Finding(what, f"{install} --force-reinstall --no-deps offramp")
    if not machine.autoload:
        what = f"{AUTOLOAD}={env[AUTOLOAD]} keeps torch from loading offramp"
        yield Finding(what, f"unset {AUTOLOAD}")
    yield from _build_findings(machine, env)
    if machine.signs:
        what = f"torch offers no device, but there are signs of one by {machine.signs}"
        yield Finding(what, "install the torch, or the torch plug-in, of the chip's maker")
    shared = machine.shared_memory_bytes
    if shared is not None and shared < SMALL_SHARED_MEMORY_BYTES:
        what = f"/dev/shm holds only {shared // 2**20} MiB; DataLoader workers share batches there"
        yield Finding(what, "start the container with --shm-size=8g")
    if "failed" in machine.accelerator_note or "answer" in machine.accelerator_note:
        yield Finding(machine.accelerator_note, f"{machine.python} -c 'import torch'")


def _build_findings(machine: Machine, env: Mapping[str, str]) -> Iterator[Finding]:
    tools = (tool for tool in _INSTALLERS if shutil.which(tool, path=env.get("PATH")))
    installer = _INSTALLERS.get(next(tools, ""), "install GCC 11 or newer, with C++")
    if machine.compiler is None:
        what = f"no C++ compiler (none of CXX, {', '.join(COMPILERS)} is on PATH)"
        yield Finding(what, installer)
    elif not machine.compiler.cpp20:
        what = f"{machine.compiler.command} cannot compile C++20 ({machine.compiler.version})"
        yield Finding(what, f"{installer}, or set CXX to a newer compiler")
    if machine.ninja is None:
        yield Finding("ninja is not on PATH", f"{machine.python} -m pip install ninja")
    if not machine.python_headers:
        version = ".".join(machine.python_version.split(".")[:2])
        include = sysconfig.get_path("include")
        yield Finding(f"no Python.h in {include}", f"install the headers: python{version}-dev")
    if not machine.cache.writable:
        what = f"the cache folder {machine.cache.folder} cannot be written"
        yield Finding(what, "export OFFRAMP_CACHE=<a folder that you may write>")


def _least_torch() -> str | None:
    try:
        wanted = metadata.requires("offramp") or []
    except metadata.PackageNotFoundError:
        return None
    matches = (re.match(r"torch\s*>=\s*([0-9.]+)", spec) for spec in wanted)
    return next((match[1] for match in matches if match), None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:2])
