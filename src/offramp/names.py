"""Texts by number, for files that say each name once."""

from __future__ import annotations


class Names:
    """Texts by number, in the order in which they were first met; the given ones come first."""

    def __init__(self, *known: str) -> None:
        self._numbers = {text: number for number, text in enumerate(known)}
        self._new = list(known)

    def number(self, text: str) -> int:
        """The number of a text."""
        found = self._numbers.get(text)
        if found is None:
            found = self._numbers[text] = len(self._numbers)
            self._new.append(text)
        return found

    def take_new(self) -> list[str]:
        """The texts met since the last call."""
        taken, self._new = self._new, []
        return taken
