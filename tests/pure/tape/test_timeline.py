"""Lanes to draw: every span where there is room, sums kept where short ones are merged."""

from __future__ import annotations

import numpy as np
import pytest
from tapes_by_hand import FlatPrices, Hand

from offramp.tape import Group, PriceList, Tape, kinds, play
from offramp.tape.held import measure_held
from offramp.tape.memory import measure_memory
from offramp.tape.modules import ModuleTime, pattern_of, tree
from offramp.tape.timeline import Timeline, draw_timeline, layer_of


def drawn(tapes: list[Tape], most: int = 1000, **prices: float) -> Timeline:
    book = PriceList(FlatPrices(**prices))
    played = play(tapes, book)
    return draw_timeline(played, book, 0.0, max(each.end_s for each in played), most)


def test_every_span_where_there_is_room() -> None:
    hand = Hand()
    hand.phase, hand.module = kinds.FORWARD, "layers.0.mlp"
    hand.op(1.0).op(2.0)
    hand.module = "layers.1.mlp"
    hand.op(3.0, kind="memory", op="aten::add.Tensor")
    lanes = {lane.name: lane for lane in drawn([hand.tape()], launch_s=0.25).lanes}
    stream = lanes["stream 0"]
    assert stream.start.tolist() == [0.25, 1.25, 3.25]
    assert stream.end.tolist() == [1.25, 3.25, 6.25]
    assert stream.classes == ["matmul", "matmul", "memory"]
    assert stream.words[2] == "add\n3 s, memory\nforward\nlayers.1.mlp"
    assert lanes["layers"].end.tolist() == [3.25, 6.25]
    assert lanes["layers"].words[0] == "layers.0\n2 operators\n3 s, forward"
    assert lanes["host"].end.tolist() == [0.75]
    assert lanes["host"].words == ["3 calls\n750 ms, forward"]


def test_a_pause_stays_open() -> None:
    """The host is busy for 5 s between two operators of one layer: two spans."""
    hand = Hand().op(1.0)
    hand.put(kinds.HOST, a=6 * 10**9).op(1.0)
    lanes = {lane.name: lane for lane in drawn([hand.tape()]).lanes}
    assert lanes["layers"].start.tolist() == [0.0, 6.0]
    assert lanes["host"].classes == ["host's own work"]


def test_waiting_for_the_chip_and_for_a_peer() -> None:
    def rank(number: int, seconds: float) -> Tape:
        hand = Hand(rank=number, groups=[Group((0, 1))]).op(seconds)
        hand.wait(hand.call("all_reduce", 1.0), host=True)
        return hand.tape()

    found = {(lane.rank, lane.name): lane for lane in drawn([rank(0, 1.0), rank(1, 3.0)]).lanes}
    calls = found[0, "2 ranks"]
    assert calls.classes == ["waits for a peer", "communication"]
    assert list(zip(calls.start.tolist(), calls.end.tolist(), strict=True)) == [(1, 3), (3, 4)]
    assert found[1, "2 ranks"].classes == ["communication"]
    assert found[0, "host"].classes == ["host waits"]


def test_a_full_queue_holds_the_host() -> None:
    hand = Hand()
    for _ in range(1026):
        hand.op(1.0)
    lanes = {lane.name: lane for lane in drawn([hand.tape()], 10_000, launch_s=1e-6).lanes}
    assert lanes["host"].classes == ["other", "host waits"]
    # The last launch waits until the second operator begins.
    assert lanes["host"].end.tolist() == pytest.approx([1026e-6, 1 + 1e-6])


def test_short_spans_are_merged_and_counted() -> None:
    """10,000 operators, of which matmuls take two thirds of the time, as at most 100 spans."""
    hand = Hand()
    for _ in range(5000):
        hand.op(2e-3).op(1e-3, kind="memory", op="aten::add.Tensor")
    whole = drawn([hand.tape()], 100_000)
    assert not whole.resolution_s
    few = drawn([hand.tape()], 300)
    (stream,) = [lane for lane in few.lanes if lane.name == "stream 0"]
    assert few.resolution_s > 3e-3
    assert sum(len(lane.start) for lane in few.lanes) <= 300
    assert stream.merged == 10_000
    assert set(stream.classes) == {"matmul"}
    assert (stream.end - stream.start).sum() == pytest.approx(15.0)
    assert (stream.start[1:] >= stream.end[:-1] - 1e-9).all()
    assert "operators, 100% busy: mm, add" in stream.words[1]


def test_a_long_span_is_not_merged() -> None:
    hand = Hand()
    for _ in range(1000):
        hand.op(1e-3)
    hand.op(9.0, kind="memory", op="aten::add.Tensor")
    (stream,) = [lane for lane in drawn([hand.tape()], 40).lanes if lane.name == "stream 0"]
    assert stream.classes[-1] == "memory"
    assert stream.end[-1] - stream.start[-1] == pytest.approx(9.0)


@pytest.mark.parametrize(
    ("module", "layer", "pattern"),
    [
        ("model.layers.3.mlp.up", "model.layers.3", "model.layers.*.mlp.up"),
        ("h.1.experts.7", "h.1", "h.*.experts.*"),
        ("model.norm.weight", "model.norm", "model.norm.weight"),
        ("", "", ""),
    ],
)
def test_layers_and_patterns(module: str, layer: str, pattern: str) -> None:
    assert layer_of(module) == layer
    assert pattern_of(module) == pattern


def test_the_tree_sums_what_is_below() -> None:
    rows = [("a.0.x", 1.0), ("a.1.x", 2.0), ("a.1", 4.0), ("", 8.0)]
    found = tree(ModuleTime(name, 1, own, 0.0) for name, own in rows)
    assert found == {"": 15.0, "a": 7.0, "a.*": 7.0, "a.*.x": 3.0}


def test_what_is_held_sums_to_what_is_allocated() -> None:
    hand = Hand()
    hand.phase, hand.module = kinds.FORWARD, "layers.0"
    hand.alloc(1, 100).op(1.0)
    hand.module = "layers.1"
    hand.alloc(2, 50).op(1.0).free(2, 50)
    hand.phase = kinds.BACKWARD
    hand.alloc(3, 70).op(1.0).free(1, 100)
    hand.phase = kinds.OPTIMIZER
    hand.mark(kinds.OPTIMIZER_MARK, kinds.BEGIN).op(1.0).end_step().free(3, 70)
    tape = hand.tape()
    (played,) = play([tape], FlatPrices(launch_s=0.5))
    held, memory = measure_held(played), measure_memory(tape)
    total = np.sum(list(held.by_category.values()), axis=0)
    assert total.tolist() == memory.curve_bytes.tolist()
    assert held.peak_bytes == memory.peak_bytes == 170
    assert held.peak_modules == [("layers.*", "activations", 100), ("layers.*", "gradients", 70)]
    assert held.peak_s == 1.0  # after two launches
    assert held.steps_s.tolist() == [2.0]
    assert not len(held.reserved)
