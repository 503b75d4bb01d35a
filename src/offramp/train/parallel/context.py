"""Context parallelism: the ranks of a group share every sequence.

Each rank takes an early and a late part of the sequence, so that causal attention is even work
(Llama 3, arXiv:2407.21783, section 3.3.2). Keys and values are gathered from all ranks where
attention needs them; their gradients are summed on the way back.

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

    def packing(self, documents_BT: Tensor) -> attention.Packing:
        """What attention must know, given the documents of the whole sequences."""
        width, device = documents_BT.shape[1], documents_BT.device
        queries_T = self.tokens(self.rank, width).to(device)
        keys_T = torch.cat([self.tokens(rank, width) for rank in range(self.size)]).to(device)
        same_BTT = documents_BT[:, queries_T, None] == documents_BT[:, None, keys_T]
        distance_TT = queries_T[:, None] - keys_T
        mask_BTT = (same_BTT & (distance_TT >= 0))[:, None]
        return attention.Packing(mask_BTT=mask_BTT, distance_TT=distance_TT, context=self)

    def gather(self, own_BHTD: Tensor) -> Tensor:
        """The tokens of all ranks, along T, in the order of the ranks."""
        return gather(own_BHTD, 2, self.group)
