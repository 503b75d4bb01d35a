"""What is done to each decoder layer by itself: computing again, and compiling."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

# Selective: the results of these stay, everything else is computed again (as in Korthikanti et al.,
# arXiv:2205.05198, what is large and cheap goes). Names, for not every build has every operator.
_KEPT = (
    "mm.default",
    "addmm.default",
    "bmm.default",
    "_scaled_mm.default",
    "_scaled_dot_product_flash_attention_for_cpu.default",
    "_scaled_dot_product_flash_attention.default",
    "_scaled_dot_product_efficient_attention.default",
    "_scaled_dot_product_cudnn_attention.default",
    "_scaled_dot_product_fused_attention_overrideable.default",
)
# Alternate: of these every second is computed again too.
_LINEAR = ("mm.default", "addmm.default", "_scaled_mm.default")


def prepare(layer: nn.Module, how: str, *, compiled: bool) -> None:
    """Compute the layer's activations again as `how` says, and compile it.

    What is wholly computed again is compiled by itself, a second call of it being all there is to
    it; what keeps some results is one with the rule of what it keeps.
    """
    steps = [lambda: recompute(layer, how, compiled=compiled)]
    if compiled:
        steps.insert(0 if how == "full" else 1, lambda: compile_layer(layer))
    for step in steps:
        step()


def recompute(layer: nn.Module, how: str, *, compiled: bool = False) -> None:
    """Compute the layer's activations again in the backward pass, as `Layout.recompute` says."""
    if how == "none":
        return
    inner = layer.forward
    # A compiler that reads this takes a context that is given, and only that.
    options: dict[str, Any] = {} if how == "full" else {"context_fn": _keeping(how, compiled)}

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        return checkpoint(inner, *args, use_reentrant=False, **options, **kwargs)

    replace_forward(layer, forward)


def compile_layer(layer: nn.Module) -> None:
    """Compile the layer, without the hooks that shard its weights."""
    replace_forward(layer, torch.compile(layer.forward))


def draw_eagerly() -> None:
    """Let what is compiled draw the random numbers that it would draw uncompiled."""
    from torch._inductor import config

    config.fallback_random = True


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Let this module compute by `forward`; hooks stay around it, and names as they are."""
    vars(module)["forward"] = forward


class _Only(TorchDispatchMode):
    """Hands on to a mode of selective recomputation the operators whose results stay.

    It expects all that it is handed twice, in one order. Other operators need not come so: FSDP
    gathers the weights of experts inside a layer where they are not there, which differs from time
    to time.
    """

    def __init__(self, inner: Any, kept: list[Any]) -> None:
        super().__init__()
        self._inner, self._kept = inner, frozenset(kept)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._kept:
            return self._inner.__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **kwargs)


class _EverySecond:
    """The rule of what stays where every second linear product is computed again; of one pass."""

    def __init__(self, kept: list[Any]) -> None:
        self._kept, self._linear = frozenset(kept), frozenset(_operators(_LINEAR))
        self._counted = {False: 0, True: 0}  # linear products, computed first and again

    def __call__(self, context: Any, func: Any, *_: Any, **__: Any) -> CheckpointPolicy:
        stays = func in self._kept
        if func in self._linear:
            self._counted[context.is_recompute] += 1
            stays = self._counted[context.is_recompute] % 2 == 1
        return CheckpointPolicy.MUST_SAVE if stays else CheckpointPolicy.PREFER_RECOMPUTE


def _keeping(how: str, compiled: bool) -> Callable[[], Any]:
    """What makes the two contexts of a checkpoint that keeps what `how` says."""
    kept = _operators(_KEPT)

    def alternate() -> Any:
        return create_selective_checkpoint_contexts(_EverySecond(kept))

    selective = partial(create_selective_checkpoint_contexts, kept)
    made = alternate if how == "alternate" else selective
    return made if compiled else lambda: tuple(_Only(mode, kept) for mode in made())


def _operators(names: Iterable[str]) -> list[Any]:
    """Those that this build of PyTorch has."""
    split = (name.partition(".")[::2] for name in names)
    return [
        getattr(getattr(torch.ops.aten, packet), overload)
        for packet, overload in split
        if hasattr(torch.ops.aten, packet)
    ]
