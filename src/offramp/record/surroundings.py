"""What the recorder watches: calls of modules, `backward`, scaled losses, optimizers, ranks."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from offramp.record import configuration, sampling


def watch_calls(
    passes_by: Callable[[], bool],
    begin: Callable[[nn.Module, Any], None],
    end: Callable[[nn.Module, Any, Any], Any],
) -> Callable[[], None]:
    """Have every module's call begin and end with a word, unless it passes by; the answer takes
    that back.

    begin   is given the module and its arguments
    end     is given the module, its keywords and its output (none where it failed), and gives
            another output, or none to leave it
    """
    original = nn.Module.__call__

    @functools.wraps(original)
    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or passes_by():
            return original(module, *args, **kwargs)
        begin(module, args)
        try:
            output = original(module, *args, **kwargs)
        except BaseException:
            end(module, {}, None)
            raise
        moved = end(module, kwargs, output)
        return output if moved is None else moved

    _pass_over(call, inner_too=False)  # what is compiled begins below it
    for word in (passes_by, begin, end):
        _pass_over(word, inner_too=True)

    def put_back() -> None:
        nn.Module.__call__ = original  # type: ignore[method-assign]

    nn.Module.__call__ = call  # type: ignore[method-assign]
    return put_back


def _pass_over(function: Any, *, inner_too: bool) -> None:
    """Have TorchDynamo run this function as it stands, and what it calls or not.

    Compiled, one function that every module comes by would soon be at the limit of recompilations.
    As `torch._dynamo.skip` and `disable`, which would import the compiler.
    """
    frames = torch._C._dynamo.eval_frame
    skip, follow = frames._FrameAction.SKIP, frames._FrameAction.DEFAULT
    strategy = frames._FrameExecStrategy(skip, skip if inner_too else follow)
    frames.set_code_exec_strategy(getattr(function, "__func__", function).__code__, strategy)


def watch_backward(
    note: Callable[[Any], None], note_clip: Callable[[Any], None]
) -> Callable[[], None]:
    """Have `note` called with what each `backward` begins at, and `note_clip` with the parameters
    whose gradients are to be clipped; the answer takes both back.

    A scaled loss knows the loss that it was made of, under `_offramp_unscaled`.
    """
    original, original_scale = torch.autograd.backward, torch.amp.GradScaler.scale
    original_clip = torch.nn.utils.clip_grad_norm_

    @functools.wraps(original)
    def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        note(tensors)
        return original(tensors, *args, **kwargs)

    @functools.wraps(original_scale)
    def scale(scaler: Any, outputs: Any) -> Any:
        scaled = original_scale(scaler, outputs)
        if isinstance(scaled, Tensor) and scaled is not outputs:
            scaled._offramp_unscaled = outputs.detach()  # type: ignore[attr-defined]
        return scaled

    @functools.wraps(original_clip)
    def clip(parameters: Any, *args: Any, **kwargs: Any) -> Any:
        listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        note_clip(listed)
        return original_clip(listed, *args, **kwargs)

    def put_back() -> None:
        _set_clip(original_clip)
        torch.autograd.backward = original
        torch.amp.GradScaler.scale = original_scale  # type: ignore[method-assign]

    _set_clip(clip)
    torch.autograd.backward = backward
    torch.amp.GradScaler.scale = scale  # type: ignore[method-assign, assignment]
    return put_back


def _set_clip(function: Any) -> None:
    torch.nn.utils.clip_grad_norm_ = function
    torch.nn.utils.clip_grad.clip_grad_norm_ = function


def norms(gradients: Iterable[Tensor]) -> list[Tensor]:
    """The norm of the gradients of each device and format, where they are."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in gradients:
        is_own = type(gradient) is Tensor and gradient.layout is torch.strided
        local = gradient if is_own else sampling.plain(gradient)
        if local is not None:
            groups.setdefault((local.device, local.dtype), []).append(local)
    with torch.no_grad():
        return [torch.stack(torch._foreach_norm(g)).float().norm() for g in groups.values()]


def settings(optimizer: Any) -> dict[str, Any]:
    """The numbers of the optimizer's groups that a schedule changes; groups alike stand once."""
    told = configuration.optimizer(optimizer)
    unique: list[Any] = []
    for group in told["groups"]:
        if group not in unique:
            unique.append(group)
    return {"class": told["class"], "groups": unique}


def place() -> tuple[int, int]:
    """The rank of this process and how many there are, as its launcher or process group says."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank()), int(distributed.get_world_size())
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if rank.isdecimal() and world.isdecimal():
        return int(rank), int(world)
    return 0, 1
