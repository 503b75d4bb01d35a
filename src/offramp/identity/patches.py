"""Attributes replaced for a time, and put back in reverse order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

_ABSENT = object()


class Patches:
    """Every change that identity makes to another module goes through one of these."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """`owner.name = value`, remembered."""
        before = vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)

        def put_back() -> None:
            if before is _ABSENT:
                with contextlib.suppress(AttributeError):
                    delattr(owner, name)
            else:
                setattr(owner, name, before)

        self._undo.append(put_back)

    def item(self, mapping: dict[str, Any], key: str, value: Any) -> None:
        """`mapping[key] = value`, remembered."""
        before = mapping.get(key, _ABSENT)
        mapping[key] = value

        def put_back() -> None:
            if before is _ABSENT:
                mapping.pop(key, None)
            else:
                mapping[key] = before

        self._undo.append(put_back)

    def without(self, mapping: dict[str, Any], key: str) -> None:
        """`del mapping[key]`, remembered."""
        before = mapping.pop(key)
        self._undo.append(lambda: mapping.update({key: before}))

    def on_undo(self, action: Callable[[], None]) -> None:
        """Run `action` when the patches are put back."""
        self._undo.append(action)

    def undo(self) -> None:
        """Put everything back, the latest change first."""
        while self._undo:
            self._undo.pop()()
