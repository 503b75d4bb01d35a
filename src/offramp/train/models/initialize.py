"""Initial values that depend on the seed alone, not on the layout, the chip or the order.

Each parameter gets what transformers' own `_init_weights` would draw, from a generator of its own
(see `draw`); a rank draws its slices only. The model may be whole or sharded (FSDP2, tensor or
expert parallel, or together), on the meta device or real, all of the model or a stage of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from offramp.device import rehearsal
from offramp.errors import RefusedError, nearest
from offramp.train.models import draw
from offramp.train.models.build import Config, Model, build
from offramp.train.models.recipe import Recipe, Recipes, record
from offramp.train.models.slices import local_indices, local_tensor

NameOf = Callable[[str], str]

# What wrappers put into names: torch.compile, activation checkpointing, FSDP1.
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def plain_name(name: str) -> str:
    """A parameter's name without the parts that wrappers of PyTorch add."""
    name = name.removeprefix("module.")  # DDP
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def initialize(
    model: nn.Module,
    *,
    seed: int,
    device: torch.device | str,
    config: Config | None = None,
    name_of: NameOf = plain_name,
) -> None:
    """Make a model real on a device and give every tensor its initial value.

    config: of the whole model; default: `model.config`. name_of: from a name in `model` to the
    name in the whole, unwrapped model, which decides the values. Tied weights stay tied. Raises
    RefusedError for a name that the whole model has not, or an initialization that offramp cannot
    repeat.
    """
    config = model.config if config is None else config
    drawn = not rehearsal.is_under_way()  # then nobody looks at the values
    recipes = record(config) if drawn else None
    materialize(model, device)
    with torch.no_grad():
        for name, tensor in stored_tensors(model).items():
            if recipes is None:
                local_tensor(tensor).zero_()
                continue
            whole = name_of(name)
            if whole not in recipes.names:
                raise RefusedError(
                    f"parameter {name!r} is {whole!r} of no {type(config).__name__} model"
                    f"{nearest(whole, recipes.names)}"
                )
            _check_shape(name, whole, tensor, recipes)
            first = recipes.names[whole]
            fill(tensor, recipes.of[first], draw.key_of(seed, first))
    fill_buffers(model, config)


def materialize(model: nn.Module, device: torch.device | str) -> None:
    """Give a model memory on a device, without values; tied weights stay tied.

    Tensors that have memory there already keep it; where none is missing nothing happens.
    """
    device = torch.device(device)
    tensors = [*model.parameters(), *model.buffers()]
    if not any(tensor.is_meta for tensor in tensors):
        return
    if any(not tensor.is_meta for tensor in tensors):
        raise RefusedError(
            "a part of the model is on the meta device and a part is not; build it with "
            "models.build, or move all of it"
        )
    ties: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                ties.setdefault(id(parameter), []).append((module, key))
    model.to_empty(device=device)
    for (module, key), *others in ties.values():
        for other, other_key in others:
            other._parameters[other_key] = module._parameters[key]


def fill(tensor: torch.Tensor, recipe: Recipe, key: draw.Key) -> None:
    """Write the local elements of a tensor, drawn by its recipe. Raises RefusedError."""
    target = local_tensor(tensor)
    indices = local_indices(tensor)
    if not target.numel():
        return
    flat = target.view(-1) if target.is_contiguous() else torch.empty_like(target).view(-1)
    for place, values in draw.runs(recipe, key, tuple(tensor.shape), indices):
        flat[place : place + values.numel()].copy_(values.to(target.dtype))
    if not target.is_contiguous():
        target.copy_(flat.view(target.shape))


def stored_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint of the model holds: parameters, tied ones once, and persistent buffers."""
    kept = set(model.state_dict(keep_vars=True))
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return {**dict(model.named_parameters()), **buffers}


def fill_buffers(model: nn.Module, config: Config) -> None:
    """Compute the buffers that checkpoints do not hold (rotary frequencies) by the model's code.

    transformers computes them in `_init_weights`, which is called for the modules that have such
    buffers, with their parameters guarded.
    """
    kept = set(model.state_dict(keep_vars=True))
    owners: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and (f"{path}.{key}" if path else key) not in kept:
                owners[path] = module
    if not owners:
        return
    twin: Model = build(config)
    with torch.no_grad():
        for module in owners.values():
            guarded = [*module.parameters(), *_persistent(module)]
            for tensor in guarded:
                tensor._is_hf_initialized = True  # type: ignore[attr-defined]
            twin._init_weights(module)
            for tensor in guarded:
                del tensor._is_hf_initialized  # type: ignore[attr-defined]


def _persistent(module: nn.Module) -> list[torch.Tensor]:
    lost = module._non_persistent_buffers_set
    return [b for key, b in module._buffers.items() if b is not None and key not in lost]


def _check_shape(name: str, whole: str, tensor: torch.Tensor, recipes: Recipes) -> None:
    expected = recipes.shapes[recipes.names[whole]]
    if tuple(tensor.shape) != expected:
        kind = "DTensor" if isinstance(tensor, DTensor) else "tensor"
        raise RefusedError(
            f"parameter {name!r} is a {kind} of {tuple(tensor.shape)}, and the whole model has "
            f"{expected} there; shard it as a DTensor, so that its place is known"
        )
