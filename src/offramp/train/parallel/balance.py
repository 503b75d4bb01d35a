"""Keeping experts evenly used: by an auxiliary loss, or by a bias that is not trained.

The loss is the one of Switch Transformers (arXiv:2101.03961, eq. 4): E x sum_e f_e P_e, where f_e
is the share of choices that went to expert e, and P_e the mean probability that the router gave it.
It enters the gradients through the routing weights and is added to no other loss. The bias goes up
where an expert gets less than the mean, and down where more (arXiv:2408.15664).

Counts are over whole micro-batches: over the ranks that share their sequences, and for the bias
over all data of a step.

Shapes: N tokens, E experts, K experts a token, L layers with experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from offramp.errors import UsageError
from offramp.train.model import LanguageModel
from offramp.train.parallel.experts import experts_of
from offramp.train.world import World

BIAS = "e_score_correction_bias"
_SEQUENCE_AXES = ("cp", "tp")


class Balance:
    """Watches the routers of this rank's parts, and acts on them.

    kind   "loss", "bias", or "none", which only counts
    rate   coefficient of the loss, or step of the bias
    """

    def __init__(
        self, parts: Sequence[LanguageModel], world: World, *, kind: str, rate: float
    ) -> None:
        self.kind, self.rate, self._world = kind, rate, world
        self._routers = [router for part in parts for router in routers_of(part)]
        if kind == "bias":
            for router in self._routers:
                if bias_of(router) is None:
                    raise UsageError(
                        f"model.balance is 'bias', and {type(router).__name__} has none; expected "
                        "'loss', 'none', or a model with a bias in its routers"
                    )
        self._scale = 1.0
        self._counts: dict[int, Tensor] = {}
        self._loss: Tensor | None = None
        for number, router in enumerate(self._routers):
            self._watch(number, router)

    def begin(self, scale: float) -> None:
        """Before a step, whose losses are multiplied by `scale`."""
        self._scale = scale
        self._counts.clear()
        self._loss = None

    def finish(self) -> None:
        """After a step: move the biases, where that is the way."""
        counts_LE = self.counts() if self.kind == "bias" else None
        if counts_LE is None:
            return
        for router, count_E in zip(self._routers, counts_LE, strict=True):
            bias = bias_of(router)
            assert bias is not None
            step_E = self.rate * (count_E.mean() - count_E).sign()
            with torch.no_grad():
                bias += step_E.view_as(bias).to(bias.dtype)

    def counts(self) -> Tensor | None:
        """How many of the step's choices went to each expert of this stage's layers, (L, E).

        Float32, summed over all ranks that hold the stage; None where nothing was routed.
        """
        if len(self._counts) < len(self._routers) or not self._routers:
            return None
        counts_LE = torch.stack([self._counts[number] for number in range(len(self._routers))])
        group = self._world.group("dp_replicate", "dp_shard", *_SEQUENCE_AXES)
        if group is not None:
            dist.all_reduce(counts_LE, group=group)
        return counts_LE

    def loss(self) -> Tensor | None:
        """The step's auxiliary loss x tokens of this rank, over all layers; float32, shape ()."""
        return self._loss

    def _watch(self, number: int, router: nn.Module) -> None:
        def after(module: Any, inputs: Any, out: Any) -> Any:
            logits_NE, weight_NK, choice_NK = out
            if not torch.is_grad_enabled():  # an evaluation
                return None
            experts = logits_NE.shape[1]
            own_E = choice_NK.flatten().bincount(minlength=experts).float()
            # Layers whose activations are computed again come here twice; the first time counts.
            is_first = torch._C._current_graph_task_id() == -1
            if is_first:
                seen = self._counts.get(number)
                self._counts[number] = own_E if seen is None else seen + own_E
            if self.kind != "loss":
                return None
            whole_E = own_E.clone()
            group = self._world.group(*_SEQUENCE_AXES)
            if group is not None:
                dist.all_reduce(whole_E, group=group)
            share_E = whole_E / whole_E.sum()
            probability_NE = _probabilities(module, logits_NE)
            loss = self.rate * experts * (probability_NE.sum(0) * share_E).sum()
            if is_first:
                self._loss = loss.detach() + (0 if self._loss is None else self._loss)
            return logits_NE, _Attach.apply(weight_NK, loss, self._scale), choice_NK

        router.register_forward_hook(after)


def routers_of(module: nn.Module) -> Iterator[nn.Module]:
    """The routers beside the experts, in order."""
    experts = {id(found) for found in experts_of(module)}
    for block in module.modules():
        children = list(block.children())
        if any(id(child) in experts for child in children):
            yield next(child for child in children if hasattr(child, "top_k"))


def bias_of(router: nn.Module) -> Tensor | None:
    """The router's bias that no gradient trains, or None."""
    for name, value in (*router.named_parameters(), *router.named_buffers()):
        if name.endswith(BIAS):
            return value
    return None


def _probabilities(router: nn.Module, logits_NE: Tensor) -> Tensor:
    """What the router makes of its logits; sigmoids, where it has them, as shares."""
    logits_NE = logits_NE.float()
    if not hasattr(router, "routed_scaling_factor"):
        return logits_NE.softmax(1)
    scores_NE = logits_NE.sigmoid()
    return scores_NE / scores_NE.sum(1, keepdim=True)


class _Attach(torch.autograd.Function):
    """The routing weights, as they are; the loss gets its gradient when they get theirs."""

    @staticmethod
    def forward(ctx: Any, weight_NK: Tensor, loss: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        ctx.like = loss.new_ones(())
        return weight_NK.view_as(weight_NK)

    @staticmethod
    def backward(ctx: Any, grad_NK: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad_NK, ctx.like * ctx.scale, None
