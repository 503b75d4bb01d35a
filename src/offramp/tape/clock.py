"""The virtual time of one rank: a host lane, a lane a stream, a lane a communication group.

CUDA's order: the host launches, a stream works in order, events and works tie streams together.
`docs/tape.md` has every rule. Replaying costs about a microsecond a record.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np
import numpy.typing as npt

from offramp.tape import kinds as k
from offramp.tape.meeting import Lane, Meeting, Part, Unit, group_keys
from offramp.tape.overlap import Overlap
from offramp.tape.prices import VIEW, Call, Pick, PriceList, parse_call
from offramp.tape.tape import Records, Tables, TapeError

# The host waits while this many launches have not begun on a stream: "launching the first 1000
# kernels" is fast, then each waits for an earlier one, and "each stream can launch 1000"
# (forums.developer.nvidia.com/t/68937); 1024 in Oneflow-Inc/oneflow#890.
QUEUE_DEPTH: Final = 1024
# Events, works and marks that a clock keeps at least while a program runs.
HISTORY: Final = 1 << 18

_GO, _AGAIN, _PAUSE = range(3)  # after a record: the next one; this one later; the next one later


@dataclass(frozen=True, slots=True)
class Mark:
    """A MARK on the clock: when the host was there, and when all queued before has ended (s)."""

    record: int
    what: int
    place: int
    host_s: float
    device_s: float


class Clock:
    """Replays records as they come. All times are seconds since the tape's begin.

    `pick` chooses which of a price's three figures counts; with `keep` every span stays in
    `spans`, `units` and `hosts`. Ranks that are played together share a `meeting`.
    """

    def __init__(
        self,
        tables: Tables,
        prices: PriceList,
        *,
        pick: Pick = "seconds",
        keep: bool = False,
        rank: int = 0,
        meeting: Meeting | None = None,
    ) -> None:
        self.host_s = 0.0
        self.rank = rank
        self.keep = keep
        self.lanes: list[tuple[int, int]] = []  # (device, stream)
        self.units: list[Unit] = []  # in the order of their calls
        self.spans: tuple[list[int], list[float], list[float]] = ([], [], [])
        self.hosts: tuple[list[int], list[float]] = ([], [])
        self.waits: Unit | None = None  # whom the last `run` ended for
        self.can_go_on = False  # whether `run` goes on although that is not known
        self._tables, self._prices, self._pick = tables, prices, pick
        self._costs = prices.prices
        self._meeting = meeting if meeting is not None else Meeting()
        self._free: list[float] = []
        self._queues: list[deque[float]] = []
        self._overlaps: list[Overlap] = []
        self._lane_of: dict[int, int] = {}
        self._devices: dict[int, Overlap] = {}
        self._comms: dict[tuple[int, int, int, bool], Lane] = {}
        self._events: dict[int, float] = {}
        self._works: dict[int, Unit] = {}
        self._marks: list[tuple[int, int, int, float, float, int]] = []
        self._settled: list[Mark] = []
        self._latest = 0.0  # the end of the units that are forgotten
        self._has_forgotten = False
        self._durations: list[float] = []  # by signature; of a view -1, not known yet: nan
        self._launches: list[float] = []
        self._calls: dict[int, tuple[Call, float]] = {}
        self._group_keys: list[int] = []
        self._batch: tuple[int, Unit] | None = None
        self._fed = 0  # records so far, those of memory included
        self._at = 0
        self._columns: tuple[list[int], list[int], list[int]] = ([], [], [])
        self._arguments: tuple[npt.NDArray[np.uint64], ...] = ()
        self._numbers: list[int] = []
        self._handlers = {
            k.RECORD: self._record,
            k.WAIT: self._wait,
            k.SYNC_EVENT: self._sync_event,
            k.SYNC_STREAM: self._sync_stream,
            k.SYNC_DEVICE: self._sync_device,
            k.COLLECTIVE: self._collective,
            k.WORK_WAIT: self._work_wait,
            k.MARK: self._mark,
            k.HOST: self._host,
            k.READBACK: self._readback,
        }

    def feed(self, records: Records | bytes) -> None:
        """Replay further records of this rank.

        Raises TapeError where they name what is not there, or a peer is needed that never comes.
        """
        self.load(records)
        if not self.run():
            raise TapeError(f"rank {self.rank} waits for its peers in {self.waits}")
        if not self.keep:
            self._forget()

    def load(self, records: Records | bytes) -> None:
        """Take the next records; `run` replays them."""
        if isinstance(records, bytes):
            records = np.frombuffer(records, k.RECORD_TYPE)
        numbers = np.flatnonzero(~np.isin(records["kind"], k.MEMORY_KINDS))
        self._numbers = (numbers + self._fed).tolist()
        self._fed += len(records)
        records = records[numbers]
        if len(records) and not self._continues_batch(records["kind"][0], records["b"][0]):
            self.finish()
        self._price(np.unique(records["what"][records["kind"] == k.OP]).tolist())
        streams = records["device"].astype(np.uint64) << np.uint64(32) | records["stream"]
        known, places = np.unique(streams, return_inverse=True)
        lanes = np.array([self._lane(key) for key in known.tolist()], np.int64)
        self._columns = (
            records["kind"].tolist(),
            lanes[places].tolist(),
            records["what"].tolist(),
        )
        self._arguments = (records["a"], records["b"])
        self._at = 0

    def run(self) -> bool:
        """Replay what is loaded; False where it stops to learn when a peer is ready (`waits`)."""
        kinds, lanes, whats = self._columns
        numbers, durations, free = self._numbers, self._durations, self._free
        queues, overlaps = self._queues, self._overlaps
        launches, keep = self._launches, self.keep
        is_synchronous = self._prices.is_synchronous
        records, starts, ends = self.spans
        host_at, hosts = self.hosts
        host = self.host_s
        for index in range(self._at, len(kinds)):
            if kinds[index]:
                self.host_s, self._at = host, index
                after = self._handlers[kinds[index]](index, lanes[index])
                host = self.host_s
                self.can_go_on = after == _PAUSE
                if after == _AGAIN:
                    return False
            else:
                after = _GO
                what = whats[index]
                host += launches[what]
                seconds = durations[what]
                if seconds >= 0:
                    lane = lanes[index]
                    queue = queues[lane]
                    if queue[0] > host:
                        host = queue[0]
                    start = free[lane]
                    if host > start:
                        start = host
                    queue.append(start)
                    if start < overlaps[lane].until:
                        end = overlaps[lane].end_of(start, seconds)
                    else:
                        end = start + seconds
                    free[lane] = end
                    if is_synchronous:
                        host = end
                    if keep:
                        records.append(numbers[index])
                        starts.append(start)
                        ends.append(end)
            if keep:
                host_at.append(numbers[index])
                hosts.append(host)
            if after == _PAUSE:
                self._at = index + 1
                return False
        self.host_s, self._at = host, len(kinds)
        self.waits = None
        return True

    def finish(self) -> None:
        """No further call joins the last batch."""
        if self._batch is not None:
            unit, self._batch = self._batch[1], None
            self._join(unit)

    def event_s(self, event: int) -> float:
        """When `event` has happened on its stream; raises TapeError where it was not recorded."""
        if event not in self._events:
            raise TapeError(f"event {event} was not recorded on any stream")
        return self._events[event]

    def lane_ends(self) -> dict[str, float]:
        """When each lane has ended what it has so far: "host", "0:7" (device:stream), groups."""
        ends = {"host": self.host_s}
        for (device, stream), end in zip(self.lanes, self._free, strict=True):
            ends[f"{device}:{stream}"] = end
        for (device, *_), lane in self._comms.items():
            ends[f"{device}:{lane.name}"] = lane.free
        return ends

    def marks(self) -> list[Mark]:
        """Every MARK so far, in order."""
        latest = list(accumulate((unit.end for unit in self.units), max, initial=self._latest))
        return self._settled + [
            Mark(record, what, place, host, max(device, latest[units]))
            for record, what, place, host, device, units in self._marks
        ]

    def _forget(self) -> None:
        """Keep a program that runs for days small: what is long past delays nothing."""
        if self._batch is None:
            self._settled = self.marks()[-HISTORY:]
            self._latest = max((unit.end for unit in self.units), default=self._latest)
            self._marks.clear()
            self.units.clear()
        for past in (self._events, self._works):
            if len(past) > 2 * HISTORY:
                for key in list(past)[:-HISTORY]:
                    del past[key]
                self._has_forgotten = True

    def _lane(self, key: int) -> int:
        lane = self._lane_of.get(key)
        if lane is None:
            lane = self._lane_of[key] = len(self.lanes)
            device = key >> 32
            self.lanes.append((device, key & 0xFFFFFFFF))
            self._free.append(0.0)
            self._queues.append(deque([0.0] * QUEUE_DEPTH, QUEUE_DEPTH))
            self._overlaps.append(self._overlap(device))
        return lane

    def _overlap(self, device: int) -> Overlap:
        return self._devices.setdefault(device, Overlap(self._costs.overlap_slowdown))

    def _price(self, whats: list[int]) -> None:
        signatures = self._tables.signatures
        missing = len(signatures) - len(self._durations)
        self._durations += [float("nan")] * missing
        self._launches += [0.0] * missing
        for what in whats:
            if what >= len(signatures):
                raise TapeError(f"signature {what} is named, but there are {len(signatures)}")
            if self._durations[what] != self._durations[what]:
                price = self._prices.operator(signatures[what])
                seconds: float = getattr(price, self._pick)
                self._durations[what] = -1.0 if price.kind == VIEW else seconds
                self._launches[what] = self._prices.launch_s(signatures[what], self._pick)

    def _call(self, what: int) -> tuple[Call, float]:
        """What a collective's signature says, and what it takes."""
        if what not in self._calls:
            if what >= len(self._tables.signatures):
                raise TapeError(f"signature {what} is named, but there are no more")
            text, groups = self._tables.signatures[what], self._tables.groups
            call = parse_call(text)
            if not 0 <= call.group < len(groups):
                raise TapeError(f"group {call.group} is named, but there are {len(groups)}: {text}")
            price = self._prices.collective(text, groups[call.group].ranks)
            self._calls[what] = call, getattr(price, self._pick)
        return self._calls[what]

    def _continues_batch(self, kind: int, batch: int) -> bool:
        return self._batch is not None and kind == k.COLLECTIVE and batch == self._batch[0]

    def _collective(self, index: int, lane: int) -> int:
        call, seconds = self._call(self._columns[2][index])
        work, batch = (int(column[index]) for column in self._arguments)
        groups = self._tables.groups
        if len(self._group_keys) < len(groups):
            self._group_keys = [self._meeting.number_of(key) for key in group_keys(groups)]
        group, key = groups[call.group], self._group_keys[call.group]
        part = Part(self._numbers[index], call, group, key, seconds)
        self.host_s += self._costs.collective_call_s
        base = self.host_s if call.on_host else max(self.host_s, self._free[lane])
        if batch and self._batch is not None:
            unit = self._batch[1]
            unit.parts.append(part)
            unit.base = max(unit.base, base)
        else:
            unit = Unit(self.rank, self.lanes[lane][0], "", [part], base, bool(batch))
            self.units.append(unit)
            self._batch = batch, unit
        self._works[work] = unit
        following = index + 1
        if batch:  # the last one of a batch sends it off; a later `feed` may have more of it
            if following == len(self._columns[0]):
                return _GO
            kind, other = self._columns[0][following], int(self._arguments[1][following])
            if self._continues_batch(kind, other):
                return _GO
        self.finish()
        self.waits = unit
        return _GO if unit.is_done else _PAUSE

    def _join(self, unit: Unit) -> None:
        """Send a unit off on its lane: a group's own, or a pair's for a transfer by itself."""
        part = unit.parts[0]
        call = part.call
        is_pair = call.is_transfer and not unit.is_batch
        peer = call.peer if is_pair else -1
        key = (unit.device, call.group, peer, call.on_host)
        if key not in self._comms:
            place = " on the host" if call.on_host else ""
            name = f"{part.group.label} with {peer}" if is_pair else part.group.label
            taken = {(of, lane.name) for (of, *_), lane in self._comms.items()}
            number = f" #{call.group}" if (unit.device, name + place) in taken else ""
            self._comms[key] = Lane(name + place + number)
        unit.lane = self._comms[key].name
        self._meeting.join(unit, self._comms[key], self._done)

    def _done(self, unit: Unit) -> None:
        if not unit.on_host:
            self._overlap(unit.device).add(unit.start, unit.end, self.host_s)

    def _work_wait(self, index: int, lane: int) -> int:
        work, with_host = (int(column[index]) for column in self._arguments)
        unit = self._works.get(work)
        if unit is None and self._has_forgotten:
            return _GO
        if unit is None:
            raise TapeError(f"record {self._numbers[index]} waits for work {work}; no call has it")
        if not unit.is_done:
            self.waits = unit
            return _AGAIN
        if with_host or unit.on_host:
            self.host_s = max(self.host_s, unit.end)
        if not unit.on_host:
            self._free[lane] = max(self._free[lane], unit.end)
        return _GO

    def _record(self, index: int, lane: int) -> int:
        self._events[int(self._arguments[0][index])] = max(self.host_s, self._free[lane])
        return _GO

    def _wait(self, index: int, lane: int) -> int:
        event = self._events.get(int(self._arguments[0][index]), 0.0)
        self._free[lane] = max(self._free[lane], event)
        return _GO

    def _sync_event(self, index: int, lane: int) -> int:
        event = self._events.get(int(self._arguments[0][index]), 0.0)
        self.host_s = max(self.host_s, event)
        return _GO

    def _sync_stream(self, index: int, lane: int) -> int:
        self.host_s = max(self.host_s, self._free[lane])
        return _GO

    def _sync_device(self, index: int, lane: int) -> int:
        device = self.lanes[lane][0]
        for key, comm in self._comms.items():
            if key[0] != device or key[3]:
                continue
            if comm.waiting:
                self.waits = comm.waiting[0]
                return _AGAIN
            self.host_s = max(self.host_s, comm.free)
        ends = zip(self.lanes, self._free, strict=True)
        self.host_s = max(self.host_s, *(end for (of, _), end in ends if of == device))
        return _GO

    def _mark(self, index: int, lane: int) -> int:
        what, place = self._columns[2][index], int(self._arguments[0][index])
        device = max(self.host_s, *self._free)
        record = self._numbers[index]
        self._marks.append((record, what, place, self.host_s, device, len(self.units)))
        return _GO

    def _host(self, index: int, lane: int) -> int:
        self.host_s += int(self._arguments[0][index]) * 1e-9
        return _GO

    def _readback(self, index: int, lane: int) -> int:
        self.host_s = max(self.host_s, self._free[lane]) + self._costs.readback_s
        return _GO
