"""Hugging Face folders: equal logits in both directions, and clear ends."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from offramp.errors import UsageError
from offramp.train.job import ModelSection
from offramp.train.models import presets
from offramp.train.models.build import build, configure
from offramp.train.models.folder import load_weights, replaced, save_folder, weight_files
from offramp.train.models.initialize import initialize

NANO = [name for name in presets.names() if name.endswith("-nano")]
IDS = torch.arange(48).view(2, 24)


def make(name: str = "llama-nano", **changes: Any) -> Any:
    model = build(configure(ModelSection(preset=name, config={"num_hidden_layers": 2, **changes})))
    initialize(model, seed=1, device="cpu")
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits  # type: ignore[no-any-return]


def stored(folder: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    found = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                value = file.get_tensor(name)
                found[name] = (value.dtype, tuple(value.shape))
    return found


@pytest.mark.parametrize("name", NANO)
def test_a_written_folder_loads_with_equal_logits(name: str, tmp_path: Path) -> None:
    model = make(name)
    save_folder(
        tmp_path / "out", model.config, model.state_dict(), dtype=torch.float32, shard_size="2MB"
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    assert torch.equal(logits(loaded), logits(model))
    assert len(weight_files(tmp_path / "out")) > 1
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize("name", NANO)
def test_a_folder_of_transformers_loads_with_equal_logits(name: str, tmp_path: Path) -> None:
    config = configure(ModelSection(preset=name, config={"num_hidden_layers": 2}))
    torch.manual_seed(1)
    reference = AutoModelForCausalLM.from_config(config)
    reference.save_pretrained(tmp_path)
    model = build(configure(ModelSection(folder=str(tmp_path))))
    load_weights(model, tmp_path, device="cpu")
    assert torch.equal(logits(model), logits(reference))
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == config.tie_word_embeddings
    flags = {key: value.requires_grad for key, value in reference.named_parameters()}
    assert {key: value.requires_grad for key, value in model.named_parameters()} == flags


def test_experts_are_stored_one_by_one(tmp_path: Path) -> None:
    model = make("qwen3-moe-nano")
    save_folder(tmp_path / "out", model.config, model.state_dict())
    names = stored(tmp_path / "out")
    assert names["model.layers.1.mlp.experts.7.up_proj.weight"][1] == (128, 256)
    assert not any("gate_up_proj" in name for name in names)


def test_weights_are_rounded_but_routers_are_not(tmp_path: Path) -> None:
    model = make("ernie-4.5-moe-nano")
    save_folder(tmp_path / "out", model.config, model.state_dict())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    kept = {name for name, (dtype, _) in stored(tmp_path / "out").items() if dtype == torch.float32}
    assert kept == {
        "model.layers.1.mlp.gate.weight",
        "model.layers.1.mlp.moe_statics.e_score_correction_bias",
    }
    assert model.config.dtype != torch.bfloat16


def test_a_tied_head_that_is_stored_too_loads(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = make("qwen3-nano")
    model.config.save_pretrained(tmp_path)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    assert "lm_head.weight" in state
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    other = build(model.config)
    load_weights(other, tmp_path, device="cpu")
    assert torch.equal(logits(other), logits(model))


def test_names_of_the_first_gpt2_files_load(tmp_path: Path) -> None:
    """The published GPT-2 files name tensors without 'transformer.', and hold masks too."""
    from safetensors.torch import save_file

    model = make("gpt2-nano")
    model.config.save_pretrained(tmp_path)
    state = {
        key.removeprefix("transformer."): value
        for key, value in model.state_dict().items()
        if key != "lm_head.weight"
    }
    state["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    other = build(model.config)
    load_weights(other, tmp_path, device="cpu")
    assert torch.equal(logits(other), logits(model))


def test_the_tokenizer_goes_along_and_an_old_folder_is_replaced(tmp_path: Path) -> None:
    model = make()
    target = tmp_path / "deep" / "out"
    for text in ("first", "second"):
        save_folder(
            target,
            model.config,
            model.state_dict(),
            write_tokenizer=lambda made, text=text: (made / f"{text}.json").write_text("{}"),
        )
    assert (target / "second.json").exists()
    assert not (target / "first.json").exists()
    assert {path.name for path in target.parent.iterdir()} == {"out"}


def test_nothing_is_left_of_a_folder_that_failed(tmp_path: Path) -> None:
    model = make()

    def fail(made: Path) -> None:
        raise RuntimeError("tokenizer")

    with pytest.raises(RuntimeError, match="tokenizer"):
        save_folder(tmp_path / "out", model.config, model.state_dict(), write_tokenizer=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hidden_size": 128}, r"is \(4096, 256\) there, and \(4096, 128\) in LlamaForCausalLM"),
        ({"num_hidden_layers": 1}, "model.layers.1.* is not in LlamaForCausalLM"),
        ({"num_hidden_layers": 3}, "lacks model.layers.2.* and 6 more; expected all weights"),
        ({"vocab_size": 300}, r"embed_tokens.weight is \(4096, 256\) there, and \(300, 256\)"),
        ({"tie_word_embeddings": False}, r"lacks lm_head\.weight; expected"),
    ],
)
def test_weights_of_another_model_end_in_one_line(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    model = make()
    save_folder(tmp_path / "out", model.config, model.state_dict())
    other = build(configure(ModelSection("llama-nano", config={"num_hidden_layers": 2, **changes})))
    with pytest.raises(UsageError, match=expected) as caught:
        load_weights(other, tmp_path / "out", device="cpu")
    assert "\n" not in str(caught.value)


def test_folders_without_usable_weights_end_in_one_line(tmp_path: Path) -> None:
    model = build(configure(ModelSection(preset="llama-nano")))
    with pytest.raises(UsageError, match=r"config\.json: cannot be read"):
        load_weights(model, tmp_path, device="cpu")
    configure(ModelSection(preset="qwen3-nano")).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="weights of a 'qwen3' model; expected those of Llama"):
        load_weights(model, tmp_path, device="cpu")
    model.config.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"model\.safetensors: not there"):
        load_weights(model, tmp_path, device="cpu")
    (tmp_path / "model.safetensors").write_bytes(b"12345678901234567890")
    with pytest.raises(UsageError, match=r"model\.safetensors: damaged, or no safetensors"):
        load_weights(model, tmp_path, device="cpu")


@pytest.mark.parametrize("change", ["drop", "add", "shape"])
def test_states_of_another_model_are_not_written(tmp_path: Path, change: str) -> None:
    model = make()
    state = dict(model.state_dict())
    if change == "drop":
        del state["model.norm.weight"]
    elif change == "add":
        state["model.norm.bias"] = torch.zeros(256)
    else:
        state["model.norm.weight"] = torch.zeros(8)
    with pytest.raises(UsageError, match=r"model\.norm"):
        save_folder(tmp_path / "out", model.config, state)
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_place_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = make()
    with pytest.raises(UsageError, match=r"file/out: cannot be written \(.*\); expected a place"):
        save_folder(tmp_path / "file" / "out", model.config, model.state_dict())


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_is_never_replaced(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("mine")
    else:
        (tmp_path / "elsewhere").mkdir()
        target.symlink_to(tmp_path / "elsewhere")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UsageError, match="out: is no folder"), replaced(target):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_ends_in_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="Permission denied"), replaced(tmp_path / "out"):
        pass
