"""`import torch_npu`, `torch_musa`, ...: the maker's package, as far as programs need it to start.

Importing it is how a program says that it is written for the device's own name. A library that
looks whether the package is there, in order to choose between devices, finds it only then.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from offramp.errors import MissingPackageError, RefusedError
from offramp.identity.patches import Patches
from offramp.identity.tally import Tally

if TYPE_CHECKING:
    from offramp.identity.own_name import Naming


class Package(MetaPathFinder, Loader):
    """Finds and loads `torch_<kind>` and the modules below it."""

    def __init__(self, naming: Naming, counts: Tally) -> None:
        self._naming = naming
        self._counts = counts
        self.name = f"torch_{naming.kind}"
        # They only redirect CUDA's names, which lead to the device anyway.
        self._redirecting = ("contrib", f"contrib.transfer_to_{naming.kind}")

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        root, _, below = name.partition(".")
        if root != self.name:
            return None
        if not self._naming.is_own and not _is_program(_importer(sys._getframe(1))):
            return None
        if below and below not in self._redirecting and self._own(below) is None:
            raise MissingPackageError(
                f"{name} belongs to the maker's own package, which needs the maker's hardware. "
                f"Here {root} gives torch.{self._naming.kind} and nothing more; use what PyTorch "
                "itself has for it"
            )
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        return self._own(spec.name.partition(".")[2])

    def exec_module(self, module: types.ModuleType) -> None:
        self._naming.use_own()
        if module.__name__ != self.name:
            module.__spec__ = ModuleSpec(module.__name__, None)  # not one of its second place
            return
        kind = self._naming.kind
        made: Any = module
        setattr(made, kind, getattr(torch, kind))
        made.__version__ = torch.__version__
        made.__getattr__ = self._missing

    def _own(self, below: str) -> types.ModuleType | None:
        """The module of `torch.<kind>` that `torch_<kind>.<kind>...` means."""
        first, *rest = below.split(".")
        if first != self._naming.kind:
            return None
        found: Any = getattr(torch, first)
        for part in rest:
            found = getattr(found, part, None)
        return found if isinstance(found, types.ModuleType) else None

    def _missing(self, name: str) -> Any:
        """An operator of the maker's: may be imported, for many programs never call it."""
        kind = self._naming.kind
        full, why = f"{self.name}.{name}", "it is a kernel of the maker's own package"
        if not name.startswith(f"{kind}_"):
            raise AttributeError(f"{full} belongs to the maker's own package; use torch.{kind}")

        def refuse(*args: object, **kwargs: object) -> NoReturn:
            self._counts.refused(full, why)
            raise RefusedError(
                f"{full}: {why}, and this chip is virtual; use what PyTorch itself has for it"
            )

        return refuse


def install(naming: Naming, counts: Tally, patches: Patches) -> None:
    """Make the package importable where the maker's is not installed."""
    package = Package(naming, counts)
    if importlib.util.find_spec(package.name) is not None:
        return
    sys.meta_path.insert(0, package)

    def undo() -> None:
        sys.meta_path.remove(package)
        for name in [n for n in sys.modules if n.partition(".")[0] == package.name]:
            del sys.modules[name]

    patches.on_undo(undo)


def _importer(frame: FrameType | None) -> FrameType | None:
    """The frame that asked for a module, above the import machinery's and offramp's part in it."""
    machinery = ("importlib", "offramp.identity")
    while frame is not None and frame.f_globals.get("__name__", "").startswith(machinery):
        frame = frame.f_back
    return frame


def _is_program(frame: FrameType | None) -> bool:
    """Whether code is the program's own, neither an installed library's nor Python's."""
    if frame is None:
        return False
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    if main is not None and package == main.name.partition(".")[0]:
        return True
    places = {sysconfig.get_path(key) for key in ("stdlib", "purelib", "platlib")}
    return not frame.f_code.co_filename.startswith(tuple(places))
