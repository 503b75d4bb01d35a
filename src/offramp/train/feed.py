"""Feeds the steps: this rank's rows of each global batch, read one step ahead."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offramp.train.data.batches import IGNORED, Batches, Rows
from offramp.train.layout import Layout
from offramp.train.parallel import MicroBatch
from offramp.train.world import World


@dataclass(frozen=True)
class StepRows:
    """This rank's micro-batches of one step, and how many tokens of them are trained on."""

    micro: list[MicroBatch]
    trained: int
    tokens: int


class Feed:
    """The rows of this rank, by step; `batches` knows every step, so that a feed has no state."""

    def __init__(self, batches: Batches, layout: Layout, world: World, *, batch: int) -> None:
        self._batches, self._micro_batch = batches, layout.micro_batch
        self._count = batch // layout.dp
        self._first = world.place("dp_replicate", "dp_shard") * self._count
        self._reader = ThreadPoolExecutor(1, "feed")
        self._ahead: tuple[int, Future[StepRows]] | None = None

    def take(self, step: int) -> StepRows:
        """The rows of `step`; those of the next are read meanwhile."""
        if self._ahead is not None and self._ahead[0] == step:
            rows = self._ahead[1].result()
        else:
            rows = self._read(step)
        self._ahead = (step + 1, self._reader.submit(self._read, step + 1))
        return rows

    def close(self) -> None:
        """Stop reading."""
        self._reader.shutdown(wait=True, cancel_futures=True)

    def _read(self, step: int) -> StepRows:
        rows = self._batches.rows(step, self._first, self._count)
        return StepRows(
            list(cut(rows, self._micro_batch)),
            int((rows.targets_BT != IGNORED).sum()),
            int(rows.tokens_BT.size),
        )


def cut(rows: Rows, size: int) -> Iterator[MicroBatch]:
    """Micro-batches of `size` rows, as tensors in host memory."""
    whole = [
        _tensor(a) for a in (rows.tokens_BT, rows.targets_BT, rows.positions_BT, rows.documents_BT)
    ]
    for parts in zip(*(tensor.split(size) for tensor in whole), strict=True):
        yield MicroBatch(*parts)


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array)
