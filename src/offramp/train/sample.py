"""Lets the model write: a look at what it has learnt."""

from __future__ import annotations

import torch
from torch import Tensor

from offramp.train.model import LanguageModel


@torch.no_grad()
def write(
    model: LanguageModel,
    prompts: list[list[int]],
    *,
    tokens: int,
    temperature: float,
    end: int,
    seed: int,
) -> list[list[int]]:
    """What the model writes after each prompt: up to `tokens` tokens, or until `end`.

    Every prompt is continued on its own, from the whole text so far; the draws depend on `seed`
    only. All ranks that share the model must call this together. Compiled layers run uncompiled:
    a text grows, and graphs for all its lengths would be in the way of training's own.
    """
    config = model.causal.config
    longest = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
    device = next(model.parameters()).device
    written = []
    was_training = model.training
    model.eval()
    for number, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(seed + number)
        ids = list(prompt) or [end]
        for _ in range(tokens):
            seen_1T = torch.tensor([ids[-longest:]], device=device)
            positions_1T = torch.arange(seen_1T.shape[1], device=device)[None]
            with torch.compiler.set_stance("force_eager"):
                logits_V = model.logits(seen_1T, positions_1T)[0].cpu()
            chosen = _choose(logits_V, temperature, generator)
            if chosen == end:
                break
            ids.append(chosen)
        written.append(ids[len(prompt) or 1 :])
    model.train(was_training)
    return written


def _choose(logits_V: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    return int(torch.multinomial((logits_V / temperature).softmax(0), 1, generator=generator))
