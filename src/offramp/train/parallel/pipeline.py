"""Running the stages of a pipeline, by the schedules of torch.distributed.pipelining.

GPipe (arXiv:1811.06965), 1F1B (PipeDream-flush, arXiv:2006.09503), interleaved 1F1B
(arXiv:2104.04473) and zero-bubble (arXiv:2401.10241). All shapes are given beforehand: no stage
asks another for them.

Shapes: B sequences, T tokens, D hidden numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleLoopedBFS,
)

from offramp.errors import UsageError
from offramp.train.layout import Layout
from offramp.train.model import LanguageModel
from offramp.train.parallel import collect, gradients
from offramp.train.parallel.numbers import Numbers
from offramp.train.parallel.rows import Feeder, MicroBatches
from offramp.train.parallel.spread import Spread
from offramp.train.parallel.stages import own_stages
from offramp.train.parallel.tensor import SEQUENCE
from offramp.train.world import World

_SCHEDULES: dict[str, Any] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    "interleaved": ScheduleInterleaved1F1B,
    "zero-bubble": ScheduleInterleavedZeroBubble,
}


class Pipeline:
    """This rank's stages, and the steps that all ranks of the pipeline take together."""

    def __init__(
        self, spreads: list[Spread], layout: Layout, world: World, numbers: Numbers, feeder: Feeder
    ) -> None:
        group = world.group("pp")
        assert group is not None
        self._spreads, self._layout, self._numbers = spreads, layout, numbers
        self._world, self._feeder, self._group = world, feeder, group
        self._scale = 1.0
        self._fed: list[dict[str, Any]] = []  # the keywords of each micro-batch of the step
        self._schedules: dict[tuple[int, torch.Size, bool], Any] = {}
        for spread in spreads:
            if layout.splits_sequence and not layout.sequence_parallel:
                _split_messages(spread.part, world)
            self._look_up(spread.part)

    def forward_backward(self, rows: MicroBatches, scale: float) -> Tensor:
        """As `Parallel.forward_backward`."""
        self._scale = scale
        loss = self._run(rows, trains=True)
        self._settle()
        self._add_tied()
        return loss

    def evaluate(self, rows: MicroBatches) -> Tensor:
        """As `Parallel.evaluate`."""
        loss = self._run(rows, trains=False)
        self._settle()
        return loss

    def _run(self, rows: MicroBatches, *, trains: bool) -> Tensor:
        fed = [self._feeder.feed(row) for row in rows]
        self._fed = [keywords for _, keywords in fed]
        schedule = self._schedule(len(rows), fed[0][0].shape, trains)
        has_embedding = any(s.part.has_embedding for s in self._spreads)
        arguments = (torch.cat([tokens for tokens, _ in fed]),) if has_embedding else ()
        number = torch.arange(len(rows))  # each micro-batch is called with its own, see `_look_up`
        has_head = any(s.part.has_head for s in self._spreads)
        if trains:
            out = schedule.step(*arguments, target=number if has_head else None, number=number)
        else:
            out = schedule.eval(*arguments, number=number)
        self._fed = []
        zero = torch.zeros((), dtype=torch.float32, device=self._world.device)
        return out.detach().sum() if has_head else zero

    def _look_up(self, part: LanguageModel) -> None:
        """Let the stage be called with the number of a micro-batch instead of its keywords."""

        def before(_: Any, arguments: Any, keywords: Any) -> Any:
            if "number" not in keywords:
                return None
            return arguments, self._fed[int(keywords["number"])]

        part.register_forward_pre_hook(before, prepend=True, with_kwargs=True)

    def _schedule(self, count: int, shape_BT: torch.Size, trains: bool) -> Any:
        key = (count, shape_BT, trains)
        if key not in self._schedules:
            stages = self._stages(shape_BT)
            if trains:
                self._check(count)
                kind = _SCHEDULES[self._layout.pipeline]
            else:
                kind = ScheduleGPipe if len(stages) == 1 else ScheduleLoopedBFS
            takes_one = kind in (ScheduleGPipe, Schedule1F1B)
            self._schedules[key] = kind(
                stages[0] if takes_one else stages,
                count,
                loss_fn=(lambda loss, _: loss.sum() * self._scale) if trains else None,
                scale_grads=False,
            )
        return self._schedules[key]

    def _stages(self, shape_BT: torch.Size) -> list[PipelineStage]:
        layout = self._layout
        count = layout.pp * layout.stages
        batch, width = shape_BT
        if layout.splits_sequence:
            width //= layout.tp
        config = self._spreads[0].part.causal.config
        hidden_BTD = _shape((batch, width, config.hidden_size), self._numbers.dtype)
        tokens_BT = torch.empty(shape_BT, dtype=torch.int64, device="meta")
        loss = _shape((1,), torch.float32)
        return [
            PipelineStage(
                spread.part,
                stage,
                count,
                self._world.device,
                input_args=(tokens_BT if stage == 0 else hidden_BTD,),
                output_args=(loss if stage == count - 1 else hidden_BTD,),
                group=self._group,
            )
            for spread, stage in zip(
                self._spreads, own_stages(layout, self._world.coordinate("pp")), strict=True
            )
        ]

    def _check(self, count: int) -> None:
        pp, pipeline = self._layout.pp, self._layout.pipeline
        if pipeline == "1f1b" and count < pp:
            raise UsageError(
                f"{count} micro-batches a step for {pp} pipeline stages; expected at least as "
                "many: a larger train.batch, a smaller layout.micro_batch, or pipeline = 'gpipe'"
            )
        if pipeline in ("interleaved", "zero-bubble") and count % max(1, count // pp):
            raise UsageError(
                f"{count} micro-batches a step with pipeline {pipeline!r} over pp = {pp}; expected "
                f"a multiple of {pp}: another train.batch or layout.micro_batch"
            )

    def _settle(self) -> None:
        for spread in self._spreads:
            spread.settle()

    def _add_tied(self) -> None:
        """Add the gradients of an embedding that the first stage and the head share."""
        parts = [spread.part for spread in self._spreads]
        first = next((part for part in parts if part.has_embedding), None)
        last = next((part for part in parts if part.has_head), None)
        if not self._spreads[0].part.causal.config.tie_word_embeddings:
            return
        for part, peer in ((first, self._layout.pp - 1), (last, 0)):
            if part is not None and part.embedding is not None:
                grad = part.embedding.weight.grad
                assert grad is not None
                gradients.add_from(grad, peer, self._group)


def _split_messages(part: LanguageModel, world: World) -> None:
    """Let the stage take and pass on this rank's part of the tokens, and compute with all of them.

    What Megatron-LM calls scatter and gather (arXiv:2104.04473, section 4.1): ranks of a tensor
    parallel group send each other what all of them would have sent to the next stage.
    """
    group = world.group("tp")
    assert group is not None

    def before(_: Any, arguments: Any, keywords: Any) -> Any:
        first, *others = arguments
        return (collect.join(first, SEQUENCE, group), *others), keywords

    if not part.has_embedding:
        part.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
    if not part.has_head:
        part.register_forward_hook(lambda _, __, out: collect.split(out, SEQUENCE, group))


def _shape(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)
