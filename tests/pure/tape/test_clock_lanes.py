"""One rank's clock against closed forms. Times are sums of powers of two: equal, not close."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tapes_by_hand import FlatPrices, Hand, RingPrices

from offramp.tape import QUEUE_DEPTH, Clock, Group, PriceError, PriceList, TapeError, kinds, play
from offramp.tape.overlap import Overlap
from offramp.tape.prices import Pick

PAIR = [Group((0, 1), "dp")]


def clock_of(hand: Hand, **constants: float) -> Clock:
    clock = Clock(hand.tape(), PriceList(FlatPrices(**constants)), keep=True)
    clock.feed(hand.tape().records)
    return clock


def test_the_device_bounds_when_it_is_slower_than_the_host() -> None:
    hand = Hand()
    for _ in range(10):
        hand.op(1.0)
    clock = clock_of(hand, launch_s=0.25)
    assert clock.host_s == 10 * 0.25
    assert clock.lane_ends() == {"host": 2.5, "0:0": 0.25 + 10 * 1.0}


def test_the_host_bounds_when_launching_is_slower() -> None:
    hand = Hand()
    for _ in range(10):
        hand.op(0.125)
    assert clock_of(hand, launch_s=0.25).lane_ends() == {"host": 2.5, "0:0": 10 * 0.25 + 0.125}


def test_views_cost_the_host_only() -> None:
    clock = clock_of(Hand().op(5.0, kind="view").op(1.0), launch_s=0.25, view_s=0.5)
    assert clock.lane_ends() == {"host": 0.75, "0:0": 1.75}
    assert clock.spans[0] == [1]


class ListPrices(FlatPrices):
    """The host takes a second more for a list, between half and twice as long."""

    def launch(self, text: str) -> tuple[float, float, float]:
        s = 1.25 if "foreach" in text else 0.25
        return s, s / 2, s * 2


@pytest.mark.parametrize(("pick", "factor"), [("seconds", 1.0), ("low", 0.5), ("high", 2.0)])
def test_prices_may_know_what_each_operator_takes_the_host(pick: Pick, factor: float) -> None:
    tape = Hand().op(0.0).op(0.0, op="aten::_foreach_add_").op(0.0, kind="view").tape()
    clock = Clock(tape, PriceList(ListPrices(launch_s=99.0)), pick=pick)
    clock.feed(tape.records)
    assert clock.host_s == factor * (0.25 + 1.25 + 0.25)


def test_streams_run_beside_each_other_and_events_join_them() -> None:
    hand = Hand().op(4.0, stream=0).op(1.0, stream=7).record(1, 0).wait_event(1, 7).op(1.0, 7)
    clock = clock_of(hand)
    assert clock.event_s(1) == 4.0
    assert clock.lane_ends() == {"host": 0.0, "0:0": 4.0, "0:7": 5.0}


def test_an_event_on_an_idle_stream_happens_when_the_host_records_it() -> None:
    hand = Hand().op(1.0).put(kinds.HOST, a=4_000_000_000).record(9)
    assert clock_of(hand).event_s(9) == 4.0


def test_waiting_for_an_event_that_was_not_recorded_does_nothing() -> None:
    assert clock_of(Hand().op(1.0).wait_event(5).op(1.0)).lane_ends()["0:0"] == 2.0
    with pytest.raises(TapeError, match="event 5"):
        clock_of(Hand().op(1.0)).event_s(5)


def test_the_host_waits_for_events_streams_and_devices() -> None:
    hand = Hand().op(2.0).record(1).op(2.0).op(8.0, stream=3)
    for kind, expected in (
        (kinds.SYNC_EVENT, 2.0),
        (kinds.SYNC_STREAM, 4.0),
        (kinds.SYNC_DEVICE, 8.0),
    ):
        again = Hand(rows=list(hand.rows), signatures=list(hand.signatures))
        assert clock_of(again.put(kind, a=1)).host_s == expected
    hand.put(kinds.READBACK)
    assert clock_of(hand, readback_s=0.5).host_s == 4.5


def test_the_host_runs_ahead_by_the_depth_of_a_queue() -> None:
    hand = Hand()
    for _ in range(QUEUE_DEPTH + 3):
        hand.op(1.0)
    clock = clock_of(hand)
    # Launch number n (from 0) begins at n; number n may be queued when n - QUEUE_DEPTH begins.
    assert clock.host_s == 2.0
    assert clock.lane_ends()["0:0"] == QUEUE_DEPTH + 3


def test_prefetched_gathers_hide_behind_compute() -> None:
    """n layers of 4 s with gathers of 1 s, each called one layer ahead: 1 + 4 n."""
    hand = Hand(groups=PAIR)
    work = hand.call("all_gather", 1.0, stream=5)
    for layer in range(6):
        hand.wait(work)
        if layer < 5:
            work = hand.call("all_gather", 1.0, stream=5)
        hand.op(4.0)
    assert clock_of(hand).lane_ends()["0:0"] == 1.0 + 6 * 4.0


def test_gathers_longer_than_the_layers_set_the_pace() -> None:
    """Gathers of 4 s before layers of 1 s: 4 n + 1."""
    hand = Hand(groups=PAIR)
    work = hand.call("all_gather", 4.0, stream=5)
    for layer in range(6):
        hand.wait(work)
        if layer < 5:
            work = hand.call("all_gather", 4.0, stream=5)
        hand.op(1.0)
    assert clock_of(hand).lane_ends()["0:0"] == 6 * 4.0 + 1.0


def test_a_gather_called_where_it_is_needed_is_not_hidden() -> None:
    """The stream that computes calls and waits: n (1 + 4)."""
    hand = Hand(groups=PAIR)
    for _ in range(6):
        hand.wait(hand.call("all_gather", 1.0))
        hand.op(4.0)
    assert clock_of(hand).lane_ends()["0:0"] == 6 * 5.0


def test_a_group_has_one_lane_and_two_groups_have_two() -> None:
    hand = Hand(groups=[Group((0, 1), "dp"), Group((0, 2), "tp")])
    hand.call("all_reduce", 2.0)
    hand.call("all_reduce", 2.0)
    hand.call("all_reduce", 3.0, group=1)
    assert clock_of(hand).lane_ends() == {"host": 0.0, "0:0": 0.0, "0:dp": 4.0, "0:tp": 3.0}


def test_lanes_of_one_label_are_told_apart() -> None:
    hand = Hand(groups=[Group((0, 1), "6"), Group((0, 1), "9")])
    hand.call("all_reduce", 2.0)
    hand.call("all_reduce", 3.0, group=1)
    ends = clock_of(hand).lane_ends()
    assert ends == {"host": 0.0, "0:0": 0.0, "0:2 ranks": 2.0, "0:2 ranks #1": 3.0}


@pytest.mark.parametrize("n", [2, 4, 8])
def test_ring_all_reduce_takes_its_share_of_the_bytes(n: int) -> None:
    hand = Hand(groups=[Group(tuple(range(n)))])
    hand.wait(hand.call("all_reduce", 0.0, bytes=1024), host=True)
    clock = Clock(hand.tape(), PriceList(RingPrices()))
    clock.feed(hand.tape().records)
    assert clock.host_s == 2 * (n - 1) / n * 1024


def test_collectives_of_the_host_leave_the_streams_alone() -> None:
    hand = Hand(groups=PAIR).op(8.0)
    hand.wait(hand.call("broadcast", 1.0, on_host=True))
    assert clock_of(hand, collective_call_s=0.5).lane_ends() == {
        "host": 1.5,
        "0:0": 8.0,
        "0:dp on the host": 1.5,
    }


def test_compute_is_slower_beside_a_collective() -> None:
    """8 s of work, 2 s of them beside a collective of 4 s at half the pace: 8 + 2."""
    hand = Hand(groups=PAIR)
    hand.call("all_gather", 4.0, stream=5)
    hand.op(8.0)
    assert clock_of(hand, overlap_slowdown=2.0).lane_ends()["0:0"] == 10.0


@pytest.mark.parametrize(
    ("start", "seconds", "end"),
    [
        (0.0, 1.0, 1.0),  # before both
        (0.0, 3.0, 4.0),  # reaches 1 s of work into the first
        (2.0, 2.0, 6.0),  # all of the first
        (2.0, 3.0, 7.0),  # and the gap
        (0.0, 6.0, 8.0),  # 2 before, 2 inside the first, 2 in the gap: ends where the second begins
        (0.0, 7.0, 10.0),  # and 1 inside the second
        (20.0, 1.0, 21.0),  # after both
    ],
)
def test_overlap_is_a_closed_form(start: float, seconds: float, end: float) -> None:
    overlap = Overlap(2.0)
    overlap.add(2.0, 6.0, 0.0)
    overlap.add(8.0, 16.0, 0.0)
    assert overlap.end_of(start, seconds) == end
    inside = sum(max(0.0, min(end, e) - max(start, s)) for s, e in ((2.0, 6.0), (8.0, 16.0)))
    assert end - start == seconds + inside / 2


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=8),
    st.integers(0, 60),
    st.integers(0, 40),
)
def test_work_beside_any_intervals_is_conserved(
    spans: list[tuple[int, int]], start: int, work: int
) -> None:
    overlap = Overlap(2.0)
    for begin, length in spans:
        overlap.add(begin, begin + length, 0.0)
    end = overlap.end_of(start, work)
    covered = np.zeros(400, bool)  # half-second cells
    for begin, length in spans:
        covered[2 * begin : 2 * (begin + length)] = True
    done = 0.0
    cells = int(2 * (end - start))
    assert 2 * (end - start) == cells
    for cell in range(2 * start, 2 * start + cells):
        done += 0.25 if covered[cell] else 0.5
    assert done == work


def test_slower_than_alone_is_at_least_one() -> None:
    with pytest.raises(PriceError, match=r"0\.5"):
        PriceList(FlatPrices(overlap_slowdown=0.5))


@pytest.mark.parametrize(
    ("hand", "match"),
    [
        (Hand(signatures=['{"op":"x"}']).put(kinds.OP, what=1), "signature 1"),
        (Hand().put(kinds.WORK_WAIT, a=4), "work 4"),
        (Hand(signatures=["[]"]).put(kinds.COLLECTIVE), "not the signature of a collective"),
    ],
)
def test_records_that_cannot_be_are_refused(hand: Hand, match: str) -> None:
    with pytest.raises((TapeError, PriceError), match=match):
        clock_of(hand)


def test_a_group_that_is_not_there_is_named() -> None:
    hand = Hand()
    hand.call("all_reduce", 1.0, group=3)
    with pytest.raises(TapeError, match="group 3"):
        clock_of(hand)


STEPS = st.lists(
    st.tuples(st.sampled_from(["op", "view", "call", "wait", "event", "sync"]), st.integers(0, 3)),
    max_size=60,
)


def random_tape(steps: list[tuple[str, int]]) -> Hand:
    hand = Hand(groups=PAIR)
    work = event = 0
    for what, number in steps:
        if what == "op":
            hand.op(0.5 + number, stream=number)
        elif what == "view":
            hand.op(1.0, kind="view")
        elif what == "call":
            work = hand.call("all_reduce", 1.0 + number, stream=number)
        elif what == "wait" and work:
            hand.wait(work, stream=number, host=number == 3)
        elif what == "event":
            event += 1
            hand.record(event, number).wait_event(event, (number + 1) % 4)
        elif what == "sync":
            hand.put((kinds.SYNC_STREAM, kinds.SYNC_DEVICE, kinds.READBACK)[number % 3], number)
        hand.alloc(len(hand.rows), 8)
    return hand


@given(STEPS, st.integers(1, 7))
def test_feeding_in_pieces_is_feeding_at_once(steps: list[tuple[str, int]], piece: int) -> None:
    hand = random_tape(steps)
    records = hand.tape().records
    prices = PriceList(FlatPrices(launch_s=0.25, overlap_slowdown=1.5))
    whole, parts = (Clock(hand.tape(), prices, keep=True) for _ in range(2))
    whole.feed(records)
    for at in range(0, len(records), piece):
        parts.feed(records[at : at + piece].tobytes())
    ends = whole.lane_ends()
    assert {name: end for name, end in parts.lane_ends().items() if end} == {
        name: end for name, end in ends.items() if end
    }
    assert parts.spans == whole.spans
    assert parts.hosts == whole.hosts


@given(STEPS, st.integers(1, 7))
def test_a_clock_that_keeps_nothing_tells_the_same(
    steps: list[tuple[str, int]], piece: int
) -> None:
    hand = random_tape(steps).mark("m", kinds.INSTANT).op(1.0).mark("m", kinds.INSTANT)
    records = hand.tape().records
    prices = PriceList(FlatPrices(launch_s=0.25, overlap_slowdown=1.5))
    kept, lean = Clock(hand.tape(), prices, keep=True), Clock(hand.tape(), prices)
    kept.feed(records)
    for at in range(0, len(records), piece):
        lean.feed(records[at : at + piece])
    assert lean.marks() == kept.marks()
    assert lean.host_s == kept.host_s
    assert not lean.units
    assert not lean.spans[0]


def test_a_long_run_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.tape.clock.HISTORY", 4)
    hand = Hand(groups=PAIR)
    for event in range(1, 30):
        hand.op(1.0).record(event).wait(hand.call("all_reduce", 1.0), host=True)
    clock = Clock(hand.tape(), PriceList(FlatPrices()))
    clock.feed(hand.tape().records)
    assert clock.event_s(29) == 28 * 2.0 + 1.0
    with pytest.raises(TapeError, match="event 1 "):
        clock.event_s(1)
    clock.feed(Hand().wait(1).tape().records)
    assert clock.host_s == 29 * 2.0


@given(STEPS)
def test_time_goes_forward_and_a_stream_does_one_thing_at_a_time(
    steps: list[tuple[str, int]],
) -> None:
    tape = random_tape(steps).tape()
    (played,) = play([tape], FlatPrices(launch_s=0.25, overlap_slowdown=1.5))
    assert (np.diff(played.host_at) >= 0).all()
    for stream in range(4):
        mine = tape.records["stream"][played.ops_record] == stream
        starts, ends = played.ops_start[mine], played.ops_end[mine]
        assert (starts[1:] >= ends[:-1]).all()
        assert (ends >= starts).all()
    units = played.units
    assert all(a.end <= b.start for a, b in pairwise(units))


class HostItself(FlatPrices):
    """A host that computes operators itself."""

    is_synchronous = True


def test_a_host_that_computes_itself_goes_on_when_the_operator_has_ended() -> None:
    hand = Hand().op(1.0).op(2.0, stream=3).op(5.0, kind="view").op(4.0)
    clock = Clock(hand.tape(), PriceList(HostItself(launch_s=0.25, view_s=0.5)), keep=True)
    clock.feed(hand.tape().records)
    assert clock.host_s == 0.25 + 1 + 0.25 + 2 + 0.5 + 0.25 + 4
    assert clock.spans[1] == [0.25, 1.5, 4.25]  # none beside another, on any stream
