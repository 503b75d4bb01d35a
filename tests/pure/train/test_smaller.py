"""What a job can change to hold less: jobs of the same batch, each of which fills its chips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from offramp.cli.train import read_job
from offramp.train.job import Job
from offramp.train.reading import change
from offramp.train.smaller import Placed, ladders

COMMAND = ("offramp", "train", "--preset", "qwen3-nano", "--batch", "64")


def of(nodes: int = 1, per_node: int = 1, room: int = 8, **layout: Any) -> dict[str, list[Any]]:
    """By title and condition, the jobs of each ladder with the nodes they are played on."""
    words = [word for key, value in layout.items() for word in ("--set", f"layout.{key}={value}")]
    command = (*COMMAND, *words)
    job = read_job(command[2:])
    found: dict[str, list[Any]] = {}
    for ladder in ladders(Placed(job, command, nodes, per_node, room)):
        for rung in ladder.rungs:
            other = read_job(rung.command[2:])
            world = (rung.nodes or nodes) * (rung.per_node or per_node)
            assert other.layout.world == world
            assert other.train == job.train
            assert other.layout != job.layout
            found.setdefault(f"{ladder.title}, {ladder.when}", []).append((other.layout, rung))
    return found


def test_one_chip_has_smaller_micro_batches_recompute_and_more_chips() -> None:
    found = of()
    assert list(found) == [
        *("smaller micro-batch, always", "recompute, always", "both, none"),
        *("more chips, always", "more chips, none"),
    ]
    assert [each.micro_batch for each, _ in found["smaller micro-batch, always"]] == [4, 2, 1]
    again = [each.recompute for each, _ in found["recompute, always"]]
    assert again == ["selective", "alternate", "full"]
    assert {each.recompute for each, _ in found["both, none"]} == {"full"}
    worlds = [(each.dp_shard, each.micro_batch) for each, _ in found["more chips, always"]]
    assert worlds == [(2, 8), (4, 8), (8, 8), (16, 4), (32, 2), (64, 1)]
    places = [(rung.nodes, rung.per_node) for _, rung in found["more chips, always"]]
    assert places == [(1, 2), (1, 4), (1, 8), (2, 8), (4, 8), (8, 8)]
    assert found["more chips, always"][3][1].said == (
        "--nodes 2 --per-node 8 --set layout.dp_shard=16 --set layout.micro_batch=4"
    )


def test_several_chips_are_shared_otherwise() -> None:
    found = of(2, 8, dp_shard=8, dp_replicate=2, micro_batch=4)
    ((sharded, _),) = found["more sharding, some"]
    assert (sharded.dp_replicate, sharded.dp_shard) == (1, 16)
    split = [(each.tp, each.dp_shard) for each, _ in found["tensor parallel, some"]]
    assert split == [(2, 4)]  # the model has two key-value heads
    assert [each.cp for each, _ in found["context parallel, some"]] == [2, 4, 8]
    assert [each.pp for each, _ in found["pipeline, none"]] == [2, 4]  # and four layers
    tight = found["tensor parallel, none"][0][0]
    assert (tight.micro_batch, tight.recompute) == (1, "full")


def test_what_cannot_be_changed_is_left_out() -> None:
    assert of(room=0, micro_batch=1, recompute="full") == {}
    zero = of(1, 8, 8, dp_shard=8, zero=1, micro_batch=1, recompute="full")
    assert zero["more sharding, some"][0][0].zero == 3
    assert not any("recompute" in title or "micro" in title for title in zero)
    nodes = [rung.nodes for _, rung in zero["more chips, always"]]
    assert nodes == [2, 4, 8]  # 64 sequences for 64 ranks, and no more


@pytest.mark.parametrize("text", [None, "{", "[]", '{"num_attention_heads": 6}'])
def test_heads_of_a_local_folder_are_respected(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    changes = {"model.preset": "", "model.folder": str(tmp_path), "layout.dp_shard": 8}
    job = change(Job(), {**changes, "train.batch": 64})
    titles = {
        rung.said
        for ladder in ladders(Placed(job, COMMAND, 1, 8))
        if ladder.title == "tensor parallel" and ladder.when == "some"
        for rung in ladder.rungs
    }
    known = text is not None and isinstance(json.loads(text if text != "{" else "[]"), dict)
    assert len(titles) == (1 if known else 3)
