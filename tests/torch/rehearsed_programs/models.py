"""Training steps of small models, with values or without; a synchronization ends each model.

Prints the peak of allocated memory after each model.
"""

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.device import opened
from offramp.device.rehearsal import Recording
from offramp.tape import Group, TapeWriter

CUDA, STEPS = torch.device("cuda"), 2
chip = opened()
assert chip is not None
recording = None if chip.native.rehearsing() else Recording(chip, lambda steps: None)


def train(model: nn.Module, loss_of: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> int:
    for _ in range(STEPS):
        loss_of().backward()
        optimizer.step()
        optimizer.zero_grad()
    return int(torch.cuda.max_memory_allocated())


def mlp(**settings: bool) -> int:
    model = nn.Sequential(nn.Linear(96, 256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, 10))
    model.to(CUDA)
    inputs, targets = torch.randn(64, 96, device=CUDA), torch.randint(10, (64,), device=CUDA)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **settings)
    return train(model, lambda: F.cross_entropy(model(inputs), targets), optimizer)


def convolutions() -> int:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).to(CUDA)
    inputs, targets = torch.randn(8, 3, 32, 32, device=CUDA), torch.zeros(8, 10, device=CUDA)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return train(model, lambda: F.mse_loss(model(inputs), targets), optimizer)


SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
}


def qwen3(*, checkpointing: bool) -> int:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = Qwen3ForCausalLM(Qwen3Config(**SIZES)).to(CUDA)
    if checkpointing:
        model.gradient_checkpointing_enable()
    return language(model.train())


def moe() -> int:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
    return language(Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes)).to(CUDA).train())


def language(model: nn.Module) -> int:
    tokens = torch.randint(320, (2, 48), device=CUDA)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss_of() -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss: Tensor = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        return loss

    return train(model, loss_of, optimizer)


MODELS: dict[str, Callable[[], int]] = {
    "mlp fused": lambda: mlp(fused=True),
    "mlp foreach": lambda: mlp(foreach=True),
    "convolutions": convolutions,
    "qwen3": lambda: qwen3(checkpointing=False),
    "qwen3 checkpointing": lambda: qwen3(checkpointing=True),
    "moe": moe,
}

peaks = {}
for name, play in MODELS.items():
    gc.collect()
    torch.manual_seed(1)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    peaks[name] = play()
    torch.cuda.synchronize()
if recording is not None:
    reel = recording.take()
    with TapeWriter(Path(sys.argv[1]), {"chip": chip.chip.name, "rank": 0}) as writer:
        writer.add_signatures(reel.signatures)
        writer.add_names(reel.names)
        writer.add_groups([Group(tuple(g["ranks"]), g["name"]) for g in reel.groups])
        writer.add_records(reel.records)
print(json.dumps(peaks))
