"""Adapters: through peft, the same values anywhere, and back out with equal logits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from offramp.errors import UsageError
from offramp.train.job import LoraSection, ModelSection
from offramp.train.models import presets
from offramp.train.models.build import build, configure
from offramp.train.models.folder import load_weights, save_folder
from offramp.train.models.initialize import initialize, materialize
from offramp.train.models.lora import (
    adapt,
    base_name,
    initialize_adapters,
    is_adapter,
    linear_layers,
    merge,
    save_adapter,
)

NANO = [name for name in presets.names() if name.endswith("-nano")]
IDS = torch.arange(48).view(2, 24)
SECTION = LoraSection(rank=4, alpha=8.0)
# peft's PeftModel asks transformers for a property that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def configured(name: str) -> Any:
    return configure(ModelSection(preset=name, config={"num_hidden_layers": 2, "vocab_size": 256}))


def make(name: str = "llama-nano") -> Any:
    model = build(configured(name))
    initialize(model, seed=1, device="cpu")
    return model.eval()


def trained(name: str, section: LoraSection = SECTION) -> Any:
    """An adapted model whose B is not zero, as after training."""
    model = adapt(make(name), section).eval()
    initialize_adapters(model, seed=1)
    for key, value in model.named_parameters():
        if ".lora_B." in key:
            torch.nn.init.normal_(value, std=0.05)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NANO)
def test_fresh_adapters_change_nothing_and_are_all_that_trains(name: str) -> None:
    plain = logits(make(name))
    model = adapt(make(name), SECTION)
    initialize_adapters(model, seed=1)
    assert torch.equal(logits(model), plain)
    grads = {key for key, value in model.named_parameters() if value.requires_grad}
    assert grads == {key for key, _ in model.named_parameters() if is_adapter(key)}
    assert len(grads) == 2 * len(linear_layers(make(name)))
    assert not any("lm_head" in key for key in grads)


@pytest.mark.parametrize("name", NANO)
def test_peft_loads_what_is_saved_with_equal_logits(name: str, tmp_path: Path) -> None:
    model = trained(name)
    save_adapter(tmp_path / "adapter", model.config, SECTION, model.state_dict(), base="base")
    loaded = peft.PeftModel.from_pretrained(make(name), str(tmp_path / "adapter"))
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(loaded), logits(make(name)))
    assert loaded.peft_config["default"].base_model_name_or_path == "base"


@pytest.mark.parametrize("name", NANO)
def test_merged_weights_are_those_of_peft(name: str, tmp_path: Path) -> None:
    model = trained(name)
    state = merge(model.state_dict(), model.config, SECTION)
    save_folder(tmp_path / "out", configured(name), state, dtype=torch.float32)
    other = build(configured(name))
    load_weights(other, tmp_path / "out", device="cpu")
    torch.testing.assert_close(logits(other), logits(model), rtol=0, atol=2e-5)
    save_adapter(tmp_path / "adapter", model.config, SECTION, model.state_dict())
    reference = peft.PeftModel.from_pretrained(make(name), str(tmp_path / "adapter"))
    for key, value in reference.merge_and_unload().state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=1e-6)


def test_a_folder_loads_under_adapters_on_the_meta_device(tmp_path: Path) -> None:
    plain = make("qwen3-nano")
    save_folder(tmp_path / "out", plain.config, plain.state_dict(), dtype=torch.float32)
    model = adapt(build(plain.config), SECTION)
    assert all(value.is_meta for value in model.parameters())
    load_weights(model, tmp_path / "out", device="cpu", name_of=base_name, skip=is_adapter)
    initialize_adapters(model, seed=1)
    assert torch.equal(logits(model), logits(plain))


def test_initial_values_are_kaimings_and_fixed_by_seed_and_name() -> None:
    first = adapt(make(), SECTION)
    second = adapt(build(configured("llama-nano")), SECTION)
    materialize(second, "cpu")
    other = adapt(make(), SECTION)
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        initialize_adapters(model, seed=seed)
    values = {k: v for k, v in first.named_parameters() if ".lora_A." in k}
    for key, value in values.items():
        bound = 1 / math.sqrt(value.shape[1])
        assert 0.97 * bound < value.abs().max() <= bound
        assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert torch.equal(value, second.get_parameter(key))
        assert not torch.equal(value, other.get_parameter(key))


def test_mixtures_adapt_their_attention() -> None:
    model = adapt(make("ernie-4.5-moe-nano"), SECTION)
    found = {key.split(".")[4] for key, _ in model.named_parameters() if is_adapter(key)}
    assert found == {"q_proj", "k_proj", "v_proj", "o_proj"}
    with pytest.raises(UsageError, match="no linear layers 'up_proj'"):
        adapt(make("qwen3-moe-nano"), LoraSection(rank=2, targets=("up_proj",)))


def test_adapting_leaves_the_random_state_alone() -> None:
    model = make()
    before = torch.get_rng_state()
    adapt(model, SECTION)
    assert torch.equal(torch.get_rng_state(), before)


def test_targets_choose_layers() -> None:
    model = adapt(make(), LoraSection(rank=2, targets=("q_proj", "down_proj")))
    found = {key.split(".")[4] for key, _ in model.named_parameters() if is_adapter(key)}
    assert found == {"q_proj", "down_proj"}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("q_prj", "no linear layers 'q_prj'; did you mean 'q_proj'"),
        ("lm_head", "no linear layers 'lm_head'"),
        ("zzz", "expected some of down_proj, gate_proj"),
    ],
)
def test_unknown_targets_name_the_nearest(target: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        adapt(make(), LoraSection(rank=2, targets=(target,)))


def test_a_state_without_adapters_is_refused(tmp_path: Path) -> None:
    model = make()
    with pytest.raises(UsageError, match="holds no adapters"):
        save_adapter(tmp_path / "out", model.config, SECTION, model.state_dict())
