"""The errors that offramp raises on purpose.

Every message says what was given, what was expected and the way out. The command line turns a
`UsageError` into one line and exit status 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OfframpError(Exception):
    """Anything offramp refuses, or cannot do, and can explain."""


class UsageError(OfframpError):
    """The caller asked for something that cannot be meant: an unknown name, a wrong unit."""


class UnknownNameError(UsageError):
    """A name that is not in a known set; the message lists the nearest ones."""

    def __init__(self, kind: str, given: str, known: Iterable[str], hint: str = "") -> None:
        super().__init__(f"unknown {kind} {given!r}{nearest(given, known)}{hint and f'; {hint}'}")


class RefusedError(OfframpError, RuntimeError):
    """Something the chip cannot do, or offramp does not offer: named, with the reason.

    It is a `RuntimeError` because programs written for CUDA catch that class around kernels.
    """


class MissingPackageError(OfframpError, ModuleNotFoundError):
    """An import that cannot work on this chip, such as a package of CUDA kernels.

    It is a `ModuleNotFoundError` because programs guard optional packages with that class, or with
    `ImportError`, which has it.
    """


def nearest(given: str, known: Iterable[str], count: int = 3) -> str:
    """`; did you mean 'a', 'b'?` for the names closest to `given`, or an empty string."""
    names = sorted(known)
    close = difflib.get_close_matches(given.lower(), names, n=count, cutoff=0.5)
    if not close:
        close = [name for name in names if given.lower() in name][:count]
    return f"; did you mean {', '.join(repr(name) for name in close)}?" if close else ""
