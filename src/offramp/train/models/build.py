"""Configurations, models without memory, and what a model costs.

`transformers` is imported where it is needed: an optional extra of the package.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offramp.errors import UsageError, nearest
from offramp.train.job import ModelSection
from offramp.train.models import presets

Config = Any  # transformers' PreTrainedConfig
Model = Any  # transformers' PreTrainedModel

SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id")
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
# Accepted by every configuration class, and moved to `rope_parameters` by it.
_ROPE_KEYS = ("rope_theta", "rope_scaling", "partial_rotary_factor")


@dataclass(frozen=True)
class Shape:
    """A model in figures; counts are of weights, tied ones counted once.

    hidden, head_dim, vocabulary: widths in elements. experts: routed ones of a layer, 0 without.
    parameters: all that a checkpoint holds. active: those that one token meets (its own experts
    instead of all). embedded: of the tables of tokens and positions and of the output head.
    matmul: active ones that multiply activations, the output head included, tied or not.
    attention_width: heads * (query/key width + value width) of a layer.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    experts_per_token: int
    hidden: int
    vocabulary: int
    parameters: int
    active: int
    embedded: int
    matmul: int
    attention_width: int

    @property
    def without_embeddings(self) -> int:
        """Parameters but for the tables of tokens and positions and the output head."""
        return self.parameters - self.embedded


def need_transformers() -> Any:
    """The package transformers. Raises UsageError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            "training needs the package transformers; pip install 'offramp[train]'"
        ) from error
    return transformers


def configure(model: ModelSection, *, vocabulary: int | None = None) -> Config:
    """The configuration of a job's model.

    vocabulary: tokens of the tokenizer, where it is not the model's own. The special token ids
    name tokens of the old vocabulary then and are dropped, as they always are of our own sizes.
    Raises UsageError (unknown preset, folder or key, a value that the class refuses).
    """
    if model.folder:
        published, own = _read_folder(Path(model.folder)), False
        where = f"{model.folder}/config.json"
    else:
        preset = presets.load(model.preset)
        published, own = dict(preset.config), preset.own
        where = f"preset {model.preset!r}"
    model_type = str(published.pop("model_type"))
    known = _config_class(model_type, where)
    values = _overridden(known, published, model.config)
    foreign = vocabulary is not None and vocabulary != values.get("vocab_size")
    if vocabulary is not None:
        values["vocab_size"] = vocabulary
    for name in SPECIAL_TOKENS:
        if name not in model.config and (own or foreign) and name in _keys(known):
            values[name] = None
    return _make(known, values, where)


def check_sequence(config: Config, sequence: int) -> None:
    """Refuse a sequence (in tokens) that is longer than the model's. Raises UsageError."""
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and sequence > longest:
        raise UsageError(
            f"data.sequence is {sequence}, and the model takes at most {longest} tokens; shorten "
            f"it, or set model.config.max_position_embeddings to {sequence}"
        )


def build(config: Config) -> Model:
    """The model for causal language modeling on the meta device: fp32, without memory or values."""
    transformers = need_transformers()
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def describe(config: Config, model: nn.Module | None = None) -> Shape:
    """The figures of a configuration, counted on the model itself (built on meta, if not given)."""
    model = build(config) if model is None else model
    experts, chosen = count_experts(config)
    head = model.get_output_embeddings()  # type: ignore[operator]
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    total = active = embedded = matmul = 0
    for tensor in _stored(model):
        count = tensor.numel()
        used = count
        if experts and tensor.dim() == 3 and tensor.shape[0] == experts:
            used = count // experts * chosen
        total, active = total + count, active + used
        if id(tensor) in tables or tensor is head.weight:
            embedded += count
        elif tensor.dim() > 1 and tensor.requires_grad:
            matmul += used
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    key = getattr(config, "qk_head_dim", None) or head_dim
    value = getattr(config, "v_head_dim", None) or head_dim
    return Shape(
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        experts=experts,
        experts_per_token=chosen,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        parameters=total,
        active=active,
        embedded=embedded,
        matmul=matmul + head.weight.numel(),
        attention_width=heads * (key + value),
    )


