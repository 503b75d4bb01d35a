"""Imports that cannot work on the chip, explained; and the one that offramp stands in for.

A finder at the head of `sys.meta_path` answers an `import` of a package of CUDA kernels with a
reason. Triton, where it is installed, may be imported: launching a kernel is what is refused.
A look-up that only asks whether a package is there (`importlib.util.find_spec`) gets the
plain "no", so that libraries choose another way.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from importlib import resources
from typing import Any, NoReturn

from offramp.errors import MissingPackageError, RefusedError
from offramp.identity import nvml
from offramp.identity.imports import wrapped
from offramp.identity.patches import Patches
from offramp.identity.runtime import Runtime
from offramp.identity.tally import Tally, asked_by_torch

_EXTENSIONS = "torch.utils.cpp_extension"
_TRITON = "triton"


@cache
def refused() -> Mapping[str, Mapping[str, str]]:
    """Package name to `why` and `instead`, from `packages.toml`."""
    text = resources.files("offramp.identity").joinpath("packages.toml").read_text()
    return tomllib.loads(text)


def install(runtime: Runtime, counts: Tally, patches: Patches) -> None:
    """Put the finder in place."""
    finder = _Finder(runtime, counts, patches)
    for name in [n for n in sys.modules if n.split(".")[0] in refused().keys() - {_TRITON}]:
        patches.without(sys.modules, name)  # imported before: later imports get the reason
    sys.meta_path.insert(0, finder)
    patches.on_undo(lambda: sys.meta_path.remove(finder))
    patches.set(importlib.util, "find_spec", _look_up(importlib.util.find_spec))
    _notice_nvidia_smi(runtime, counts, patches)
    if _EXTENSIONS in sys.modules:
        finder.after_extensions(sys.modules[_EXTENSIONS])
    if _TRITON in sys.modules:
        finder.after_triton(sys.modules[_TRITON])


def _look_up(installed: Callable[..., Any]) -> Callable[..., Any]:
    """Python's own look-up, to which packages of CUDA kernels are absent even where installed."""

    @wraps(installed)
    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name.split(".")[0] in refused() else installed(name, package)

    return find_spec


def _notice_nvidia_smi(runtime: Runtime, counts: Tally, patches: Patches) -> None:
    """Count programs that start `nvidia-smi`: on other makers' machines there is none."""
    smi = runtime.chip.presentation.smi
    why = f"a machine of {runtime.chip.name} has {smi or 'no such tool'}, not nvidia-smi"
    watching = True  # an audit hook stays for the life of the process

    def notice(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "subprocess.Popen" and smi != "nvidia-smi":
            words = [str(arguments[0]), *map(str, arguments[1] or ())][:2]
            if any("nvidia-smi" in word for word in words):
                counts.refused("nvidia-smi", why)

    def stop() -> None:
        nonlocal watching
        watching = False

    sys.addaudithook(notice)
    patches.on_undo(stop)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, runtime: Runtime, counts: Tally, patches: Patches) -> None:
        self._runtime = runtime
        self._counts = counts
        self._patches = patches

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "pynvml":
            loader = _Made(lambda: nvml.module(self._runtime, self._counts))
            return importlib.machinery.ModuleSpec(name, loader)
        if name == _EXTENSIONS:
            return wrapped(name, path, self.after_extensions)
        if name in refused():
            importer = _importer()
            if importer is None:
                return None
            by_torch = asked_by_torch(importer)
            if name == _TRITON and not by_torch:
                spec = wrapped(name, path, self.after_triton)
                if spec is not None:
                    return spec
            self._explain(name, by_torch)
        return None

    def _explain(self, name: str, by_torch: bool) -> None:
        entry = refused()[name]
        chip = self._runtime.chip
        if not by_torch:  # PyTorch only asks what is there, and goes another way
            self._counts.refused(f"import {name}", entry["why"])
        raise MissingPackageError(
            f"{name} cannot be used on {chip.name} (it was imported on a device that offramp "
            f"provides): {entry['why']}. Use instead: {entry['instead']}.",
            name=name,
        )

    def after_triton(self, module: types.ModuleType) -> None:
        """Kernels may be defined, as programs do on import; launching one is refused."""
        counts, chip = self._counts, self._runtime.chip
        entry = refused()[_TRITON]

        def refuse(kernel: Any, grid: object) -> NoReturn:
            name = f"the Triton kernel {getattr(getattr(kernel, 'fn', kernel), '__name__', '?')}"
            counts.refused(name, entry["why"])
            raise RefusedError(
                f"{name} cannot run on {chip.name}: {entry['why']}. "
                f"Use instead: {entry['instead']}."
            )

        interface = importlib.import_module(f"{module.__name__}.runtime.jit").KernelInterface
        self._patches.set(interface, "__getitem__", refuse)

    def after_extensions(self, module: types.ModuleType) -> None:
        """CUDA sources cannot be compiled for the chip; C++ ones can."""
        why = "CUDA sources need the chip maker's own compiler, and there is no CUDA toolkit here"
        counts = self._counts

        def refuse(name: str) -> None:
            counts.refused(name, why)
            raise RefusedError(
                f"{name}: {why}. Use C++ sources, or the operation in plain PyTorch; on a real "
                "chip, rebuild the extension with the maker's SDK."
            )

        def guard(name: str, asks_cuda: Callable[[tuple[Any, ...], dict[str, Any]], bool]) -> None:
            original = getattr(module, name)

            def build(*args: Any, **kwargs: Any) -> Any:
                if asks_cuda(args, kwargs):
                    refuse(f"{_EXTENSIONS}.{name}")
                return original(*args, **kwargs)

            self._patches.set(module, name, build)

        guard("CUDAExtension", lambda args, kwargs: True)
        guard("load", lambda args, kwargs: _has_cuda_source(args, kwargs))
        guard("load_inline", lambda args, kwargs: bool(kwargs.get("cuda_sources")))


def _has_cuda_source(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    sources = kwargs.get("sources", args[1] if len(args) > 1 else ())
    listed = [sources] if isinstance(sources, str) else sources
    return bool(kwargs.get("with_cuda")) or any(str(s).endswith((".cu", ".cuh")) for s in listed)


class _Made(importlib.abc.Loader):
    """Loads a module that is made rather than found."""

    def __init__(self, make: Callable[[], types.ModuleType]) -> None:
        self._make = make

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return self._make()

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _importer() -> types.FrameType | None:
    """The frame of the import statement that led here; None for `importlib.util.find_spec`."""
    frame: types.FrameType | None = sys._getframe(2)
    importing = False
    while frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
        importing = importing or frame.f_code.co_name == "_find_and_load_unlocked"
        frame = frame.f_back
    return frame if importing else None
