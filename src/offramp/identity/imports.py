"""Modules that are changed as soon as they have been imported."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from offramp.identity.patches import Patches

Then = Callable[[types.ModuleType], None]


def wrapped(
    name: str, path: Sequence[str] | None, then: Then
) -> importlib.machinery.ModuleSpec | None:
    """The module's own spec, whose loader calls `then` when the module has been executed."""
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    if spec is None or spec.loader is None:
        return spec
    loader: Any = spec.loader
    execute = loader.exec_module

    def exec_module(module: types.ModuleType) -> None:
        execute(module)
        then(module)

    loader.exec_module = exec_module
    return spec


def after(changes: Mapping[str, Then], patches: Patches) -> None:
    """Call each with its module, by full name: now where it is imported, else once it is."""
    for name in changes.keys() & sys.modules.keys():
        changes[name](sys.modules[name])
    finder = _Finder(changes)
    sys.meta_path.insert(0, finder)
    patches.on_undo(lambda: sys.meta_path.remove(finder))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, changes: Mapping[str, Then]) -> None:
        self._changes = changes

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        then = self._changes.get(name)
        return None if then is None else wrapped(name, path, then)
