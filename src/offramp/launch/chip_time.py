"""The chip's clock inside a played program: what events, and on request `time`, read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from offramp.tape.clock import Clock
from offramp.tape.prices import PriceList
from offramp.tape.tape import Group

READING_NS = 1_000  # what a look at the clock takes, so that a program which waits for it goes on
_READERS = ("time", "perf_counter", "monotonic")


@dataclass
class _Tables:
    """The tape's tables as far as they are written."""

    signatures: list[str] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)


class ChipTime:
    """Replays the tape as it grows; `pull` brings what is new on it to `take`."""

    def __init__(self, prices: PriceList, rank: int, pull: Callable[[], None]) -> None:
        self._tables = _Tables()
        self._clock = Clock(self._tables, prices, rank=rank)
        self._pull = pull
        self._lock = threading.RLock()

    def take(self, signatures: list[str], groups: list[Group], records: bytes) -> None:
        """What is new on the tape."""
        with self._lock:
            self._tables.signatures += signatures
            self._tables.groups += groups
            if records:
                self._clock.feed(records)

    def event_s(self, event: int) -> float:
        """Seconds at which a recorded event is reached."""
        with self._lock:
            self._pull()
            return self._clock.event_s(event)

    def host_s(self) -> float:
        """Seconds that the host has taken so far."""
        with self._lock:
            self._pull()
            return self._clock.host_s

    def lead_time(self, note_host: Callable[[int], None]) -> None:
        """Make Python's clocks read the chip's from now on; `time.sleep` moves it on at once.

        note_host   notes on the tape that the host is busy, in nanoseconds

        Names that were taken out of `time` before keep the machine's clocks.
        """
        module: Any = time
        for name in _READERS:
            start_s = getattr(module, name)()

            def read(start_s: float = start_s) -> float:
                note_host(READING_NS)
                return start_s + self.host_s()

            setattr(module, name, read)
            setattr(module, f"{name}_ns", lambda read=read: round(read() * 1e9))
        module.sleep = lambda seconds: note_host(round(seconds * 1e9))
