"""The tape tells which module, phase and stream was at work, and what memory is for."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from rehearsed import Rehearsed, perform

from offramp.launch.player import Part
from offramp.tape.kinds import (
    ALLOC,
    CATEGORY,
    OP,
    PHASES,
    READBACK,
    RECORD,
    SYNC_DEVICE,
    SYNC_EVENT,
    SYNC_STREAM,
    WAIT,
)

STEPS, BLOCKS = 2, 2


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    folder = tmp_path_factory.mktemp("work")
    return perform("work", folder, "nvidia-h100", Part(0, 1, str(folder / "work.tape"), steps=0))


def parts(done: Rehearsed) -> Iterator[list[Any]]:
    """The records between synchronizations of the device."""
    part: list[Any] = []
    for record in done.tape.records:
        if record["kind"] == SYNC_DEVICE:
            yield part
            part = []
        else:
            part.append(record)


def products(done: Rehearsed, part: int) -> Counter[tuple[str, str]]:
    """How often each (phase, module) multiplies matrices."""
    found: Counter[tuple[str, str]] = Counter()
    for record in list(parts(done))[part]:
        if record["kind"] == OP:
            name = json.loads(done.tape.signatures[record["what"]])["op"]
            if name in ("aten::mm", "aten::addmm"):
                found[PHASES[record["phase"]], done.tape.names[record["module"]]] += 1
    return found


@pytest.mark.parametrize(("part", "checkpoints"), [(0, None), (1, "stops early"), (2, "reentrant")])
def test_products_belong_to_the_module_that_made_them(
    work: Rehearsed, part: int, checkpoints: str | None
) -> None:
    expected: Counter[tuple[str, str]] = Counter()
    expected["forward", "head"], expected["backward", "head"] = STEPS, 2 * STEPS
    for block in range(BLOCKS):
        for layer in ("up", "down"):
            name = f"blocks.{block}.{layer}"
            expected["forward", name] = STEPS
            expected["backward", name] = 2 * STEPS  # of the input and of the weight
            # Without re-entering autograd, a block is recomputed up to what is last needed:
            # the input of its last product.
            if checkpoints and not (checkpoints == "stops early" and layer == "down"):
                expected["recompute", name] = STEPS
    assert products(work, part) == expected


def test_the_optimizer_has_its_phase(work: Rehearsed) -> None:
    for part in list(parts(work))[:3]:
        named = Counter(
            PHASES[record["phase"]]
            for record in part
            if record["kind"] == OP
            and "_foreach_" in json.loads(work.tape.signatures[record["what"]])["op"]
        )
        assert set(named) == {"optimizer"}


def test_memory_is_filed_by_what_it_is_for(work: Rehearsed) -> None:
    sizes: dict[int, int] = {}
    filed: dict[int, set[int]] = {1: set(), 2: set(), 3: set()}
    for record in next(parts(work)):
        if record["kind"] == ALLOC:
            sizes[int(record["a"])] = int(record["b"])
        elif record["kind"] == CATEGORY:
            filed[int(record["what"])].add(int(record["a"]))
    parameters = [512 * 1024] * 2 * BLOCKS + [512 * 64, 64]
    expected = sorted(-(-4 * count // 512) * 512 for count in parameters)  # whole 512 bytes
    assert sorted(sizes[block] for block in filed[1]) == expected
    gradients = sorted(sizes[block] for block in filed[2])
    assert gradients == sorted(expected * STEPS)  # set to None between the steps
    moments = sorted(sizes[block] for block in filed[3])
    assert moments == sorted(expected * 2)
    assert sum(map(len, filed.values())) == len(filed[1] | filed[2] | filed[3])


def test_streams_and_events_are_told_in_order(work: Rehearsed) -> None:
    wanted = (OP, RECORD, WAIT, SYNC_EVENT, SYNC_STREAM, READBACK)
    rows = [record for record in list(parts(work))[3] if record["kind"] in wanted]
    side, events = work.said["side"], {}
    told = []
    for record in rows:
        what: Any = "host"
        if record["kind"] == OP:
            what = json.loads(work.tape.signatures[record["what"]])["op"].split(".")[0]
        elif record["kind"] in (RECORD, WAIT, SYNC_EVENT):
            what = events.setdefault(int(record["a"]), len(events))
        told.append((int(record["kind"]), "side" if record["stream"] == side else "main", what))
    assert told == [
        (OP, "main", "aten::normal_"),
        (RECORD, "main", 0),
        (WAIT, "side", 0),
        (OP, "side", "aten::mm"),
        (RECORD, "side", 1),
        (OP, "side", "aten::add_"),
        (OP, "main", "aten::exp"),
        (WAIT, "main", 1),
        (OP, "main", "aten::sin"),
        (RECORD, "side", 2),
        (SYNC_EVENT, "main", 2),
        (SYNC_STREAM, "side", "host"),
        # Events that were never recorded hold nobody up.
        (OP, "main", "aten::sum"),
        (READBACK, "main", "host"),
        (RECORD, "main", 3),  # recorded again: an event of its own
        (WAIT, "side", 3),
    ]
