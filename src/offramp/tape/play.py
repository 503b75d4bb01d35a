"""Several ranks on one clock: those that are played wait for each other, the rest is mirrored."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offramp.tape.clock import Clock, Mark
from offramp.tape.meeting import Meeting, Unit
from offramp.tape.prices import Pick, PriceList, Prices
from offramp.tape.tape import Tape, TapeError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class DeadlockError(TapeError):
    """Every rank that is played waits for another one."""


@dataclass(frozen=True, slots=True)
class Played:
    """One rank's tape on the clock; seconds since the begin, records by their number.

    `ops_record`, `ops_start`, `ops_end`: each operator that ran on the chip, in the order of calls.
    `units`: its collectives and batches. `host_record`, `host_at`: where the host was after each
    record of the clock. Only `marks` and `units` are there where spans were not kept.
    """

    tape: Tape
    units: list[Unit]
    marks: list[Mark]
    ops_record: Ints
    ops_start: Floats
    ops_end: Floats
    host_record: Ints
    host_at: Floats
    end_s: float

    def host_times(self, records: Ints) -> Floats:
        """When the host was at each of `records`, those of memory included."""
        if not len(self.host_at):
            return np.zeros(len(records))
        place = np.searchsorted(self.host_record, records, side="right") - 1
        return np.where(place < 0, 0.0, self.host_at[np.maximum(place, 0)])


def play(
    tapes: Sequence[Tape],
    prices: Prices | PriceList,
    pick: Pick = "seconds",
    *,
    keep: bool = True,
) -> list[Played]:
    """Replay `tapes` together, each of another rank; the answer is in their order.

    A rank stops where it calls something that a peer is not ready for. Where all have stopped,
    they go on past calls that nothing waits for yet, as the programs would.

    Raises DeadlockError where everybody waits, naming ranks and calls; TapeError where tapes do
    not fit together.
    """
    ranks = [tape.rank for tape in tapes]
    if len(set(ranks)) != len(ranks):
        raise TapeError(f"each tape is of another rank; got ranks {ranks}")
    book = prices if isinstance(prices, PriceList) else PriceList(prices)
    meeting = Meeting(ranks)
    clocks = [
        Clock(tape, book.of(tape.rank), pick=pick, keep=keep, rank=tape.rank, meeting=meeting)
        for tape in tapes
    ]
    for clock, tape in zip(clocks, tapes, strict=True):
        clock.load(tape.records)
    with _no_collection():
        _replay(clocks)
    return [_played(tape, clock) for tape, clock in zip(tapes, clocks, strict=True)]


@contextmanager
def _no_collection() -> Iterator[None]:
    """A replay makes many objects and no cycles: looking for those takes half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _replay(clocks: list[Clock]) -> None:
    running = sorted(clocks, key=lambda clock: clock.rank)  # whatever the order of tapes
    while running:
        able = [clock for clock in running if clock.waits is None or clock.waits.is_done]
        able = able or [clock for clock in running if clock.can_go_on][:1]
        if not able:
            raise DeadlockError(_explain(clocks, running))
        for clock in able:
            if clock.run():
                clock.finish()
                running.remove(clock)
    late = [clock for clock in clocks if any(not unit.is_done for unit in clock.units)]
    if late:
        raise DeadlockError(_explain(clocks, late))


def _explain(clocks: list[Clock], waiting: list[Clock]) -> str:
    lines = []
    for clock in waiting:
        unit = next(unit for unit in clock.units if not unit.is_done)
        lines.append(f"rank {clock.rank} in {unit}")
    ended = [str(clock.rank) for clock in clocks if clock not in waiting]
    rest = f"; ended: rank {', '.join(ended)}" if ended else ""
    return f"the ranks wait for each other and nobody can go on: {'; '.join(lines)}{rest}"


def _played(tape: Tape, clock: Clock) -> Played:
    records, starts, ends = clock.spans
    host_record, host_at = clock.hosts
    return Played(
        tape,
        clock.units,
        clock.marks(),
        np.array(records, np.int64),
        np.array(starts, np.float64),
        np.array(ends, np.float64),
        np.array(host_record, np.int64),
        np.array(host_at, np.float64),
        max(clock.lane_ends().values()),
    )
