"""Context parallelism: the ranks of a group share every sequence.

Each rank takes an early and a late part of the sequence, so that causal attention is even work
(Llama 3, arXiv:2407.21783, section 3.3.2). Keys and values are gathered from all ranks where
attention needs them; their gradients are summed on the way back. Each part attends to the keys up
to its own end, so that all ranks together do the work of one causal attention.

Shapes: B sequences, H heads, T tokens, D numbers a head.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from offramp.train import attention
from offramp.train.parallel.collect import gather


class Context:
    """This rank's part of the sequences of `group`."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)

    def tokens(self, rank: int, width: int) -> Tensor:
        """The numbers of the tokens that `rank` holds of sequences of `width` tokens."""
        parts = torch.arange(width).chunk(2 * self.size)
        return torch.cat([parts[rank], parts[-1 - rank]])

    def take(self, whole_BT: Tensor) -> Tensor:
        """This rank's part of a tensor in host memory."""
        return whole_BT[:, self.tokens(self.rank, whole_BT.shape[1])]

    def parts(self, width: int) -> tuple[tuple[int, int], ...]:
        """(first, past the last token) of both parts of this rank, of sequences of `width`."""
        length = width // (2 * self.size)
        firsts = self.rank * length, width - (self.rank + 1) * length
        return tuple((first, first + length) for first in firsts)

    def packing(self, documents_BT: Tensor, *, whole: bool) -> attention.Packing:
        """What attention must know, given the documents of the sequences; `whole`: one a row."""
        if whole:
            return attention.Packing(context=self)
        masks = tuple(
            attention.causal_mask(documents_BT[:, :past], first)
            for first, past in self.parts(documents_BT.shape[1])
        )
        return attention.Packing(part_masks=masks, context=self)

    def gather(self, own_BHTD: Tensor) -> Tensor:
        """The tokens of all ranks, in their order in the sequence."""
        by_rank = gather(own_BHTD, 0, self.group).chunk(self.size)
        early, late = zip(*(both.chunk(2, 2) for both in by_rank), strict=True)
        return torch.cat([*early, *reversed(late)], 2)
