"""Steps, splits, modules, traces and the summary, on tapes whose figures are known."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tapes_by_hand import FlatPrices, Hand

from offramp.tape import (
    Group,
    PriceList,
    Tape,
    TapeError,
    break_down,
    find_steps,
    kinds,
    play,
    split,
    summarize,
    to_json,
    write_trace,
)


def train(steps: int = 4, rank: int = 0, first_s: float = 8.0) -> Hand:
    """Steps of 1 + 2 + 0.5 s of compute and 1 s of exposed all-reduce; a long first one."""
    hand = Hand(rank=rank, groups=[Group((0, 1), "dp")])
    for step in range(steps):
        hand.phase, hand.module = kinds.FORWARD, "model.layers.0.mlp"
        if step == 0:
            hand.op(first_s, op="aten::normal_", kind="memory")
        hand.op(1.0, flops=100.0, low=0.5, high=2.0)
        hand.phase = kinds.BACKWARD
        hand.op(2.0, kind="attention", op="aten::sdpa", flops=200.0)
        hand.wait(hand.call("all_reduce", 1.0))
        hand.phase, hand.module = kinds.OPTIMIZER, ""
        hand.op(0.5, kind="memory", op="aten::_foreach_add_")
        hand.put(kinds.READBACK, what=hand.name("item"))
        hand.phase = kinds.OTHER
        hand.end_step()
    return hand


def test_the_first_step_is_warm_up() -> None:
    tape = train().tape()
    steps = find_steps([tape])
    assert (steps.found, steps.first, steps.measured, steps.is_stable) == (4, 1, 3, True)
    assert steps.bounds(play([tape], FlatPrices())).tolist() == [12.5, 17.0, 21.5, 26.0]


def test_steps_before_the_pattern_repeats_are_warm_up() -> None:
    hand = Hand()
    for size in (4, 3, 2, 1, 1, 1):
        hand.op(1.0, op=f"aten::op{size}").end_step()
    steps = find_steps([hand.tape()])
    assert (steps.first, steps.measured, steps.is_stable) == (3, 3, True)


def test_a_learning_rate_that_moves_makes_no_other_step() -> None:
    hand = Hand()
    for rate in (0.5, 0.25, 0.125):
        hand.op(1.0, value=rate).end_step()
    assert len(hand.signatures) == 3
    assert find_steps([hand.tape()]).is_stable


def test_steps_that_never_repeat_are_all_measured_but_the_first() -> None:
    hand = Hand()
    for size in (4, 3, 2):
        hand.op(1.0, op=f"aten::op{size}").end_step()
    steps = find_steps([hand.tape()])
    assert (steps.first, steps.measured, steps.is_stable) == (1, 2, False)


def test_optimizers_that_step_in_a_row_end_one_step() -> None:
    hand = Hand()
    for _ in range(3):
        hand.phase = kinds.FORWARD
        hand.op(1.0)
        hand.phase = kinds.OPTIMIZER
        hand.op(0.5).end_step().op(0.25).end_step()
    steps = find_steps([hand.tape()])
    assert steps.found == 3
    assert np.diff(steps.bounds(play([hand.tape()], FlatPrices()))).tolist() == [1.75, 1.75]


def test_backward_passes_are_steps_only_where_no_optimizer_steps() -> None:
    hand = Hand(phase=kinds.FORWARD)
    for _ in range(3):
        hand.op(1.0).mark(kinds.BACKWARD_MARK, kinds.END)
    assert find_steps([hand.tape()]).found == 3
    assert find_steps([hand.op(1.0).end_step().op(1.0).end_step().tape()]).found == 2


def test_an_optimizer_that_makes_its_state_first_ends_no_step() -> None:
    hand = Hand(phase=kinds.OPTIMIZER).op(1.0).end_step()
    for _ in range(2):
        hand.phase = kinds.FORWARD
        hand.op(1.0)
        hand.phase = kinds.OPTIMIZER
        hand.op(0.5).end_step()
    assert find_steps([hand.tape()]).found == 2


@pytest.mark.parametrize(
    ("ranks", "name", "label"),
    [
        ((0, 1, 2, 3), "", "4 ranks"),
        ((0, 8, 16), "12809", "3 ranks at a stride of 8"),
        ((0, 1, 5), "7", "3 ranks"),
        ((0, 8), "dp", "dp"),
    ],
)
def test_a_group_is_called_by_its_name_or_its_ranks(
    ranks: tuple[int, ...], name: str, label: str
) -> None:
    assert Group(ranks, name).label == label


@pytest.mark.parametrize("ends", [0, 1])
def test_a_program_without_a_second_step_is_taken_whole(ends: int) -> None:
    hand = Hand().op(3.0)
    for _ in range(ends):
        hand.end_step()
    summary = summarize([hand.tape()], FlatPrices())
    assert summary["step_s"]["mid"] == 3.0
    assert summary["steps"] | {"each_s": None} == {
        "found": ends,
        "measured": 1,
        "warm_up": 0,
        "is_stable": False,
        "is_whole": True,
        "each_s": None,
    }


def test_no_tape_is_an_error() -> None:
    with pytest.raises(TapeError, match="no tape"):
        summarize([], FlatPrices())


def test_a_step_of_several_ranks_ends_with_the_last() -> None:
    tapes = [train(rank=0).tape(), train(rank=1, first_s=10.0).tape()]
    steps = find_steps(tapes)
    assert steps.bounds(play(tapes, FlatPrices())).tolist() == [14.5, 19.0, 23.5, 28.0]


def test_the_summary_of_a_known_step() -> None:
    summary = summarize([train().tape()], FlatPrices(), peak_flops=1000.0, capacity_bytes=1 << 30)
    assert summary["step_s"] == {"low": 4.0, "mid": 4.5, "high": 5.5}
    assert summary["split"] == {
        "compute_s": {"matmul": 1.0, "attention": 2.0, "memory": 0.5, "copy": 0.0},
        "exposed_communication_s": {"dp": 1.0},
        "bubble_s": 0.0,
        "host_s": 0.0,
        "idle_s": 0.0,
    }
    assert summary["flops"] == 300.0
    assert summary["mfu"] == 300.0 / 4.5 / 1000.0
    (rank,) = summary["ranks"]
    assert rank["collectives"] == [
        {"group": "dp", "name": "all_reduce", "count": 1.0, "bytes": 8.0}
        | {"seconds": 1.0, "exposed_s": 1.0}
    ]
    assert rank["host_synchronizations"] == {"item": 1.0}
    assert rank["phases"] == {"forward": 1.0, "backward": 2.0, "optimizer": 0.5}
    assert rank["operators"][0] == {
        "name": "aten::sdpa",
        "kind": "attention",
        "count": 1.0,
        "seconds": 2.0,
        "flops": 200.0,
        "bytes": 8.0,
    }
    assert rank["memory"]["capacity_bytes"] == 1 << 30
    assert summary["memory"] == {"rank": 0, **rank["memory"]}


def test_capacity_is_what_the_tape_says_unless_it_is_given() -> None:
    hand = Hand(header={"capacity_bytes": 64}).op(1.0)
    assert summarize([hand.tape()], FlatPrices())["memory"]["capacity_bytes"] == 64
    given = summarize([hand.tape()], FlatPrices(), capacity_bytes=32)
    assert given["memory"]["capacity_bytes"] == 32


def test_what_was_played_before_is_not_played_again() -> None:
    tapes = [train(rank=rank).tape() for rank in range(2)]
    prices = PriceList(FlatPrices(launch_s=1e-6))
    played = play(tapes, prices)
    assert summarize(tapes, prices, played=played) == summarize(tapes, prices)


def test_a_peak_rate_is_positive() -> None:
    with pytest.raises(TapeError, match="0 FLOP/s"):
        summarize([train().tape()], FlatPrices(), peak_flops=0)


def test_modules_count_what_is_below_them() -> None:
    hand = Hand(module="a").op(1.0)
    hand.module = "a.b"
    hand.op(2.0).op(2.0)
    hand.module = "a.b.c"
    hand.op(4.0)
    hand.module = ""
    hand.op(8.0)
    prices = PriceList(FlatPrices())
    (played,) = play([hand.tape()], prices)
    rows = {row.name: row for row in break_down(played, prices).modules}
    assert {name: (row.calls, row.self_s, row.total_s) for name, row in rows.items()} == {
        "": (1, 8.0, 17.0),
        "a": (1, 1.0, 9.0),
        "a.b": (2, 4.0, 8.0),
        "a.b.c": (1, 4.0, 4.0),
    }


def test_a_launch_bound_stretch_is_the_hosts() -> None:
    hand = Hand()
    for _ in range(4):
        hand.op(0.25)
    prices = PriceList(FlatPrices(launch_s=1.0))
    (played,) = play([hand.tape()], prices)
    parts = split(played, prices, np.array([0.0, 5.0]))
    assert parts.compute["matmul"].tolist() == [1.0]
    assert parts.host.tolist() == [1.0 + 3 * 0.75]
    assert parts.idle.tolist() == [0.75]


def test_hidden_communication_is_not_exposed() -> None:
    hand = Hand(groups=[Group((0, 1), "dp")])
    hand.call("all_gather", 3.0, stream=5)
    hand.op(2.0)
    prices = PriceList(FlatPrices())
    (played,) = play([hand.tape()], prices)
    parts = split(played, prices, np.array([0.0, 3.0]))
    assert parts.compute["matmul"].tolist() == [2.0]
    assert parts.exposed["dp", "all_gather"].tolist() == [1.0]


EVENTS = st.lists(
    st.tuples(st.sampled_from(["op", "call", "wait", "step", "host"]), st.integers(0, 3)),
    max_size=40,
)


def random_tapes(events: list[tuple[str, int]], ranks: int = 2) -> list[Tape]:
    tapes = []
    for rank in range(ranks):
        hand = Hand(rank=rank, groups=[Group(tuple(range(ranks)), "dp")], phase=kinds.FORWARD)
        work = 0
        for what, number in events:
            if what == "op":
                kind = ("matmul", "attention", "memory", "copy")[number]
                s = 0.1 + number + rank
                hand.op(s, stream=number % 2, kind=kind, low=s / 2, high=s * 2)
            elif what == "call":
                work = hand.call("all_reduce", 1.3, stream=number % 2)
            elif what == "wait" and work:
                hand.wait(work, stream=number % 2, host=number > 1)
            elif what == "step":
                hand.end_step()
            elif what == "host":
                hand.put(kinds.HOST, a=number * 700_000_000)
        tapes.append(hand.tape())
    return tapes


@settings(deadline=None)
@given(EVENTS)
def test_parts_sum_to_the_step_and_the_interval_holds_it(events: list[tuple[str, int]]) -> None:
    tapes = random_tapes(events)
    prices = PriceList(FlatPrices(launch_s=0.01, overlap_slowdown=1.5))
    steps = find_steps(tapes)
    played = play(tapes, prices)
    bounds = steps.bounds(played)
    for each in played:
        parts = split(each, prices, bounds)
        assert parts.total() == pytest.approx(np.diff(bounds), rel=1e-9, abs=1e-9)
        assert min(part.min() for part in (parts.bubble, parts.host, parts.idle)) >= 0
    found = summarize(tapes, FlatPrices(launch_s=0.01, overlap_slowdown=1.5))["step_s"]
    assert found["low"] <= found["mid"] <= found["high"]


def test_the_same_tapes_give_the_same_bytes(tmp_path: Path) -> None:
    texts, traces = [], []
    for number in range(2):
        tapes = [train(rank=rank).tape() for rank in range(2)]
        texts.append(to_json(summarize(tapes, FlatPrices(launch_s=1e-6), peak_flops=1e12)))
        prices = PriceList(FlatPrices(launch_s=1e-6))
        path = tmp_path / f"{number}.json.gz"
        write_trace(path, play(tapes, prices), prices)
        traces.append(path.read_bytes())
    assert texts[0] == texts[1]
    assert traces[0] == traces[1]
    assert json.loads(texts[0])["schema"] == 1


def read_trace(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_a_trace_has_the_structure_of_its_format(tmp_path: Path, name: str) -> None:
    hand = train(2)
    hand.alloc(1, 64).put(kinds.RESERVE, a=128).mark("backward", kinds.BEGIN)
    hand.mark("backward", kinds.END)
    tapes = [hand.tape(), train(2, rank=1, first_s=9.0).tape()]
    prices = PriceList(FlatPrices())
    write_trace(tmp_path / name, play(tapes, prices), prices, {"chip": "test"})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    trace = read_trace(tmp_path / name)
    assert trace["otherData"] == {"chip": "test", "clock": "chip", "memory": "bytes", "time": "us"}
    events = trace["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "E", "B", "C"}
    threads = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    assert {e["args"]["name"] for e in events if e["name"] == "thread_name"} == {
        "host",
        "device 0 stream 0",
        "device 0 dp",
    }
    for event in events:
        assert isinstance(event["pid"], int)
        assert event["pid"] in (0, 1)
        if event["ph"] == "X":
            assert event["dur"] >= 0
            assert event["ts"] >= 0
            assert (event["pid"], event["tid"]) in threads
    spans = [e for e in events if e["ph"] == "X" and e["pid"] == 0]
    assert sum(e["dur"] for e in spans if e["cat"] == "attention") == 2 * 2.0e6
    assert sum(e["dur"] for e in spans if e["cat"] == "bubble") == 1.0e6
    assert {e["args"]["module"] for e in spans if e["cat"] == "attention"} == {"model.layers.0.mlp"}


def test_a_trace_that_fails_leaves_nothing(tmp_path: Path) -> None:
    prices = PriceList(FlatPrices())
    (played,) = play([train(2).tape()], prices)
    broken = replace(played, tape=replace(played.tape, signatures=["{"] * 9))
    with pytest.raises(ValueError, match="not the signature"):
        write_trace(tmp_path / "trace.json", [broken], prices)
    assert list(tmp_path.iterdir()) == []


def test_prices_are_asked_for_once() -> None:
    prices = FlatPrices()
    summarize([train(rank=rank).tape() for rank in range(2)], prices)
    assert prices.asked == 4  # one of each signature, for both ranks and three replays
