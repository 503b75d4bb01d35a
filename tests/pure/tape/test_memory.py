"""Memory against sums by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tapes_by_hand import Hand

from offramp.tape import TapeError, kinds, measure_memory
from offramp.tape.memory import CURVE_POINTS


def one_step() -> Hand:
    """Weights, an activation and a temporary, their gradients, optimizer state; every life told
    by phases alone but for the weights."""
    hand = Hand(module="model.head")
    hand.alloc(1, 100).put(kinds.CATEGORY, what=1, a=1)
    hand.phase, hand.module = kinds.DATA, ""
    hand.alloc(2, 7)
    hand.phase, hand.module = kinds.FORWARD, "model.head"
    hand.alloc(3, 40).alloc(4, 11).free(4, 11).op(1.0)
    hand.phase = kinds.BACKWARD
    hand.op(1.0).alloc(5, 100).alloc(6, 13).free(6, 13).free(3, 40)
    hand.phase, hand.module = kinds.OPTIMIZER, ""
    hand.op(1.0).alloc(7, 200).alloc(8, 17).free(8, 17)
    hand.phase = kinds.OTHER
    hand.end_step().free(5, 100)
    return hand


def test_the_peak_and_what_held_it() -> None:
    memory = measure_memory(one_step().tape())
    assert memory.peak_bytes == 100 + 7 + 100 + 200 + 17
    assert memory.by_category == {
        "optimizer": 200,
        "parameters": 100,
        "gradients": 100,
        "temporary": 17,
        "other": 7,
    }
    assert memory.by_module == {"": 7 + 200 + 17, "model.head": 200}
    assert memory.end_bytes == 100 + 7 + 200
    assert memory.reserved_peak_bytes is None


def test_what_is_alive_when_backward_begins_is_an_activation() -> None:
    memory = measure_memory(one_step().tape())
    named = [kinds.CATEGORIES[number] for number in memory.blocks.category.tolist()]
    assert named == [
        "parameters",
        "other",
        "activations",
        "temporary",
        "gradients",
        "temporary",
        "optimizer",
        "temporary",
    ]


def test_recomputed_activations_are_activations() -> None:
    hand = Hand(phase=kinds.BACKWARD).op(1.0)
    hand.phase = kinds.RECOMPUTE
    hand.alloc(1, 5).alloc(2, 6).free(2, 6)
    hand.phase = kinds.BACKWARD
    hand.op(1.0).free(1, 5)
    named = [kinds.CATEGORIES[n] for n in measure_memory(hand.tape()).blocks.category.tolist()]
    assert named == ["activations", "temporary"]


def test_the_last_category_that_is_told_counts() -> None:
    hand = Hand().alloc(1, 5).put(kinds.CATEGORY, what=5, a=1).put(kinds.CATEGORY, what=6, a=1)
    assert measure_memory(hand.tape()).by_category == {"communication": 5}


def test_a_gradient_that_a_collective_takes_stays_a_gradient() -> None:
    hand = Hand().alloc(1, 5)
    for category in (6, 2, 6):
        hand.put(kinds.CATEGORY, what=category, a=1)
    assert measure_memory(hand.tape()).by_category == {"gradients": 5}


def test_what_a_collective_fills_is_an_activation_if_the_backward_pass_needs_it() -> None:
    hand = Hand(phase=kinds.FORWARD)
    for block in (1, 2):
        hand.alloc(block, block).put(kinds.CATEGORY, what=6, a=block)
    hand.free(1, 1)
    hand.phase = kinds.BACKWARD
    hand.op(1.0).free(2, 2)
    named = [kinds.CATEGORIES[n] for n in measure_memory(hand.tape()).blocks.category.tolist()]
    assert named == ["communication", "activations"]


def test_reserved_is_what_the_allocator_took() -> None:
    hand = Hand().put(kinds.RESERVE, a=64).alloc(1, 5).put(kinds.RESERVE, a=32)
    hand.put(kinds.UNRESERVE, a=64).put(kinds.RESERVE, a=8)
    assert measure_memory(hand.tape()).reserved_peak_bytes == 96
    assert measure_memory(hand.tape()).forced == 0


def test_turns_that_gave_back_for_want_of_memory_are_counted() -> None:
    hand = Hand().put(kinds.RESERVE, a=64).put(kinds.UNRESERVE, a=32, b=1)
    hand.put(kinds.UNRESERVE, a=16, b=1).put(kinds.RESERVE, a=8).put(kinds.UNRESERVE, a=8)
    hand.put(kinds.UNRESERVE, a=16, b=1)
    assert measure_memory(hand.tape()).forced == 2


def test_each_device_has_its_own_and_the_fullest_is_told() -> None:
    hand = Hand().alloc(1, 5)
    hand.rows.append((kinds.ALLOC, 0, 1, 0, 0, 0, 2, 9))
    memory = measure_memory(hand.tape())
    assert (memory.device, memory.peak_bytes) == (1, 9)
    assert measure_memory(hand.tape(), 0).peak_bytes == 5


def test_an_empty_tape_holds_nothing() -> None:
    memory = measure_memory(Hand().op(1.0).tape())
    assert (memory.peak_bytes, memory.by_category, len(memory.curve_bytes)) == (0, {}, 0)


def test_frees_of_blocks_from_before_the_tape_are_counted_not_subtracted() -> None:
    memory = measure_memory(Hand().free(9, 50).alloc(1, 5).tape())
    assert (memory.peak_bytes, memory.unknown_frees) == (5, 1)


@pytest.mark.parametrize(
    ("hand", "match"),
    [
        (Hand().alloc(1, 5).alloc(1, 5), "given out twice"),
        (Hand().alloc(1, 5).free(1, 5).free(1, 5), "record 2 gives back block 1"),
        (Hand().put(kinds.CATEGORY, what=7, a=1), "category 7"),
    ],
)
def test_what_cannot_be_is_refused(hand: Hand, match: str) -> None:
    with pytest.raises(TapeError, match=match):
        measure_memory(hand.tape())


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 30)), max_size=60))
def test_balanced_tapes_end_where_they_began(blocks: list[tuple[int, int]]) -> None:
    events = [(start, 0, n, size) for start, (size, _) in enumerate(blocks) for n in (start,)]
    events += [(n + life, 1, n, size) for n, (size, life) in enumerate(blocks)]
    hand, alive, peak = Hand(), 0, 0
    for _, is_free, block, size in sorted(events):
        hand.free(block, size) if is_free else hand.alloc(block, size)
        alive += -size if is_free else size
        peak = max(peak, alive)
    memory = measure_memory(hand.tape())
    assert memory.peak_bytes == peak
    assert memory.end_bytes == 0
    assert (memory.curve_bytes >= 0).all()
    assert sum(memory.by_category.values()) == peak == sum(memory.by_module.values())


def test_the_curve_is_short_and_keeps_the_peak_and_the_end() -> None:
    hand = Hand()
    for block in range(5000):
        hand.alloc(block, 1000 if block == 2222 else 1)
        if block % 3 and block != 2222:
            hand.free(block, 1)
    memory = measure_memory(hand.tape())
    assert len(memory.curve_bytes) <= CURVE_POINTS
    assert memory.curve_bytes.max() == memory.peak_bytes
    assert memory.curve_bytes[-1] == memory.end_bytes
