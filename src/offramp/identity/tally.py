"""What a program asked of CUDA, by name, and what it got.

The table `names.toml` says for every intercepted name which class its answer is of. This object
counts the calls; the report at the end of a run is drawn from it.
"""

from __future__ import annotations

import functools
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import FrameType
from typing import Any, NoReturn

from offramp.errors import RefusedError

CLASSES = ("same", "mapped", "emulated", "refused")


@dataclass(frozen=True)
class Name:
    """One intercepted name: which class its answer is of, and why."""

    name: str
    answer: str
    reason: str


@cache
def settings(kind: str) -> Mapping[str, str]:
    """Functions of the device module of `kind` that have no effect here, and why."""
    text = resources.files("offramp.identity").joinpath("own_names.toml").read_text()
    group: dict[str, str] = tomllib.loads(text).get(kind, {})
    return group


@cache
def table() -> Mapping[str, Name]:
    """Every intercepted name, from `names.toml`."""
    text = resources.files("offramp.identity").joinpath("names.toml").read_text()
    return {
        name: Name(name, answer, reason)
        for answer, group in tomllib.loads(text).items()
        for name, reason in group.items()
    }


def asked_by_torch(frame: FrameType | None) -> bool:
    """Whether the code of `frame` is PyTorch's own."""
    module = frame.f_globals.get("__name__", "") if frame is not None else ""
    return module == "torch" or module.startswith("torch.")


class Tally:
    """Counts of one installation."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.refusals: Counter[tuple[str, str]] = Counter()
        self.defaults: Counter[tuple[str, str, str]] = Counter()
        self.compiled: Counter[tuple[str, str, str]] = Counter()
        self._like: dict[str, str] = {}

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, counting the calls under `name` that do not come from PyTorch itself."""
        if name not in table():
            raise KeyError(f"{name} is not in names.toml")
        calls = self.calls

        @functools.wraps(function)
        def count(*args: Any, **kwargs: Any) -> Any:
            if not asked_by_torch(sys._getframe(1)):
                calls[name] += 1
            return function(*args, **kwargs)

        return count

    def met(self, name: str, like: str | None = None) -> None:
        """A name was met that cannot be wrapped, or that is answered as the table's `like` is."""
        self.calls[name] += 1
        if like is not None:
            self._like[name] = like

    def refused(self, name: str, reason: str) -> None:
        self.calls[name] += 1
        self.refusals[name, reason] += 1

    def refusing(self, name: str, reason: str) -> Callable[..., NoReturn]:
        """A function in the place of `name` that counts its calls and raises RefusedError."""

        def refuse(*args: object, **kwargs: object) -> NoReturn:
            self.refused(name, reason)
            raise RefusedError(f"{name} is not available on this chip: {reason}")

        return refuse

    def answered_by_default(self, name: str, answer: object, why: str) -> None:
        """The program asked something whose true answer nobody knows; it got `answer`."""
        self.defaults[name, str(answer), why] += 1

    def record(self) -> dict[str, list[dict[str, Any]]]:
        """The counts as plain data: names, refused, defaults, compiled."""
        known = {name: entry.answer for name, entry in table().items()}
        known |= {name: known[like] for name, like in self._like.items()}
        return {
            "names": [
                {"name": name, "class": known.get(name, "refused"), "count": count}
                for name, count in self.calls.most_common()
            ],
            "refused": [
                {"name": name, "reason": reason, "count": count}
                for (name, reason), count in self.refusals.most_common()
            ],
            "defaults": [
                {"name": name, "answer": answer, "why": why, "count": count}
                for (name, answer, why), count in self.defaults.most_common()
            ],
            "compiled": [
                {"requested": requested, "did": did, "why": why, "count": count}
                for (requested, did, why), count in self.compiled.most_common()
            ],
        }