def flops_per_token(shape: Shape, sequence: int) -> int:
    """Floating-point operations that training spends on a token, as utilization (MFU) counts them.

    6 * matmul + 12 * layers * heads * head_dim * sequence (Chowdhery et al. 2022, "PaLM",
    appendix B; the same terms as Megatron-LM's throughput formula): two operations a multiply-add,
    forward once, backward twice; the attention term is that of all pairs of positions, not halved
    for causal masks, and nothing recomputed counts. `matmul` are the active parameters that
    multiply activations, the head included, lookups not. Where keys and values differ in width
    (latent attention) 2 * head_dim stands for their sum.
    """
    return 6 * shape.matmul + 6 * shape.layers * shape.attention_width * sequence


def _stored(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    kept = set(model.state_dict())
    yield from (buffer for name, buffer in model.named_buffers() if name in kept)


def count_experts(config: Config) -> tuple[int, int]:
    """Routed experts of a layer, and how many of them a token meets; 0, 0 of a dense model."""
    count = next((n for key in _EXPERT_COUNTS if (n := getattr(config, key, None))), 0)
    return count, getattr(config, "num_experts_per_tok", 0) if count else 0


def _read_folder(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); expected a local Hugging Face folder"
        ) from error
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    if not isinstance(data, dict) or not data.get("model_type"):
        raise UsageError(f"{path}: names no model_type; expected a Hugging Face configuration")
    if data.get("quantization_config"):
        raise UsageError(
            f"{path}: the weights are quantized; training needs a folder with bf16, fp16 or fp32"
        )
    return data


def _config_class(model_type: str, where: str) -> Any:
    need_transformers()
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type not in CONFIG_MAPPING or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UsageError(
            f"{where}: model_type {model_type!r} is no language model that transformers knows"
            f"{nearest(model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}"
        )
    return CONFIG_MAPPING[model_type]


def _keys(known: Any) -> set[str]:
    fields = {name for base in known.__mro__ for name in getattr(base, "__annotations__", {})}
    keys = {name for name in fields if not name.startswith("_")} | set(known.attribute_map)
    return keys | set(_ROPE_KEYS) if "rope_parameters" in keys else keys


def _overridden(
    known: Any, published: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The published values with a job's own over them, each under the name its class stores."""
    keys = _keys(known) | set(published)
    for key in changes:
        if key not in keys:
            raise UsageError(
                f"model.config.{key}: {known.__name__} has no such key{nearest(key, keys)}"
            )
    alias = known.attribute_map
    values = {alias.get(key, key): value for key, value in published.items()}
    changes = {alias.get(key, key): value for key, value in changes.items()}
    if rope := values.get("rope_parameters"):
        moved = {key: changes.pop(key) for key in _ROPE_KEYS if key in changes}
        scaling = moved.pop("rope_scaling", None)
        values["rope_parameters"] = {
            **(rope if scaling is None else {}),
            **(scaling or {}),
            **moved,
        }
    # Written by transformers for the number of layers that the file had.
    if changes.get("num_hidden_layers", values.get("num_hidden_layers")) != values.get(
        "num_hidden_layers"
    ):
        values.pop("layer_types", None)
        values.pop("max_window_layers", None)
    return {**values, **changes}


def _make(known: Any, values: dict[str, Any], where: str) -> Config:
    dropped = ("architectures", "transformers_version", "torch_dtype", "dtype", "auto_map")
    try:
        return known(**{key: value for key, value in values.items() if key not in dropped})
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{where}: {known.__name__} refuses the configuration: {reason}"
        ) from error
    except Exception as error:  # huggingface_hub's strict dataclasses raise their own classes
        if "Strict" not in type(error).__name__:
            raise
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{where}: {known.__name__} refuses the configuration: {reason}"
        ) from error
