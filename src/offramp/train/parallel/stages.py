"""Cutting a model into the stages of a pipeline.

A stage is the whole model's own code with fewer layers; what it lacks passes its input on. Layers
keep their numbers in the whole model, so that the names of weights do not depend on the layout.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from offramp.train.layout import Layout
from offramp.train.model import LanguageModel


def own_stages(layout: Layout, rank: int) -> list[int]:
    """The stages of the pipeline's rank: every pp-th."""
    return list(range(rank, layout.pp * layout.stages, layout.pp))


def spans(layers: int, stages: int, *, even: bool = False) -> list[range]:
    """The layers of each stage; the embedding and the head count as a layer each, or not (even)."""
    share, rest = divmod(layers if even else layers + 2, stages)
    counts = [share + (stage < rest) for stage in range(stages)]
    if not even:
        counts[0] -= 1
        counts[-1] -= 1
    for poor in (0, stages - 1):  # no stage without a layer
        if counts[poor] < 1:
            rich = counts.index(max(counts))
            counts[rich] -= 1 - counts[poor]
            counts[poor] = 1
    edges = [sum(counts[:stage]) for stage in range(stages + 1)]
    return [range(first, past) for first, past in pairwise(edges)]


def cut(model: LanguageModel, layout: Layout, rank: int) -> list[LanguageModel]:
    """The stages that `rank` of the pipeline holds, of a model on the meta device."""
    count = layout.pp * layout.stages
    if count == 1:
        return [model]
    chosen = spans(len(model.layers), count, even=layout.even_stages)
    return [_stage(model, stage, count, chosen[stage]) for stage in own_stages(layout, rank)]


def owned(part: LanguageModel) -> Iterator[nn.Parameter]:
    """The stage's parameters, without the embedding that it has only for its head to tie."""
    repeated = None if part.has_embedding or part.embedding is None else part.embedding.weight
    return (p for p in part.parameters() if p is not repeated)


def _stage(model: LanguageModel, stage: int, count: int, chosen: range) -> LanguageModel:
    part = copy.deepcopy(model)
    body, is_tied = part.body, part.is_tied
    part.has_embedding, part.has_head = stage == 0, stage == count - 1
    for name, child in list(body.named_children()):
        if child is part.layers:
            setattr(body, name, _some(part.layers, chosen))
        elif isinstance(child, nn.Embedding):
            is_tokens = child is part.causal.get_input_embeddings()
            if not part.has_embedding and not (is_tokens and part.has_head and is_tied):
                setattr(body, name, _Nothing())
        elif isinstance(child, nn.Dropout):
            if not part.has_embedding:
                setattr(body, name, nn.Identity())
        elif _is_after_layers(body, name, child) and not part.has_head:
            setattr(body, name, nn.Identity())
    if not part.has_head:
        part.causal.set_output_embeddings(None)
    return part


def _some(layers: nn.ModuleList, chosen: range) -> nn.ModuleList:
    """Some of the layers, under their own numbers."""
    some = nn.ModuleList()
    for number in chosen:
        some.add_module(str(number), layers[number])
    return some


def _is_after_layers(body: nn.Module, name: str, child: nn.Module) -> bool:
    """Whether a module has weights and follows the layers: the last norm."""
    names = [key for key, _ in body.named_children()]
    first = next(key for key, value in body.named_children() if isinstance(value, nn.ModuleList))
    has_weights = any(True for _ in child.parameters())
    return has_weights and names.index(name) > names.index(first)


class _Nothing(nn.Module):
    """Stands where an embedding was: adds nothing."""

    def forward(self, numbers: Tensor, *args: Any) -> Tensor:
        return torch.zeros((), device=numbers.device)
