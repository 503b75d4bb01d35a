"""Low-rank adapters (LoRA, Hu et al. 2021) through peft, for whole and sharded models.

The adapters go into transformers' own classes, which stay what they are: sharding plans and names
of layers hold, and an adapted layer's weight is found under `base_layer`. In a mixture of experts
the attention is adapted: peft takes the names of its feed-forward layers, dense and shared ones
too, for the experts, which transformers holds fused.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offramp.errors import UsageError, nearest
from offramp.train.job import LoraSection
from offramp.train.models import draw
from offramp.train.models.build import Config, Model, build, count_experts, need_transformers
from offramp.train.models.folder import replaced
from offramp.train.models.initialize import NameOf, fill, plain_name, stored_tensors
from offramp.train.models.recipe import Step

ADAPTER = "default"
_PREFIX = "base_model.model."  # of the names in peft's files
_BASE = ".base_layer."
_EXPERT_NAMES = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})


def need_peft() -> Any:
    """The package peft. Raises UsageError where it is not installed."""
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise UsageError(
            "lora.rank needs the package peft; pip install 'offramp[train]'"
        ) from error


def adapt(model: Model, section: LoraSection) -> Model:
    """Put adapters into a model, whole and not yet sharded, on the meta device or real.

    Only the adapters require gradients afterwards. Their values come from `initialize_adapters`.
    Raises UsageError for a target that is no linear layer of the model.
    """
    peft = need_peft()
    config = lora_config(model, section)
    with torch.random.fork_rng(devices=[]):
        peft.inject_adapter_in_model(
            config, model, ADAPTER, low_cpu_mem_usage=next(model.parameters()).is_meta
        )
    return model


def lora_config(model: Model, section: LoraSection, base: str = "") -> Any:
    """peft's configuration of the adapters of a model, not yet adapted. Raises UsageError."""
    peft = need_peft()
    layers = linear_layers(model)
    known = sorted({name.rpartition(".")[2] for name in layers})
    for target in section.targets:
        if target not in known:
            hint = nearest(target, known) or f"; expected some of {', '.join(known)}"
            raise UsageError(
                f"lora.targets: {type(model).__name__} has no linear layers {target!r}{hint}"
            )
    targets = set(section.targets or known)
    return peft.LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=targets,
        fan_in_fan_out=any(_is_turned(layer) for layer in layers.values()),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base or None,
    )


def linear_layers(model: Model) -> dict[str, nn.Module]:
    """The layers that adapters can go to: all linear ones but the output head.

    Of a mixture of experts, those of the attention.
    """
    head = model.get_output_embeddings()
    taken = _EXPERT_NAMES if count_experts(model.config)[0] else frozenset()
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or _is_turned(module))
        and module is not head
        and name.rpartition(".")[2] not in taken
    }


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def base_name(name: str) -> str:
    """The name that a weight of an adapted model has in the plain one."""
    return plain_name(name).replace(_BASE, ".")


def initialize_adapters(model: nn.Module, *, seed: int, name_of: NameOf = plain_name) -> None:
    """Give the adapters of a real model, whole or sharded, their initial values.

    As peft does: A uniform within 1 / sqrt(inputs) (Kaiming's with a = sqrt(5)), B zero; drawn by
    seed and name, so that they depend on neither layout nor chip.
    """
    with torch.no_grad():
        for name, tensor in stored_tensors(model).items():
            if not is_adapter(name):
                continue
            bound = 1 / math.sqrt(tensor.shape[1]) if ".lora_A." in name else 0.0
            step = Step("uniform_", 0, tensor.numel(), (-bound, bound))
            zero = Step("fill_", 0, tensor.numel(), (0.0,))
            fill(tensor, (step if bound else zero,), draw.key_of(seed, name_of(name)))


def save_adapter(
    folder: Path | str,
    config: Config,
    section: LoraSection,
    state: Mapping[str, torch.Tensor],
    *,
    base: str = "",
) -> None:
    """Write the adapters in peft's format: `peft.PeftModel.from_pretrained` loads them.

    state: whole CPU tensors of the adapted model, by its names; those of adapters are written.
    base: the folder of the weights under them. Raises UsageError where it cannot be written.
    """
    from safetensors.torch import save_file

    adapters = {
        _PREFIX + plain_name(name).replace(f".{ADAPTER}.", "."): value.contiguous()
        for name, value in state.items()
        if is_adapter(name)
    }
    if not adapters:
        raise UsageError("the state holds no adapters; expected that of a model with lora.rank > 0")
    made_config = lora_config(build(config), section, base)
    made_config.inference_mode = True
    with replaced(Path(folder)) as made:
        made_config.save_pretrained(made)
        save_file(adapters, made / "adapter_model.safetensors", metadata={"format": "pt"})


def merge(
    state: Mapping[str, torch.Tensor], config: Config, section: LoraSection
) -> dict[str, Any]:
    """The plain model's state: each adapted weight plus alpha / rank times B A, in fp32.

    state: whole CPU tensors of the adapted model. What is no adapted weight is passed on as it is.
    """
    turned = {name for name, layer in linear_layers(build(config)).items() if _is_turned(layer)}
    plain = {plain_name(name): value for name, value in state.items()}
    merged: dict[str, torch.Tensor] = {}
    for name, value in plain.items():
        if is_adapter(name):
            continue
        layer, base, _ = name.partition(_BASE)
        down = plain.get(f"{layer}.lora_A.{ADAPTER}.weight") if base else None
        if down is not None and name.endswith(".weight"):
            up = plain[f"{layer}.lora_B.{ADAPTER}.weight"]
            change = (up.float() @ down.float()).mul_(section.alpha / section.rank)
            change = change.T if layer in turned else change
            value = (value.float() + change).to(value.dtype)
        merged[base_name(name)] = value
    return merged


def _is_turned(module: nn.Module) -> bool:
    """Whether a linear layer stores its weight as inputs by outputs, as GPT-2's do."""
    need_transformers()
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)
