"""Initial values: transformers' own recipe, on whole models and on sharded ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from offramp.errors import RefusedError
from offramp.train.job import ModelSection
from offramp.train.models import presets
from offramp.train.models.build import build, configure
from offramp.train.models.initialize import initialize, materialize, plain_name
from offramp.train.models.recipe import record

NANO = [name for name in presets.names() if name.endswith("-nano")]


def make(name: str, seed: int = 1, **changes: Any) -> Any:
    model = build(configure(ModelSection(preset=name, config=changes)))
    initialize(model, seed=seed, device="cpu")
    return model


@pytest.mark.parametrize("name", NANO)
def test_statistics_are_those_of_transformers(name: str) -> None:
    model = make(name)
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(model.config)
    theirs = dict(reference.named_parameters())
    assert set(theirs) == {key for key, _ in model.named_parameters()}
    for key, parameter in model.named_parameters():
        if theirs[key].std() == 0:
            assert torch.equal(parameter, theirs[key]), key
            continue
        noise = 5 / parameter.numel() ** 0.5
        assert parameter.std().item() == pytest.approx(theirs[key].std().item(), rel=noise), key
        assert abs(parameter.mean()) < noise * parameter.std(), key
    buffers = dict(reference.named_buffers())
    assert set(buffers) == {key for key, _ in model.named_buffers()}
    for key, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[key]), key


@pytest.mark.parametrize("name", NANO)
def test_ties_and_flags_stay(name: str) -> None:
    model = make(name)
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings
    twin = dict(build(model.config).named_parameters())
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad == twin[key].requires_grad
        assert not hasattr(parameter, "_is_hf_initialized")


def test_values_depend_on_seed_and_name_only() -> None:
    small = make("qwen3-nano", num_hidden_layers=1).state_dict()
    large = make("qwen3-nano", num_hidden_layers=3).state_dict()
    other = make("qwen3-nano", seed=2, num_hidden_layers=1).state_dict()
    for key, value in small.items():
        assert torch.equal(value, large[key])
        assert value.std() == 0 or not torch.equal(value, other[key])
    first, second = (large[f"model.layers.{i}.mlp.up_proj.weight"] for i in (0, 1))
    assert not torch.equal(first, second)


def test_the_padding_row_is_zero() -> None:
    table = make("ernie-4.5-nano", pad_token_id=5).get_input_embeddings().weight
    assert (table[5] == 0).all()
    assert (table[4] != 0).any()


def test_a_stage_with_the_tied_head_draws_the_same_table() -> None:
    whole = make("qwen3-nano")
    stage = build(whole.config)
    stage.lm_head.weight = torch.nn.Parameter(torch.empty_like(stage.lm_head.weight))
    stage.model.embed_tokens = None
    initialize(stage, seed=1, device="cpu")
    assert torch.equal(stage.lm_head.weight, whole.model.embed_tokens.weight)


def test_names_of_wrappers_are_stripped() -> None:
    name = "module._orig_mod.model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight"
    assert plain_name(name) == "model.layers.0.mlp.up_proj.weight"


def test_foreign_names_are_refused() -> None:
    model = build(configure(ModelSection(preset="llama-nano")))
    with pytest.raises(RefusedError, match=r"did you mean 'model\.embed_tokens\.weight'"):
        initialize(model, seed=1, device="cpu", name_of=lambda name: name + "s")


def test_parts_that_hide_their_place_are_refused() -> None:
    model = build(configure(ModelSection(preset="gpt2-nano")))
    model.transformer.ln_f.weight = torch.nn.Parameter(torch.empty(128, device="meta"))
    with pytest.raises(RefusedError, match=r"\(128,\).*has \(256,\) there; shard it as a DTensor"):
        initialize(model, seed=1, device="cpu")


def test_half_built_models_are_refused() -> None:
    model = build(configure(ModelSection(preset="gpt2-nano")))
    model.transformer.ln_f.weight = torch.nn.Parameter(torch.empty(256))
    with pytest.raises(RefusedError, match="on the meta device and a part is not"):
        materialize(model, "cpu")


def test_recording_a_large_model_takes_no_memory() -> None:
    config = configure(ModelSection(preset="ernie-4.5-300b-a47b", config={"num_hidden_layers": 6}))
    recipes = record(config)
    expert = recipes.of["model.layers.4.mlp.experts.gate_up_proj"]
    assert [(step.op, step.values) for step in expert] == [("normal_", (0.0, 0.02))]
    assert recipes.shapes["model.layers.4.mlp.experts.gate_up_proj"] == (64, 7168, 8192)


@pytest.mark.parametrize("name", ["qwen3-nano", "ernie-4.5-moe-nano", "deepseek-v3-nano"])
def test_values_on_a_virtual_chip_are_those_of_the_cpu(name: str, chip: Any) -> None:
    here = make(name, num_hidden_layers=2)
    there = build(here.config)
    initialize(there, seed=1, device="cuda:0")
    for ours, theirs in (
        (here.parameters(), there.parameters()),
        (here.buffers(), there.buffers()),
    ):
        for value, other in zip(ours, theirs, strict=True):
            assert other.device.type == "cuda"
            assert torch.equal(other.cpu(), value)
