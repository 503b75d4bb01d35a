"""Configurations from presets and folders, and the figures of models against closed forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from offramp.errors import UsageError
from offramp.train.job import ModelSection
from offramp.train.models.build import (
    build,
    check_sequence,
    configure,
    describe,
    flops_per_token,
)


def write_config(folder: Path, **changes: Any) -> Path:
    config = configure(ModelSection(preset="llama-nano"))
    data = {**config.to_dict(), "bos_token_id": 1, "eos_token_id": 2, **changes}
    (folder / "config.json").write_text(json.dumps(data))
    return folder


def test_vocabulary_replaces_the_presets_and_drops_its_special_tokens() -> None:
    config = configure(ModelSection(preset="ernie-4.5-0.3b"), vocabulary=300)
    assert config.vocab_size == 300
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (None, None, None)
    kept = configure(ModelSection(preset="ernie-4.5-0.3b"))
    assert (kept.vocab_size, kept.pad_token_id, kept.eos_token_id) == (103424, 0, 2)


def test_own_sizes_have_no_special_tokens() -> None:
    config = configure(ModelSection(preset="ernie-4.5-nano"))
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (None, None, None)
    assert build(config).get_input_embeddings().padding_idx is None


def test_changes_go_over_the_preset() -> None:
    section = ModelSection(
        preset="qwen3-nano",
        config={"num_hidden_layers": 2, "rope_theta": 5e5, "eos_token_id": 7, "head_dim": 32},
    )
    config = configure(section)
    assert (config.num_hidden_layers, config.head_dim, config.eos_token_id) == (2, 32, 7)
    assert config.rope_parameters["rope_theta"] == 5e5
    assert len(config.layer_types) == 2


def test_changes_take_common_names_too() -> None:
    config = configure(ModelSection(preset="gpt2-nano", config={"num_hidden_layers": 2}))
    assert (config.n_layer, config.num_hidden_layers) == (2, 2)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (
            ModelSection(config={"num_hiden_layers": 2}),
            "num_hiden_layers: Qwen3Config has no such key; did you mean 'num_hidden_layers'",
        ),
        (ModelSection(config={"hidden_size": "wide"}), "expected int, got str"),
        (ModelSection(preset="qwen4-nano"), "unknown preset 'qwen4-nano'"),
        (ModelSection(folder="/nowhere/at/all"), "config.json: cannot be read"),
    ],
)
def test_refusals_are_one_line(section: ModelSection, expected: str) -> None:
    with pytest.raises(UsageError, match=expected) as caught:
        configure(section)
    assert "\n" not in str(caught.value)


def test_folders_give_their_configuration(tmp_path: Path) -> None:
    folder = write_config(tmp_path, num_hidden_layers=3, torch_dtype="bfloat16")
    config = configure(ModelSection(folder=str(folder)))
    assert (config.num_hidden_layers, config.eos_token_id, config.hidden_size) == (3, 2, 256)
    changed = configure(ModelSection(folder=str(folder), config={"rope_theta": 1e4}))
    assert changed.rope_parameters["rope_theta"] == 1e4
    assert configure(ModelSection(folder=str(folder)), vocabulary=256).eos_token_id is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "lama"}, "'lama' is no language model .* did you mean 'llama'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "weights are quantized"),
        ({"model_type": ""}, "names no model_type"),
    ],
)
def test_folders_that_cannot_train(tmp_path: Path, changes: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        configure(ModelSection(folder=str(write_config(tmp_path, **changes))))


def test_sequences_longer_than_the_models_are_refused() -> None:
    config = configure(ModelSection(preset="gpt2-nano"))
    check_sequence(config, 1024)
    with pytest.raises(UsageError, match=r"1025.*at most 1024.*max_position_embeddings"):
        check_sequence(config, 1025)


def test_build_takes_no_memory() -> None:
    model = build(configure(ModelSection(preset="deepseek-v3")))
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


def test_shape_of_a_dense_model() -> None:
    """Closed form for GPT-2 small: 12 h^2 + 13 h a layer, the tables and the last norm."""
    shape = describe(configure(ModelSection(preset="gpt2")))
    layer = 12 * 768**2 + 13 * 768
    assert shape.without_embeddings == 12 * layer + 2 * 768
    assert shape.embedded == (50257 + 1024) * 768
    assert shape.matmul == 12 * 12 * 768**2 + 50257 * 768
    assert (shape.layers, shape.heads, shape.head_dim, shape.vocabulary) == (12, 12, 64, 50257)


def test_shape_of_a_sparse_model() -> None:
    shape = describe(configure(ModelSection(preset="qwen3-30b-a3b")))
    idle = 48 * (128 - 8) * 3 * 2048 * 768
    assert shape.active == shape.parameters - idle
    assert (shape.experts, shape.experts_per_token, shape.kv_heads) == (128, 8, 4)


@pytest.mark.parametrize("name", ["qwen3-nano", "gpt2-nano", "ernie-4.5-nano", "llama-nano"])
def test_flops_equal_what_pytorch_counts(name: str) -> None:
    """PyTorch counts the forward pass of dense models operation by operation."""
    config = configure(ModelSection(preset=name, config={"num_hidden_layers": 2}))
    config._attn_implementation = "eager"
    model, sequence = build(config).to_empty(device="cpu"), 128
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, sequence, dtype=torch.long), use_cache=False)
    expected = flops_per_token(describe(config), sequence) * sequence / 3
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)


def test_flops_of_a_published_model() -> None:
    """Llama 3.1 405B: 6 N without input table, and 12 * layers * width * sequence."""
    shape = describe(configure(ModelSection(preset="llama-3.1-405b")))
    matrices = 126 * (2 * 16384**2 + 2 * 16384 * 1024 + 3 * 16384 * 53248) + 128256 * 16384
    assert flops_per_token(shape, 8192) == 6 * matrices + 12 * 126 * 16384 * 8192
