"""One process plays one of 4,096 ranks: what its collectives give, and what the tape says."""

import json
from collections import Counter
from typing import Any

import pytest
from rehearsed import Rehearsed, perform

from offramp.launch.player import Part
from offramp.tape.kinds import COLLECTIVE, OP, RECORD, SYNC_DEVICE, WAIT, WORK_WAIT

WORLD = 4096
SHARD, TENSORS = (5, 6), 8  # parts of the program, by the synchronizations before them


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    folder = tmp_path_factory.mktemp("groups")
    part = Part(0, WORLD, str(folder / "groups.tape"), steps=0)
    return perform("groups", folder, "nvidia-h100:8", part)


def part_of(done: Rehearsed, number: int) -> list[Any]:
    """The records after a number of synchronizations of the device, up to the next."""
    ends = [i for i, kind in enumerate(done.tape.records["kind"]) if kind == SYNC_DEVICE]
    return list(done.tape.records[ends[number - 1] if number else 0 : ends[number]])


def collectives(done: Rehearsed, number: int) -> Counter[tuple[str, int, tuple[int, ...]]]:
    """How often each (name, bytes, ranks) was called in a part."""
    found: Counter[tuple[str, int, tuple[int, ...]]] = Counter()
    for record in part_of(done, number):
        if record["kind"] == COLLECTIVE:
            call = json.loads(done.tape.signatures[record["what"]])
            ranks = done.tape.groups[call["group"]].ranks
            found[call["collective"], call["bytes"], ranks] += 1
    return found


def test_known_values_are_those_of_equal_ranks(groups: Rehearsed) -> None:
    said = groups.said
    assert (said["rank"], said["world"]) == (0, WORLD)
    assert said["SUM"] == [1.0 * WORLD, 2.0 * WORLD]
    assert said["AVG"] == said["MAX"] == [1.0, 2.0]
    assert said["PRODUCT"] == [1.0, 1.0]
    assert said["objects"] == [WORLD, True]
    assert said["large objects"] == [8, True]
    assert said["gathered"] == [[1.0, 2.0], [1.0, 2.0], 3.0 * WORLD]
    assert said["scattered"] == 0.0  # rank 0's part of 0, 1, 2, ...: 0, times the ranks
    assert said["on the host"] == 3 * 4


def test_plain_calls_have_the_bytes_of_the_larger_buffer(groups: Rehearsed) -> None:
    called = collectives(groups, 0)
    everyone = tuple(range(WORLD))
    assert called["all_reduce", 8, everyone] == 4
    assert called["all_gather", 8 * WORLD, everyone] == 2  # two floats; the sizes of the objects
    assert called["reduce_scatter", 4 * WORLD, everyone] == 1
    assert called["broadcast", 8, everyone] == 1
    assert called["barrier", 0, everyone] == 1
    assert called["all_reduce", 4 << 20, everyone] == 1


@pytest.mark.parametrize("step", [2, 3])
def test_data_parallel_reduces_its_gradients_once(groups: Rehearsed, step: int) -> None:
    reduced = {
        key: count for key, count in collectives(groups, step).items() if key[0] == "all_reduce"
    }
    assert reduced == {("all_reduce", 2 * 256 * 512 * 4, tuple(range(WORLD))): 1}


@pytest.mark.parametrize("step", [2, 3])
def test_the_optimizer_waits_for_the_reduced_gradients(groups: Rehearsed, step: int) -> None:
    """A future's wait: the event that the stream waits for is recorded after the collective."""
    works: set[int] = set()
    ending: set[int] = set()  # streams that wait for the all-reduce
    events: set[int] = set()  # recorded on them
    waited = False
    for record in part_of(groups, step):
        kind, stream, what = int(record["kind"]), int(record["stream"]), int(record["a"])
        text = groups.tape.signatures[record["what"]] if kind in (OP, COLLECTIVE) else ""
        if kind == COLLECTIVE and "all_reduce" in text:
            works.add(what)
        elif kind == WORK_WAIT and what in works:
            ending.add(stream)
        elif kind == RECORD and stream in ending:
            events.add(what)
        elif kind == WAIT and what in events:
            waited = waited or stream == 0
        elif kind == OP and "_foreach_add_" in text:
            assert waited
            return
    pytest.fail("no step of the optimizer")


@pytest.mark.parametrize("step", SHARD)
def test_sharding_gathers_twice_and_scatters_once(groups: Rehearsed, step: int) -> None:
    whole, ranks = 256 * 256 * 4, tuple(range(8))
    assert collectives(groups, step) == {
        ("all_gather", whole, ranks): 2 * 3,  # three layers, forward and backward
        ("reduce_scatter", whole, ranks): 3,
    }
    assert groups.said["shard"] == [256 // 8, 256]


def test_tensor_parallel_reduces_activations(groups: Rehearsed) -> None:
    assert collectives(groups, TENSORS) == {("all_reduce", 64 * 256 * 4, tuple(range(8))): 2}
    assert groups.said["tensor parallel"] == [[64, 256], [1024 // 8, 256]]
    assert groups.said["ranks of the mesh"] == list(range(8))


def test_calls_on_host_memory_say_so(groups: Rehearsed) -> None:
    texts = [json.loads(text) for text in groups.tape.signatures if '"collective"' in text]
    on_host = [text for text in texts if text["on_host"]]
    called = [(text["collective"], text["bytes"]) for text in on_host]
    assert called == [("all_reduce", 8), ("barrier", 0)]
    assert groups.tape.groups[on_host[0]["group"]].ranks == (0, 1, 2, 3)
