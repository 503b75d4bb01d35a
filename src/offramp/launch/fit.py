"""What would make a job fit: other settings, each of them rehearsed, with few rehearsals.

Settings stand in ladders: changes of one kind, from the one that holds most memory to the one that
holds least. Memory falls along a ladder, so that the first rung that fits is found by halving.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from offramp.errors import OfframpError, UsageError

MOST = 12
SCHEMA = 1


@dataclass(frozen=True)
class Change:
    """One other way to start a program.

    command           the whole command
    said              what differs from the command as given, as a user types it
    nodes, per_node   where it is played; None: where the command as given is
    """

    command: tuple[str, ...]
    said: str
    nodes: int | None = None
    per_node: int | None = None


@dataclass(frozen=True)
class Ladder:
    """Changes of one kind.

    every   all are played; else memory falls from rung to rung, and the first that fits is sought
    when    "always", or only where what was played before has "none" that fits, or has "some"
    """

    title: str
    rungs: tuple[Change, ...]
    every: bool = False
    when: str = "always"


@dataclass(frozen=True)
class Tried:
    """A change that was rehearsed: what was found, or why it could not be played."""

    title: str
    change: Change
    summary: Mapping[str, Any] | None = None
    problem: str = ""

    @property
    def fits(self) -> bool:
        return self.summary is not None and bool(self.summary["fits"])

    def plain(self) -> dict[str, Any]:
        """Plain data: bytes, seconds."""
        out: dict[str, Any] = {
            "kind": self.title,
            "change": self.change.said,
            "command": list(self.change.command),
            "fits": self.fits,
            "problem": self.problem,
        }
        if self.summary is not None:
            memory = self.summary["memory"]
            out |= {
                "world": self.summary["world"],
                "peak_bytes": memory["allocated_bytes"],
                "reserved_bytes": memory["reserved_bytes"],
                "capacity_bytes": memory["capacity_bytes"],
                "shortfall_bytes": self.summary["shortfall_bytes"],
                "given_back": self.summary["given_back"],
                "step_s": dict(self.summary["step_s"]),
            }
        return out


@dataclass
class Search:
    """A search under way, and its outcome: `tried` in the order of the ladders.

    play   rehearses a change and gives the summary; it may raise OfframpError
    told   hears, in one line, what is played next
    most   rehearsals after which the search ends; `is_cut` says that it did
    """

    play: Callable[[Change], Mapping[str, Any]]
    told: Callable[[str], None] = lambda text: None
    most: int = MOST
    tried: list[Tried] = field(default_factory=list)
    is_cut: bool = False

    def run(self, ladders: Sequence[Ladder]) -> Search:
        """Search the ladders in turn; itself, for its outcome."""
        for ladder in ladders:
            some = any(one.fits for one in self.tried)
            if ladder.when == "always" or ladder.when == ("some" if some else "none"):
                begun = len(self.tried)
                self._climb(ladder)
                self.tried[begun:] = sorted(
                    self.tried[begun:], key=lambda one: ladder.rungs.index(one.change)
                )
        return self

    def plain(self) -> dict[str, Any]:
        """The outcome as plain data."""
        tried = [one.plain() for one in self.tried]
        return {"schema": SCHEMA, "is_cut": self.is_cut, "tried": tried}

    def _climb(self, ladder: Ladder) -> None:
        if ladder.every:
            for rung in ladder.rungs:
                self._try(ladder.title, rung)
            return
        low, high = 0, len(ladder.rungs)
        while low < high:
            middle = (low + high) // 2
            if (found := self._try(ladder.title, ladder.rungs[middle])) is None:
                return
            low, high = (low, middle) if found.fits else (middle + 1, high)

    def _try(self, title: str, change: Change) -> Tried | None:
        """Rehearse a change; None where no more rehearsals are left."""
        if (known := next((t for t in self.tried if t.change == change), None)) is not None:
            return known
        if len(self.tried) >= self.most:
            self.is_cut = True
            return None
        self.told(f"trying {change.said} ({len(self.tried) + 1} of at most {self.most})")
        try:
            found = Tried(title, change, self.play(change))
        except OfframpError as error:
            found = Tried(title, change, problem=str(error))
        self.tried.append(found)
        return found


def values_of(command: Sequence[str], text: str) -> Ladder:
    """A command with each value of one of its flags, such as '--batch-size=16,8,4'.

    A flag that the command has already, as `--flag VALUE` or `--flag=VALUE`, gets the other value;
    one that it lacks is added at its end. Raises UsageError.
    """
    flag, equals, values = text.partition("=")
    each = [value.strip() for value in values.split(",")]
    if not (flag.strip() and equals and all(each)):
        raise UsageError(f"--vary {text!r}: expected FLAG=VALUE,VALUE, such as --batch-size=16,8,4")
    if len(set(each)) < len(each):
        raise UsageError(f"--vary {text!r}: a value is given twice")
    name = flag.strip()
    rungs = [Change(tuple(_replaced(command, name, value)), f"{name}={value}") for value in each]
    return Ladder("value", tuple(rungs), every=True)


def _replaced(command: Sequence[str], flag: str, value: str) -> Iterator[str]:
    has, words = False, iter(command)
    for word in words:
        if word == flag and flag.startswith("-"):
            has = True
            yield from (flag, value)
            next(words, None)
        elif word.startswith(f"{flag}="):
            has = True
            yield f"{flag}={value}"
        else:
            yield word
    if not has:
        yield f"{flag}={value}"
