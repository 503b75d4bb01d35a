"""The layout: how one job spreads over the chips of a world.

One frozen object holds every parallel degree and checks the rules between them. Axes are, from the
outermost to the innermost: pp, dp_replicate, dp_shard, cp, tp. Neighbouring ranks are in one tensor
parallel group, so that the heaviest traffic stays inside a node. Experts are spread over ranks that
otherwise hold other data: ep is taken out of dp_shard x cp x tp, and adds no ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from offramp.errors import UsageError
from offramp.train.reading import key

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
PIPELINES = ("1f1b", "gpipe", "interleaved", "zero-bubble")
RECOMPUTES = ("none", "selective", "alternate", "full")
REDUCES = ("fp32", "products")


@dataclass(frozen=True)
class Layout:
    """The parallel degrees, and what is done with memory.

    zero says what data-parallel ranks share out, as in ZeRO (Rajbhandari et al., arXiv:1910.02054):
    0 nothing, 1 the optimizer's state, 2 also the gradients, 3 also the weights.
    """

    dp_replicate: int = key(1, "groups that hold the same weights and see other data", low=1)
    dp_shard: int = key(1, "ranks that share out weights and see other data (FSDP)", low=1)
    tp: int = key(1, "tensor parallel: ranks that share each layer's matrices", low=1)
    pp: int = key(1, "pipeline parallel: stages of layers", low=1)
    cp: int = key(1, "context parallel: ranks that share each sequence", low=1)
    ep: int = key(1, "expert parallel: ranks that share the experts", low=1)
    zero: int = key(
        3, "what dp_shard ranks share: 1 optimizer, 2 gradients, 3 weights", low=1, high=3
    )
    copies: bool = key(
        False,
        "with dp_replicate alone: 16-bit copies of weights, made once a step",
    )
    reduce: str = key(
        "fp32", "format in which ranks add gradients up; or that of the products", choices=REDUCES
    )
    micro_batch: int = key(8, "sequences that a rank computes at a time", low=1)
    pipeline: str = key("1f1b", "order of the micro-batches in a pipeline", choices=PIPELINES)
    stages: int = key(1, "stages that each pipeline rank holds (interleaved)", low=1)
    even_stages: bool = key(
        False, "with pp: as many layers in each stage; else embedding and head count as one each"
    )
    split_messages: bool = key(
        False, "with tp and pp: each tp rank sends its part of what stages pass on"
    )
    recompute: str = key(
        "none", "activations to compute again in the backward pass", choices=RECOMPUTES
    )
    sequence_parallel: bool = key(True, "with tp: norms and residuals share the sequence")
    loss_parallel: bool = key(True, "with tp: each rank has its part of the vocabulary's logits")
    async_tp: bool = key(False, "with tp: overlap its transfers with products (needs compile)")
    prefetch: int = key(1, "layers whose weights are gathered ahead", low=0)

    def __post_init__(self) -> None:
        if self.copies and self.world == 1:
            raise UsageError(
                "layout.copies is for weights that several ranks hold; expected dp_replicate of 2 "
                "or more, or copies = false"
            )
        if self.reduce != "fp32" and not self.is_sharded:
            raise UsageError(
                f"layout.reduce is {self.reduce!r}, and the weights are whole, with gradients of "
                "their format; expected dp_shard of 2 or more, copies = true, or reduce = 'fp32'"
            )
        if self.stages > 1 and self.pipeline != "interleaved":
            raise UsageError(
                f"layout.stages is {self.stages} with pipeline {self.pipeline!r}; expected "
                "pipeline = 'interleaved', or stages = 1"
            )
        if self.pipeline == "interleaved" and self.pp > 1 and self.stages == 1:
            raise UsageError(
                "layout.pipeline is 'interleaved'; expected layout.stages of 2 or more"
            )
        if self.ep > 1:
            room = self.dp_shard * self.cp * self.tp
            if room % self.ep or self.ep % self.tp:
                raise UsageError(
                    f"layout.ep is {self.ep}; expected a divisor of dp_shard x cp x tp = {room}, "
                    f"and a multiple of tp = {self.tp}"
                )

    @property
    def world(self) -> int:
        """How many chips the job takes."""
        return math.prod(getattr(self, axis) for axis in AXES)

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP holds the weights, be it whole; else the model does, under DDP."""
        return self.world > self.dp_replicate or self.copies

    @property
    def splits_sequence(self) -> bool:
        """Whether each tp rank has its part of the tokens where a stage ends."""
        return self.tp > 1 and (self.sequence_parallel or (self.split_messages and self.pp > 1))

    @property
    def pipeline_ranks(self) -> range:
        """The ranks that hold the stages of rank 0's pipeline: its axis is the outermost."""
        return range(0, self.world, self.world // self.pp)

    @property
    def dp(self) -> int:
        """How many ranks see other data."""
        return self.dp_replicate * self.dp_shard

    def accumulate(self, batch: int) -> int:
        """Micro-batches of one rank in a step of `batch` sequences. Raises UsageError."""
        self.check_batch(batch)
        return batch // (self.dp * self.micro_batch)

    def check_world(self, world: int) -> None:
        """Refuse a number of processes that the degrees do not multiply to."""
        if world != self.world:
            product = " x ".join(f"{axis} {getattr(self, axis)}" for axis in AXES)
            raise UsageError(
                f"the layout is for {self.world} chips ({product}), and {world} take part"
            )

    def check_batch(self, batch: int) -> None:
        """Refuse a batch that does not divide into micro-batches, or is too small to fill them."""
        part = self.dp * self.micro_batch
        if batch % part:
            raise UsageError(
                f"train.batch is {batch}; expected a multiple of {part}: micro_batch "
                f"{self.micro_batch} on each of {self.dp} data-parallel ranks"
            )
        if self.pp > 1 and self.pipeline == "interleaved" and (batch // part) % self.pp:
            raise UsageError(
                f"train.batch is {batch}: {batch // part} micro-batches, which is no multiple of "
                f"pp = {self.pp}, as the interleaved pipeline needs"
            )

    def check_sequence(self, sequence: int) -> None:
        """Refuse a sequence that does not divide over cp and tp.

        Every cp rank takes two parts, an early and a late one, so that causal work is even.
        """
        parts = (2 * self.cp if self.cp > 1 else 1) * (self.tp if self.splits_sequence else 1)
        if sequence % parts:
            raise UsageError(
                f"data.sequence is {sequence}; expected a multiple of {parts} for cp {self.cp} "
                f"and tp {self.tp}"
            )

    def check_model(self, *, layers: int, heads: int, kv_heads: int, experts: int) -> None:
        """Refuse degrees that a model's layers, heads or experts do not divide by."""
        if self.pp * self.stages > layers:
            raise UsageError(
                f"layout.pp {self.pp} x stages {self.stages} is more than the {layers} layers"
            )
        for what, count in (("attention heads", heads), ("key-value heads", kv_heads)):
            if count % self.tp:
                raise UsageError(f"layout.tp is {self.tp}; expected a divisor of {count} {what}")
        if self.ep > 1 and (not experts or experts % self.ep):
            raise UsageError(
                f"layout.ep is {self.ep}; expected a divisor of {experts} experts"
                if experts
                else f"layout.ep is {self.ep}, and the model has no experts; expected 1"
            )
