"""One model over the ranks of a layout, and the steps that train it there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from offramp.train.layout import Layout
from offramp.train.model import LanguageModel
from offramp.train.parallel import experts, gradients, layers, meshes, spread, stages, tensor
from offramp.train.parallel.balance import Balance
from offramp.train.parallel.context import Context
from offramp.train.parallel.numbers import Numbers
from offramp.train.parallel.pipeline import Pipeline
from offramp.train.parallel.rows import Feeder, MicroBatch, MicroBatches
from offramp.train.world import World

__all__ = [
    "Balance",
    "MicroBatch",
    "MicroBatches",
    "Numbers",
    "Parallel",
    "parallelize",
]

DATA_AXES = ("dp_replicate", "dp_shard", "cp")


def parallelize(
    model: LanguageModel,
    layout: Layout,
    world: World,
    numbers: Numbers,
    *,
    materialize: Callable[[LanguageModel], None],
) -> Parallel:
    """Spread a whole model, on the meta device, over the ranks of a layout.

    `materialize` is called with each part that this rank gets: it gives the weights memory and
    values, by the names that they have in the whole model (`part.causal`), DTensors among them;
    tied weights must stay tied. Raises UsageError where the model or the device forbids the layout.
    """
    if numbers.compile and numbers.eager_random:
        layers.draw_eagerly()
    parts = stages.cut(model, layout, world.coordinate("pp"))
    made = meshes.make(layout, world) if layout.is_sharded else None
    for part in parts:
        experts.register(part, world.device, numbers.dtype)
        if made is not None and made.tp is not None:
            tensor.apply(part, layout, made.tp)
        if made is not None and made.ep is not None:
            experts.spread_out(part, made.ep)
        for layer in part.layers:
            layers.prepare(layer, layout.recompute, compiled=numbers.compile)
        if made is not None:
            spread.shard(part, layout, numbers, made)
    if layout.async_tp and made is not None and made.tp is not None:
        tensor.overlap(made.tp.get_group(), is_compiled=numbers.compile, device=world.device)
    for part in parts:
        materialize(part)
    context_group = world.group("cp")
    context = None if context_group is None else Context(context_group)
    spreads = [_spread(part, layout, world) for part in parts]
    return Parallel(spreads, layout, world, numbers, Feeder(world.device, numbers, context))


def _spread(part: LanguageModel, layout: Layout, world: World) -> spread.Spread:
    if layout.is_sharded:
        return spread.Sharded(part, layout)
    return spread.Replicated(part, world) if layout.dp_replicate > 1 else spread.Spread(part)


class Parallel:
    """This rank's parts of a model, and the steps that all ranks take together."""

    def __init__(
        self,
        spreads: list[spread.Spread],
        layout: Layout,
        world: World,
        numbers: Numbers,
        feeder: Feeder,
    ) -> None:
        self.layout, self.world, self.numbers = layout, world, numbers
        self._spreads, self._feeder = spreads, feeder
        self._pipeline = (
            Pipeline(spreads, layout, world, numbers, feeder) if layout.pp > 1 else None
        )
        self.balance: Balance | None = None
        # FSDP's policy casts weights once a gathering; elsewhere autocast does, at each product.
        self._autocasts = numbers.precision != "fp32" and not layout.is_sharded

    @property
    def parts(self) -> list[LanguageModel]:
        """The stages of the pipeline that this rank holds; one, except interleaved."""
        return [one.part for one in self._spreads]

    def forward_backward(self, rows: MicroBatches, scale: float) -> Tensor:
        """Run a step's micro-batches; gradients are those of `scale` x the sum of all losses.

        Returns the sum of this rank's losses, in nats, float32, shape (); `total` adds up ranks.
        Gradients are sums over all ranks; there must be none from before.
        """
        if self.balance is not None:
            self.balance.begin(scale)
        if self._pipeline is not None:
            loss = self._pipeline.forward_backward(rows, scale)
        else:
            loss = self._accumulate(rows, scale)
        if self.balance is not None:
            self.balance.finish()
        return loss

    def _accumulate(self, rows: MicroBatches, scale: float) -> Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=self.world.device)
        (one,) = self._spreads
        for number, row in enumerate(rows):
            tokens, keywords = self._feeder.feed(row)
            with one.micro_batch(last=number == len(rows) - 1):
                with self._cast():
                    (own,) = one.call(tokens, **keywords)
                (own * scale).backward()
            loss += own.detach()
        one.settle()
        return loss

    def balance_experts(self, kind: str, rate: float) -> Balance:
        """Keep experts evenly used in every step from now on; see `Balance`. Raises UsageError."""
        self.balance = Balance(self.parts, self.world, kind=kind, rate=rate)
        return self.balance

    @torch.no_grad()
    def evaluate(self, rows: MicroBatches) -> Tensor:
        """The sum of this rank's losses, as `forward_backward` gives it, without gradients."""
        if self._pipeline is not None:
            return self._pipeline.evaluate(rows)
        loss = torch.zeros((), dtype=torch.float32, device=self.world.device)
        (one,) = self._spreads
        for row in rows:
            tokens, keywords = self._feeder.feed(row)
            with self._cast():
                loss += one.part(tokens, **keywords)[0]
        one.settle()
        return loss

    @contextmanager
    def products(self) -> Iterator[None]:
        """For other uses of the parts: products are in the format of the job.

        At the end the parameters are again what `parameters` gives.
        """
        with self._cast():
            yield
        for one in self._spreads:
            one.settle()

    def _cast(self) -> AbstractContextManager[object]:
        if not self._autocasts:
            return nullcontext()
        return torch.autocast(self.world.device.type, self.numbers.dtype)

    def total(self, value: Tensor) -> Tensor:
        """The sum of `value` over ranks that saw other tokens, or hold other stages; a copy."""
        out = value.clone()
        group = self.world.group("pp", *DATA_AXES)
        if group is not None:
            dist.all_reduce(out, group=group)
        return out

    def gradient_norm(self) -> Tensor:
        """The L2 norm of all gradients of all ranks, float32, shape (); equal on every rank."""
        owned = (p for part in self.parts for p in stages.owned(part))
        square = gradients.square_sum(owned, self.layout, self.world.device)
        if self.world.mesh is not None:
            dist.all_reduce(square)
        return square.sqrt()

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This rank's parameters, by their names in the whole model."""
        for part in self.parts:
            yield from part.causal.named_parameters()
