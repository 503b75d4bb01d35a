"""Micro-batches: from host memory to what a stage of the model is called with.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offramp.train import attention
from offramp.train.parallel.context import Context
from offramp.train.parallel.numbers import Numbers


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Whole sequences in host memory, all int64; -100 among the targets is not trained on."""

    tokens_BT: Tensor
    targets_BT: Tensor
    positions_BT: Tensor
    documents_BT: Tensor


MicroBatches = Sequence[MicroBatch]


@dataclass(frozen=True, eq=False)
class Feeder:
    """Moves micro-batches to this rank's device; `context` takes its part of each sequence."""

    device: torch.device
    numbers: Numbers
    context: Context | None = None

    def feed(self, row: MicroBatch) -> tuple[Tensor, dict[str, Any]]:
        """The tokens, and the keywords of `LanguageModel.forward`."""
        own = {
            "tokens": row.tokens_BT,
            "targets_BT": row.targets_BT,
            "positions_BT": row.positions_BT,
        }
        if self.context is not None:
            own = {name: self.context.take(value) for name, value in own.items()}
        moved: dict[str, Any] = {name: self._move(value) for name, value in own.items()}
        tokens = moved.pop("tokens")
        return tokens, moved | {"packing": self._packing(row)}

    def _packing(self, row: MicroBatch) -> attention.Packing:
        spans = attention.find_spans(row.documents_BT)
        if self.context is not None:
            return self.context.packing(self._move(row.documents_BT), whole=spans is None)
        if spans is None or not self.numbers.compile:
            return attention.Packing(spans)
        # Spans would make compiled layers anew for every batch; a mask always has one shape.
        return attention.Packing(mask_BTT=attention.causal_mask(self._move(row.documents_BT)))

    def _move(self, value: Tensor) -> Tensor:
        if self.device.type == "cpu":
            return value
        if self.numbers.blocking_copies:
            return value.to(self.device)
        return value.pin_memory().to(self.device, non_blocking=True)
