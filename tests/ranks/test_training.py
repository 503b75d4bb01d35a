"""PyTorch's ways to spread training over ranks: on virtual chips as over Gloo on plain CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import same

# Kernels and their order are the CPU's in both runs; only the order of sums over ranks may differ.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}
Play = Callable[..., list[Any]]


@pytest.mark.parametrize(
    "program", ["data_parallel", "sharded", "tensor_parallel", "pipelines", "checkpoints"]
)
def test_two_ranks(program: str, play: Play) -> None:
    found = play(f"training:{program}")
    same(found, play(f"training:{program}", chip=None), program, **ROUNDING)


def test_checkpoint_is_what_was_saved(play: Play) -> None:
    for results in play("training:checkpoints"):
        same(results["after"], results["before"])
        same(list(results["whole"].values()), results["before"])


def test_four_ranks_in_a_mesh(play: Play) -> None:
    same(play("training:meshes", 4), play("training:meshes", 4, chip=None), **ROUNDING)


def test_first_fully_sharded(play: Play) -> None:
    """FSDP1 has no CPU form to compare with: its averages are data parallel's."""
    expected = play("training:data_parallel", chip=None)
    for rank, results in enumerate(play("training:fully_sharded_first")):
        losses, weights = expected[rank]["plain"]
        for strategy in ("FULL_SHARD", "SHARD_GRAD_OP"):
            same(results[strategy][0], losses, **ROUNDING)
            flat = lambda tensors: torch.cat([t.flatten() for t in tensors])  # noqa: E731
            same(flat(results[strategy][1]), flat(weights), **ROUNDING)


def test_synchronized_batch_norm(play: Play) -> None:
    same(play("training:batch_norm"), play("training:batch_norm", chip=None), **ROUNDING)


def test_asynchronous_checkpoint(play: Play) -> None:
    for rank, results in enumerate(
        play("training:asynchronous_checkpoint", backend="cpu:gloo,cuda:nccl")
    ):
        same(results, [torch.full((5,), rank + 1.0), torch.full((2,), 2.0)])


def test_shards_draw_each_their_own(play: Play) -> None:
    first, second = play("training:drawn_by_shards")
    same(first, second)
    parts = first["parts"]
    assert not torch.equal(parts[:4], parts[4:])
    assert 0.6 < parts.std() < 1.4
    assert set(first["dropped"].unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(first["dropped"][:, :4], first["dropped"][:, 4:])


def test_attention_of_shards(play: Play) -> None:
    for found in play("training:attention_of_shards"):
        same(found["heads"], found["whole"], **ROUNDING)
        same(found["sequences"], found["whole"], **ROUNDING)
