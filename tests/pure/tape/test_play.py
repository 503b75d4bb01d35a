"""Ranks that are played together, against closed forms of schedules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tapes_by_hand import FlatPrices, Hand

from offramp.tape import DeadlockError, Group, Price, PriceList, TapeError, play
from offramp.tape.prices import RankPrices
from offramp.tape.split import split
from offramp.tape.summary import summarize
from offramp.tape.tape import Tape

FORWARD_S, BACKWARD_S = 1.0, 2.0


def pipeline(stages: int, batches: int, transfer_s: float = 0.0) -> list[Tape]:
    """1F1B as `torch.distributed.pipelining` runs it: what is sent and received is one batch."""
    world = Group(tuple(range(stages)), "pp")
    tapes = []
    for stage in range(stages):
        hand = Hand(rank=stage, groups=[world])
        one_by_one = Batches(hand, transfer_s)
        warm = min(batches, stages - stage)
        last = stage == stages - 1
        for _ in range(warm - 1):
            one_by_one.move([("recv", stage - 1)] * (stage > 0))
            hand.op(FORWARD_S)
            one_by_one.move([("send", stage + 1)] * (not last))
        sending: list[tuple[str, int]] = []
        for batch in range(warm - 1, batches):
            one_by_one.move([("recv", stage - 1)] * (stage > 0))
            hand.op(FORWARD_S)
            both = [("send", stage + 1), ("recv", stage + 1)] * (not last)
            one_by_one.move(both)
            hand.op(BACKWARD_S)
            sending = [("send", stage - 1)] * (stage > 0)
            if batch < batches - 1 and sending:
                # A gradient goes out while the next activation comes in.
                one_by_one.move([*sending, ("recv", stage - 1)])
                sending = []
                one_by_one.received = True
        one_by_one.move(sending)
        for _ in range(warm - 1):
            one_by_one.move([("recv", stage + 1)] * (not last))
            hand.op(BACKWARD_S)
            one_by_one.move([("send", stage - 1)] * (stage > 0))
        tapes.append(hand.end_step().tape())
    return tapes


class Batches:
    """Transfers in batches; a receive that came early is not asked for again."""

    def __init__(self, hand: Hand, seconds: float) -> None:
        self.hand, self.seconds = hand, seconds
        self.number = 0
        self.received = False

    def move(self, calls: list[tuple[str, int]]) -> None:
        if calls and self.received and calls == [("recv", calls[0][1])]:
            self.received = False
            return
        if not calls:
            return
        self.number += 1
        works = [
            self.hand.call(name, self.seconds, batch=self.number, peer=peer) for name, peer in calls
        ]
        for work in works:
            self.hand.wait(work)


@pytest.mark.parametrize("stages", [1, 2, 4, 8])
@pytest.mark.parametrize("batches", [8, 16])
def test_1f1b_has_the_bubble_of_its_closed_form(stages: int, batches: int) -> None:
    """(p - 1) / (m + p - 1) of a step in which each stage works m (forward + backward)."""
    played = play(pipeline(stages, batches), FlatPrices())
    step = (batches + stages - 1) * (FORWARD_S + BACKWARD_S)
    assert max(each.end_s for each in played) == step
    for each in played:
        work = float((each.ops_end - each.ops_start).sum())
        assert work == batches * (FORWARD_S + BACKWARD_S)
        assert (step - work) / step == (stages - 1) / (batches + stages - 1)


def test_the_bubble_is_named_so() -> None:
    prices = PriceList(FlatPrices())
    played = play(pipeline(4, 8), prices)
    step = 11 * 3.0
    for stage, each in enumerate(played):
        parts = split(each, prices, np.array([0.0, step]))
        assert parts.compute["matmul"][0] == 24.0
        assert parts.bubble[0] + parts.idle[0] + parts.host[0] == 9.0
        assert parts.idle[0] == stage * BACKWARD_S  # what follows the last backward pass
        assert parts.bubble[0] == 9.0 - stage * BACKWARD_S
        assert parts.total()[0] == step


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_interleaving_divides_the_bubble(chunks: int) -> None:
    """Forward only, p stages of v chunks, m = p batches: m f + (p - 1) f / v."""
    stages = 4
    group = Group(tuple(range(stages)), "pp")
    tapes = []
    for stage in range(stages):
        hand = Hand(rank=stage, groups=[group])
        for chunk in range(chunks):
            for _ in range(stages):
                first = stage == 0 and chunk == 0
                last = stage == stages - 1 and chunk == chunks - 1
                if not first:
                    hand.wait(hand.call("recv", 0.0, peer=(stage - 1) % stages))
                hand.op(FORWARD_S / chunks)
                if not last:
                    hand.call("send", 0.0, peer=(stage + 1) % stages)
        tapes.append(hand.tape())
    played = play(tapes, FlatPrices())
    end = max(each.end_s for each in played)
    assert end == stages * FORWARD_S + (stages - 1) * FORWARD_S / chunks


def test_a_batch_goes_both_ways_at_once() -> None:
    tapes = []
    for rank in range(2):
        hand = Hand(rank=rank, groups=[Group((0, 1))]).op(1.0 + rank)
        works = [hand.call(name, 4.0, batch=1, peer=1 - rank) for name in ("send", "recv")]
        for work in works:
            hand.wait(work)
        tapes.append(hand.op(1.0).tape())
    assert [each.end_s for each in play(tapes, FlatPrices())] == [2.0 + 4.0 + 1.0] * 2


def test_what_goes_the_same_way_in_a_batch_shares_the_link() -> None:
    """Rank 0 sends 1 s to each of two ranks: 2 s; each of them has received after 1 s."""
    group = Group((0, 1, 2))
    source = Hand(rank=0, groups=[group])
    for peer in (1, 2):
        source.call("send", 1.0, batch=1, peer=peer)
    tapes = [source.tape()]
    for rank in (1, 2):
        hand = Hand(rank=rank, groups=[group])
        tapes.append(hand.wait(hand.call("recv", 1.0, batch=1, peer=0)).tape())
    assert [each.end_s for each in play(tapes, FlatPrices())] == [2.0, 1.0, 1.0]


def test_collectives_of_one_batch_follow_each_other() -> None:
    tapes = []
    for rank in range(2):
        hand = Hand(rank=rank, groups=[Group((0, 1))]).op(float(rank))
        works = [hand.call("all_gather", 0.5, batch=7) for _ in range(4)]
        tapes.append(hand.wait(works[0]).tape())
    assert [each.end_s for each in play(tapes, FlatPrices())] == [1.0 + 4 * 0.5] * 2


def test_groups_without_a_name_match_by_their_place() -> None:
    groups = [Group((0, 1)), Group((0, 1))]
    tapes = []
    for rank in range(2):
        hand = Hand(rank=rank, groups=groups)
        for number in range(2):
            hand.call("all_reduce", 1.0 + number, group=number)
        tapes.append(hand.tape())
    assert [each.end_s for each in play(tapes, FlatPrices())] == [2.0, 2.0]


def test_groups_of_a_name_match_wherever_they_are_in_the_table() -> None:
    tapes = []
    for rank, names in enumerate((("a", "b"), ("b", "a"))):
        hand = Hand(rank=rank, groups=[Group((0, 1), name) for name in names])
        hand.op(1.0 + rank)
        hand.wait(hand.call("all_reduce", 1.0, group=names.index("a")))
        hand.wait(hand.call("all_gather", 1.0, group=names.index("b")))
        tapes.append(hand.tape())
    assert [each.end_s for each in play(tapes, FlatPrices())] == [4.0, 4.0]


def test_a_ring_of_single_sends_and_receives_is_no_deadlock() -> None:
    """Everyone sends to the right, then receives from the left: pairs have lanes of their own."""
    count = 4
    group = Group(tuple(range(count)))
    tapes = []
    for rank in range(count):
        hand = Hand(rank=rank, groups=[group]).op(float(rank))
        hand.call("send", 8.0, peer=(rank + 1) % count)
        hand.call("send", 8.0, peer=(rank + 1) % count)
        for _ in range(2):
            hand.wait(hand.call("recv", 8.0, peer=(rank - 1) % count))
        tapes.append(hand.tape())
    ends = [each.end_s for each in play(tapes, FlatPrices())]
    # A pair is ready when the later of both is, and its two transfers follow each other.
    lanes = [max(rank, (rank - 1) % count) + 16.0 for rank in range(count)]
    assert ends == [max(lanes[rank], lanes[(rank + 1) % count]) for rank in range(count)]


def test_a_collective_begins_when_the_last_member_is_there() -> None:
    tapes = []
    for rank in range(3):
        hand = Hand(rank=rank, groups=[Group((0, 1, 2))]).op(2.0**rank)
        tapes.append(hand.wait(hand.call("all_reduce", 0.5)).tape())
    played = play(tapes, FlatPrices())
    assert [each.end_s for each in played] == [4.5] * 3
    assert [(each.units[0].ready, each.units[0].start) for each in played] == [
        (1.0, 4.0),
        (2.0, 4.0),
        (4.0, 4.0),
    ]


def test_members_that_are_not_played_do_as_the_player_does() -> None:
    hand = Hand(rank=5, groups=[Group((5, 6, 7))]).op(1.0)
    hand.wait(hand.call("all_reduce", 0.5)).wait(hand.call("recv", 2.0, peer=6))
    (played,) = play([hand.tape()], FlatPrices())
    assert played.end_s == 3.5


def test_groups_match_by_their_ranks_not_by_their_place() -> None:
    both, other = Group((0, 1), "a"), Group((1, 2), "b")
    tapes = []
    for rank, groups in ((0, [both]), (1, [other, both])):
        hand = Hand(rank=rank, groups=groups).op(1.0 + rank)
        hand.wait(hand.call("all_reduce", 1.0, group=groups.index(both)))
        tapes.append(hand.tape())
    assert [each.end_s for each in play(tapes, FlatPrices())] == [3.0, 3.0]


def test_two_groups_called_in_different_order_do_not_lock() -> None:
    groups = [Group((0, 1), "a"), Group((0, 1), "b")]
    tapes = []
    for rank in range(2):
        hand = Hand(rank=rank, groups=groups)
        first = hand.call("all_reduce", 1.0, group=rank)
        second = hand.call("all_reduce", 1.0, group=1 - rank)
        tapes.append(hand.wait(first).wait(second).tape())
    assert [each.end_s for each in play(tapes, FlatPrices())] == [1.0, 1.0]


def test_a_stage_that_never_sends_is_named() -> None:
    silent = Hand(rank=0, groups=[Group((0, 1), "pp")]).op(1.0).tape()
    waiting = Hand(rank=1, groups=[Group((0, 1), "pp")])
    waiting.wait(waiting.call("recv", 1.0, peer=0)).op(1.0)
    with pytest.raises(DeadlockError, match=r"rank 1 in recv from rank 0 .*; ended: rank 0"):
        play([silent, waiting.tape()], FlatPrices())


def test_a_call_that_nobody_joins_is_named_even_if_nobody_waits() -> None:
    alone = Hand(rank=0, groups=[Group((0, 1), "pp")])
    alone.call("send", 1.0, peer=1, batch=1)
    other = Hand(rank=1, groups=[Group((0, 1), "pp")]).op(1.0)
    with pytest.raises(DeadlockError, match="rank 0 in send to rank 1"):
        play([alone.tape(), other.tape()], FlatPrices())


def test_ranks_that_wait_for_each_other_are_named_with_their_calls() -> None:
    tapes = []
    for rank in range(2):
        hand = Hand(rank=rank, groups=[Group((0, 1), "pp")])
        hand.wait(hand.call("recv", 1.0, peer=1 - rank))
        hand.call("send", 1.0, peer=1 - rank)
        tapes.append(hand.tape())
    with pytest.raises(DeadlockError, match=r"rank 0 in recv .*; rank 1 in recv"):
        play(tapes, FlatPrices())


def test_members_that_call_different_things_are_told() -> None:
    tapes = []
    for rank, name in enumerate(("all_reduce", "all_gather")):
        hand = Hand(rank=rank, groups=[Group((0, 1), "dp")])
        hand.call(name, 1.0)
        tapes.append(hand.tape())
    with pytest.raises(TapeError, match=r"rank 1 calls all_gather among dp .* 0 calls all_red"):
        play(tapes, FlatPrices())


def test_two_tapes_of_one_rank_are_refused() -> None:
    with pytest.raises(TapeError, match=r"\[3, 3\]"):
        play([Hand(rank=3).tape(), Hand(rank=3).tape()], FlatPrices())


MESSAGES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 8)), max_size=30)


@settings(deadline=None)
@given(MESSAGES, st.permutations(range(4)))
def test_the_order_of_tapes_does_not_matter(
    messages: list[tuple[int, int, int]], order: list[int]
) -> None:
    """Any exchange that is written down in one global order plays, and to the same times."""
    group = Group((0, 1, 2, 3))
    hands = [Hand(rank=rank, groups=[group]) for rank in range(4)]
    for source, target, seconds in messages:
        hands[source].op(float(seconds), kind="memory")
        if source == target:
            for hand in hands:
                hand.wait(hand.call("all_reduce", 1.0))
        else:
            hands[source].call("send", 0.5, peer=target)
            hands[target].wait(hands[target].call("recv", 0.5, peer=source))
    tapes = [hand.tape() for hand in hands]
    prices = FlatPrices(launch_s=0.25, overlap_slowdown=1.25)
    straight = {each.tape.rank: each.end_s for each in play(tapes, prices)}
    mixed = play([tapes[rank] for rank in order], prices)
    assert {each.tape.rank: each.end_s for each in mixed} == straight


@settings(deadline=None)
@given(MESSAGES)
def test_any_exchange_takes_what_a_simulation_in_global_order_says(
    messages: list[tuple[int, int, int]],
) -> None:
    """The clock sees four tapes; the simulation sees the messages one after another."""
    group = Group((0, 1, 2, 3))
    hands = [Hand(rank=rank, groups=[group]) for rank in range(4)]
    stream = [0.0] * 4
    group_lane = 0.0
    pair_lanes: dict[frozenset[int], float] = {}
    for source, target, seconds in messages:
        hands[source].op(float(seconds))
        stream[source] += seconds
        if source == target:
            for hand in hands:
                hand.wait(hand.call("all_reduce", 1.0))
            group_lane = max(group_lane, *stream) + 1.0
            stream = [max(end, group_lane) for end in stream]
        else:
            hands[source].call("send", 0.5, peer=target)
            hands[target].wait(hands[target].call("recv", 0.5, peer=source))
            pair = frozenset((source, target))
            ready = max(pair_lanes.get(pair, 0.0), stream[source], stream[target])
            pair_lanes[pair] = stream[target] = ready + 0.5
    played = play([hand.tape() for hand in hands], FlatPrices())
    for rank, each in enumerate(played):
        lanes = [end for pair, end in pair_lanes.items() if rank in pair]
        assert each.end_s == max(stream[rank], group_lane, *lanes, 0.0)


class Slower(FlatPrices):
    """Prices of a chip that takes longer for its work."""

    def __init__(self, times: float) -> None:
        super().__init__()
        self.times = times

    def operator(self, text: str) -> Price:
        price = super().operator(text)
        s = price.seconds * self.times
        return replace(price, seconds=s, low=s, high=s)


def test_a_faster_chip_waits_for_a_slower_one() -> None:
    """Each computes 3 s of the faster chip, then both reduce for 1 s: the slower has no wait."""
    both = Group((0, 1), "dp")
    tapes = []
    for rank in (0, 1):
        hand = Hand(rank=rank, groups=[both])
        hand.op(3.0)
        hand.wait(hand.call("all_reduce", 1.0))
        tapes.append(hand.end_step().tape())
    prices = RankPrices({0: PriceList(FlatPrices()), 1: PriceList(Slower(2.5))})
    summary = summarize(tapes, prices, stands_for=[3, 1], capacity_bytes={0: 5, 1: 7})
    assert summary["step_s"]["mid"] == 3 * 2.5 + 1
    fast, slow = (rank["split"] for rank in summary["ranks"])
    assert fast["bubble_s"] == 3 * 2.5 - 3
    assert slow["bubble_s"] == 0
    assert summary["split"]["bubble_s"] == pytest.approx(3 / 4 * (3 * 2.5 - 3))
    assert [rank["memory"]["capacity_bytes"] for rank in summary["ranks"]] == [5, 7]
