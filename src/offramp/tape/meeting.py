"""Where ranks meet: calls of one collective, or of a send and its receive, wait for each other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from offramp.tape.prices import Call
from offramp.tape.tape import Group, TapeError

GroupKey = tuple[tuple[int, ...], str | int]  # the ranks, and the name or the place among those


@dataclass(slots=True)
class Part:
    """One call: which record it is, what it is and what it takes (seconds)."""

    record: int
    call: Call
    group: Group
    key: int  # of the group, in the meeting
    seconds: float


@dataclass(slots=True, eq=False)
class Unit:
    """What runs as one on a communication lane: a call, or the calls of one batch.

    `ready` is when this rank could begin, `start` when the last peer was there too, `end` when
    all of it has ended; seconds, unknown until `is_done`.
    """

    rank: int
    device: int
    lane: str
    parts: list[Part]
    base: float  # ready, as far as host and calling stream tell
    is_batch: bool = False
    ready: float = 0.0
    start: float = 0.0
    end: float = 0.0
    missing: int = 0  # parts that have not met
    busy: dict[str, float] = field(default_factory=dict)  # seconds of sends, receives, the rest
    published: bool = False
    is_done: bool = False

    @property
    def name(self) -> str:
        """The calls' name; "recv+send" of a batch of both."""
        return "+".join(sorted({part.call.name for part in self.parts}))

    @property
    def on_host(self) -> bool:
        """Whether it moves the host's memory."""
        return self.parts[0].call.on_host

    def __str__(self) -> str:
        calls = ", ".join(describe(part) for part in self.parts)
        return f"{calls} (record {self.parts[0].record})"


class Lane:
    """A communication lane of one rank: units in order, one at a time."""

    __slots__ = ("free", "name", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.free = 0.0
        self.waiting: deque[Unit] = deque()


@dataclass(slots=True)
class _Match:
    """Calls that belong together, one of each member that is played."""

    expected: int
    name: str
    start: float = 0.0
    seconds: float = 0.0
    source: int = -1  # of a transfer
    came: dict[int, Unit] = field(default_factory=dict)

    def way(self, rank: int) -> str:
        """Which way the data goes on `rank`'s link."""
        return "both" if self.source < 0 else "out" if rank == self.source else "in"


class Meeting:
    """Matches the calls of the ranks that are played, in the order of their calls.

    Of a collective the n-th call of each member belongs to the n-th of the others; of transfers
    the n-th send from one rank to another to the n-th receive there. A member that is not played
    does as the player does: nobody waits for it.
    """

    def __init__(self, ranks: Iterable[int] = ()) -> None:
        self._played = frozenset(ranks)
        self._groups: dict[GroupKey, int] = {}
        self._members: list[frozenset[int]] = []  # of each group those that are played
        self._counts: dict[tuple[int | str, ...], int] = {}
        self._matches: dict[tuple[int, ...], _Match] = {}
        self._keys: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        self._on_done: dict[int, tuple[Lane, Callable[[Unit], None]]] = {}

    def number_of(self, key: GroupKey) -> int:
        """The group's number in this meeting: groups may have ten thousands of ranks."""
        number = self._groups.setdefault(key, len(self._members))
        if number == len(self._members):
            self._members.append(self._played.intersection(key[0]))
        return number

    def join(self, unit: Unit, lane: Lane, on_done: Callable[[Unit], None]) -> None:
        """Queue `unit` on its lane; `on_done` is called once its times are known."""
        unit.missing = len(unit.parts)
        self._keys[id(unit)] = [self._place(unit.rank, part) for part in unit.parts]
        self._on_done[id(unit)] = (lane, on_done)
        lane.waiting.append(unit)
        if len(lane.waiting) == 1:
            self._publish(unit, lane)

    def _place(self, rank: int, part: Part) -> tuple[tuple[int, ...], int]:
        """The match that a call belongs to, and how many calls make it."""
        name, peer = part.call.name, part.call.peer
        if part.call.is_transfer:
            pair = (rank, peer) if name == "send" else (peer, rank)
            what: tuple[int, ...] = (part.key, *pair)
            count = 2 if peer in self._played and peer != rank else 1
        else:
            members = self._members[part.key]
            name, what, count = "", (part.key,), len(members) + (rank not in members)
        counted: tuple[int | str, ...] = (rank, name, *what)
        number = self._counts.get(counted, 0)
        self._counts[counted] = number + 1
        return (*what, number), count

    def _publish(self, unit: Unit, lane: Lane) -> None:
        """The unit is first on its lane: say when it is ready, to all it meets, then wait."""
        pending = [(unit, lane)]
        while pending:
            unit, lane = pending.pop()
            unit.ready = max(unit.base, lane.free)
            unit.published = True
            unit.start = unit.end = unit.ready
            for part, (key, count) in zip(unit.parts, self._keys.pop(id(unit)), strict=True):
                pending += self._arrive(unit, part, key, count)

    def _arrive(
        self, unit: Unit, part: Part, key: tuple[int, ...], count: int
    ) -> list[tuple[Unit, Lane]]:
        name = "transfer" if part.call.is_transfer else part.call.name
        sends = part.call.name == "send"
        source = (unit.rank if sends else part.call.peer) if part.call.is_transfer else -1
        match = self._matches.setdefault(key, _Match(count, name, source=source))
        if match.name != name:
            other = next(iter(match.came.values()))
            raise TapeError(
                f"rank {unit.rank} calls {unit} where rank {other.rank} calls {other}: "
                f"the members of a group call the same in the same order"
            )
        match.came[unit.rank] = unit
        match.start = max(match.start, unit.ready)
        match.seconds = max(match.seconds, part.seconds)
        if len(match.came) < match.expected:
            return []
        del self._matches[key]
        following = []
        for rank, each in match.came.items():
            each.start = max(each.start, match.start)
            each.end = max(each.end, match.start + match.seconds)
            way = match.way(rank)
            each.busy[way] = each.busy.get(way, 0.0) + match.seconds
            each.missing -= 1
            if not each.missing:
                following += self._finish(each)
        return following

    def _finish(self, unit: Unit) -> list[tuple[Unit, Lane]]:
        """The unit has met everybody: its lane goes on; the next unit there, if it waits."""
        lane, on_done = self._on_done.pop(id(unit))
        unit.is_done = True
        # What goes the same way follows each other; sends and receives go at once.
        unit.end = max(unit.end, unit.start + max(unit.busy.values()))
        lane.free = unit.end
        lane.waiting.popleft()
        on_done(unit)
        return [(lane.waiting[0], lane)] if lane.waiting else []


def describe(part: Part) -> str:
    """One call for people: its name, its group or peer."""
    whom = f"rank {part.call.peer}" if part.call.is_transfer else part.group.label
    word = {"send": "to", "recv": "from"}.get(part.call.name, "among")
    return f"{part.call.name} {word} {whom}"


def group_keys(groups: Sequence[Group]) -> list[GroupKey]:
    """What identifies each group across tapes: its ranks and its name, on which members agree.

    Of groups without a name it is the place among those of the same ranks.
    """
    counts: dict[tuple[int, ...], int] = {}
    keys: list[GroupKey] = []
    for group in groups:
        number = counts[group.ranks] = counts.get(group.ranks, -1) + (not group.name)
        keys.append((group.ranks, group.name or number))
    return keys
