"""Compile the native core on first use, once, and keep it.

The result is cached by everything that decides its content: torch, Python, compiler and sources.
Several processes that start together build it once: the first holds a file lock, which the
system lets go even when that process is killed, and the result appears by one rename.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from offramp.cache import cache_dir
from offramp.errors import OfframpError

SOURCES = Path(__file__).with_name("native")
MODULE = "_core"
FLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-w", "-DAT_PER_OPERATOR_HEADERS"]
OPTIMIZE = {"cold": "-O1", "hot": "-O2"}
# Sources that Python calls, or that serve whole collectives: none of them runs for each operator.
COLD = (
    *("bindings", "cover", "spelling", "tape_bindings", "arithmetic_bindings"),
    *("works", "reductions", "group", "collectives", "group_bindings", "mirror", "letters"),
)


class BuildError(OfframpError):
    """The native core cannot be compiled here; the message says what to install or what failed."""


def compiler() -> str | None:
    """The C++ compiler: `$CXX`, else the first of c++, g++ and clang++ on the path."""
    candidates = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


def ninja() -> str | None:
    """The ninja on the path, or the one that the `ninja` package brings."""
    if found := shutil.which("ninja"):
        return found
    if importlib.util.find_spec("ninja") is None:
        return None
    return shutil.which("ninja", path=_package_scripts())


def load(announce: Callable[[str], None]) -> ModuleType:
    """The native core, compiled first when this torch and these sources have none yet.

    Args:
        announce: told, in one line, before a compilation starts (it takes tens of seconds).

    Raises:
        BuildError: no compiler, no ninja, or the compiler failed.
    """
    library = library_path()
    if not library.exists():
        library.parent.parent.mkdir(parents=True, exist_ok=True)
        with _locked(library.parent.parent / "build.lock"):
            if not library.exists():
                _build(library, announce)
    loader = importlib.machinery.ExtensionFileLoader(MODULE, str(library))
    spec = importlib.util.spec_from_file_location(MODULE, library, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def library_path() -> Path:
    """Where the core for this torch, Python, compiler and source text is, or will be."""
    import torch

    digest = hashlib.sha256()
    flags = (*FLAGS, *OPTIMIZE.values(), *COLD)
    for part in (torch.__version__, sys.implementation.cache_tag, platform.machine(), *flags):
        digest.update(str(part).encode())
    digest.update((compiler() or "").encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return cache_dir() / "core" / digest.hexdigest()[:16] / f"{MODULE}.so"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build(library: Path, announce: Callable[[str], None]) -> None:
    cxx, make = compiler(), ninja()
    if cxx is None:
        raise BuildError(
            "the virtual chip needs a C++20 compiler and found none (looked for $CXX, c++, g++, "
            "clang++); install one, for example `apt-get install g++`"
        )
    if make is None:
        raise BuildError("the virtual chip needs ninja and found none; `pip install ninja`")
    announce("compiling the virtual chip's native core (once for this torch, about half a minute)")
    for left in library.parent.parent.glob("build-*/"):  # of a process killed while it built
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix="build-", dir=library.parent.parent))
    try:
        (work / "build.ninja").write_text(_rules(cxx, work))
        done = subprocess.run([make, "-C", str(work)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
            raise BuildError(f"{cxx} could not compile the virtual chip's native core:\n{tail}")
        library.parent.mkdir(exist_ok=True)
        os.replace(work / library.name, library)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _rules(cxx: str, work: Path) -> str:
    import torch

    # Not asked of torch.utils.cpp_extension, which says on import where it found a CUDA toolkit.
    root = Path(torch.__file__).parent
    headers = root / "include"
    includes = [headers, headers / "torch/csrc/api/include", sysconfig.get_paths()["include"]]
    flags = [*FLAGS, f"-DTORCH_EXTENSION_NAME={MODULE}", *(f"-isystem {path}" for path in includes)]
    libraries = root / "lib"
    lines = [
        f"rule compile\n  command = {cxx} $optimize {' '.join(flags)} -c $in -o $out",
        f"rule link\n  command = {cxx} -shared $in -o $out -L{libraries} -Wl,-rpath,{libraries} "
        "-ltorch_python -ltorch -ltorch_cpu -lc10",
    ]
    objects = []
    for unit, optimize in _units(work):
        objects.append(f"{unit.stem}.o")
        lines.append(f"build {objects[-1]}: compile {_escaped(unit)}\n  optimize = {optimize}")
    lines.append(f"build {MODULE}.so: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def _units(work: Path) -> list[tuple[Path, str]]:
    """The two files that the compiler is called on, with their optimization, slowest first.

    PyTorch's headers take most of the compiler's time: sources compiled as one read them once,
    and two files keep two cores equally long at it. Names must be unique within each file.
    """
    cold = [SOURCES / f"{name}.cpp" for name in COLD]
    hot = sorted(set(SOURCES.glob("*.cpp")) - set(cold))
    for name, sources in (("cold", cold), ("hot", hot)):
        (work / f"{name}.cpp").write_text("".join(f'#include "{path}"\n' for path in sources))
    return [(work / f"{name}.cpp", optimize) for name, optimize in OPTIMIZE.items()]


def _escaped(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _package_scripts() -> str:
    return os.pathsep.join([sysconfig.get_path("scripts"), str(Path(sys.executable).parent)])
