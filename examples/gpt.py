"""A compact GPT over bytes: RMSNorm, rotary positions, causal attention, SwiGLU, tied embedding.

Shapes are in the names: B batch, T time, D model width, H heads, K head width,
F feed-forward width, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256


@dataclass(frozen=True)
class GPTConfig:
    layers: int = 4
    heads: int = 6
    width: int = 192
    context: int = 128
    dropout: float = 0.0


def rotary_tables(context: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position times frequency, each (context, head_width / 2)."""
    frequencies = 10_000 ** (-torch.arange(0, head_width, 2) / head_width)
    angles = torch.outer(torch.arange(context), frequencies)
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (k, k + K/2) of the head's channels by its position's angle."""
    first, second = x_BHTK.chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(turned, dim=-1).type_as(x_BHTK)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        qkv = self.qkv(x_BTD).unflatten(-1, (3, self.heads, -1))
        q_BHTK, k_BHTK, v_BHTK = qkv.permute(2, 0, 3, 1, 4)
        mixed_BHTK = F.scaled_dot_product_attention(
            rotate(q_BHTK, cos, sin),
            rotate(k_BHTK, cos, sin),
            v_BHTK,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=True,
        )
        return self.out(mixed_BHTK.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        hidden = 64 * round(config.width * 8 / 3 / 64)
        self.gate_up = nn.Linear(config.width, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.out(F.silu(gate_BTF) * up_BTF)


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(config.width)
        self.attention = Attention(config)
        self.norm_feed_forward = nn.RMSNorm(config.width)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.norm_attention(x_BTD), cos, sin))
        return x_BTD + self.dropout(self.feed_forward(self.norm_feed_forward(x_BTD)))


class GPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(VOCABULARY, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width)
        self.head = nn.Linear(config.width, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        cos, sin = rotary_tables(config.context, config.width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        residual_scale = (2 * config.layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = residual_scale if name.endswith("out.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(self, x_BT: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        """Logits (B, T, V); the mean loss in nats per byte when there are targets."""
        cos, sin = self.cos[: x_BT.shape[1]], self.sin[: x_BT.shape[1]]
        x_BTD = self.embedding(x_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, cos, sin)
        logits_BTV = self.head(self.norm(x_BTD))
        if targets_BT is None:
            return logits_BTV
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self) -> int:
        """Forward and backward: 6 a parameter, and attention's two products at full context."""
        config = self.config
        return 6 * self.parameter_count() + 12 * config.layers * config.width * config.context

    @torch.no_grad()
    def generate(self, prompt: str, count: int, temperature: float, top_k: int) -> str:
        device = self.embedding.weight.device
        x_BT = torch.tensor([list(prompt.encode())], device=device)
        for _ in range(count):
            logits_BV = self(x_BT[:, -self.config.context :])[:, -1].float() / temperature
            best_BN, index_BN = logits_BV.topk(top_k)
            choice_B1 = torch.multinomial(best_BN.softmax(-1), num_samples=1)
            x_BT = torch.cat((x_BT, index_BN.gather(-1, choice_B1)), dim=1)
        return bytes(x_BT[0].tolist()).decode(errors="replace")
