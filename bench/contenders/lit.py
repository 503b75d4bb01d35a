"""litgpt: its GPT under Lightning Fabric, with the step of `litgpt pretrain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning
import torch
from litgpt import GPT, Config
from litgpt.scripts.convert_hf_checkpoint import copy_weights_qwen_3
from litgpt.utils import chunked_cross_entropy
from safetensors.torch import load_file

from contenders.gate import Gate, Task

PRECISIONS = {"bf16": "bf16-mixed", "fp32": "32-true"}


def configuration(config: dict[str, Any], sequence: int) -> Config:
    """litgpt's words for a Qwen3 configuration."""
    return Config(
        n_layer=config["num_hidden_layers"],
        n_embd=config["hidden_size"],
        n_head=config["num_attention_heads"],
        n_query_groups=config["num_key_value_heads"],
        head_size=config["head_dim"],
        intermediate_size=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        padded_vocab_size=config["vocab_size"],
        block_size=sequence,
        norm_class_name="RMSNorm",
        norm_eps=config["rms_norm_eps"],
        norm_qk=True,
        mlp_class_name="LLaMAMLP",
        bias=False,
        parallel_residual=False,
        rotary_percentage=1.0,
        rope_base=int(config["rope_parameters"]["rope_theta"]),
    )


def train(task: Task, gate: Gate) -> None:
    """Train until the gate closes."""
    folder = Path(task.folder)
    config = configuration(json.loads((folder / "config.json").read_text()), task.sequence)
    precision: Any = task.option or PRECISIONS[task.precision]
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=precision)
    weights: dict[str, torch.Tensor] = {}
    copy_weights_qwen_3(config, {}, weights, load_file(folder / "model.safetensors"))
    with fabric.init_module(empty_init=False):
        model: Any = GPT(config)
    model.load_state_dict(weights)
    model.max_seq_length = task.sequence
    if task.compile:
        model = torch.compile(model)
    model = fabric.setup(model)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=task.lr,
        betas=task.betas,
        eps=task.eps,
        weight_decay=task.weight_decay,
        fused=True,
    )
    optimizer = fabric.setup_optimizers(optimizer)
    batches = task.batches()
    gate.ready()
    while True:
        tokens, targets = next(batches)
        loss = chunked_cross_entropy(model(tokens), targets)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=task.clip)
        optimizer.step()
        optimizer.zero_grad()
        gate.step(loss.detach())
