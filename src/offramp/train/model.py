"""A transformers model as the trainer sees it: tokens and targets in, a sum of losses out.

Shapes: B sequences, T tokens, D hidden numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from offramp.errors import UsageError
from offramp.train import attention
from offramp.train.formats import product_dtype
from offramp.train.loss import Chunking, linear_cross_entropy

# Hidden states, the head's weight and bias, and targets, as the loss is to see them.
HeadInputs = tuple[Tensor, Tensor, Tensor | None, Tensor]

# Configuration keys of heads that do more than one matrix product.
_HEAD_KEYS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class LanguageModel(nn.Module):
    """A causal language model of transformers, whole or one stage of a pipeline.

    `causal` is the model; parameters have its names. `has_embedding` and `has_head` are False in a
    stage without the first or last layers. The head's logits are never whole in memory, unless
    `loss_chunk` is 0.
    `arrange` and `finish`, where set, change what the head is given and the loss that it gives:
    tensor parallelism gathers, splits and sums.
    """

    def __init__(self, causal: Any, *, loss_chunk: int = 1024) -> None:
        super().__init__()
        config = causal.config
        for name in _HEAD_KEYS:
            if getattr(config, name, None) not in (None, 1, 1.0):
                raise UsageError(
                    f"{config.model_type} models scale or cap their logits ({name}); expected a "
                    "model whose head is one matrix product"
                )
        self.causal = causal
        self.chunking = Chunking(loss_chunk)
        self.has_embedding = self.has_head = True
        self.arrange: Callable[[HeadInputs], HeadInputs] | None = None
        self.finish: Callable[[Tensor], Tensor] | None = None

    @property
    def body(self) -> nn.Module:
        """The model without its head."""
        return cast(nn.Module, self.causal.base_model)

    @property
    def head(self) -> nn.Linear:
        """The linear layer that gives logits; its weight may be the embedding's."""
        return cast(nn.Linear, self.causal.get_output_embeddings())

    @property
    def embedding(self) -> nn.Embedding | None:
        """The embedding of tokens; a stage has it for its first layers, or for a head it ties."""
        found = self.causal.get_input_embeddings()
        return found if isinstance(found, nn.Embedding) else None

    @property
    def is_tied(self) -> bool:
        """Whether the weights of the head are those of the embedding."""
        embedding = self.embedding
        return self.has_head and embedding is not None and embedding.weight is self.head.weight

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        found = [m for m in self.body.children() if isinstance(m, nn.ModuleList)]
        assert len(found) == 1, [type(m) for m in self.body.children()]
        return found[0]

    def hidden(
        self, tokens_BT: Tensor, positions_BT: Tensor, packing: attention.Packing | None = None
    ) -> Tensor:
        """The last hidden state, (B, T, D); `tokens_BT` may be hidden states, in a later stage."""
        source = {"input_ids" if self.has_embedding else "inputs_embeds": tokens_BT}
        out = self.body(**source, position_ids=positions_BT, use_cache=False, packing=packing)
        return cast(Tensor, out.last_hidden_state)

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        targets_BT: Tensor,
        positions_BT: Tensor,
        packing: attention.Packing | None = None,
    ) -> Tensor:
        """The sum of the losses over tokens whose target is not -100, in nats, as (1,) float32.

        A stage without the head returns its hidden states, (B, T, D).
        """
        hidden_BTD = self.hidden(tokens_BT, positions_BT, packing)
        if not self.has_head:
            return hidden_BTD
        hidden_BTD = hidden_BTD.to(product_dtype(hidden_BTD))
        inputs: HeadInputs = hidden_BTD, self.head.weight, self.head.bias, targets_BT
        hidden_BTD, weight_VD, bias_V, targets_BT = self.arrange(inputs) if self.arrange else inputs
        loss = linear_cross_entropy(
            hidden_BTD.flatten(0, 1), weight_VD, targets_BT.flatten(), bias_V, self.chunking
        )
        # Not a view: FSDP hangs its hooks on what is returned.
        return torch.stack([self.finish(loss) if self.finish else loss])

    def logits(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """The logits of each row's last token, (B, V), in float32."""
        last_BD = self.hidden(tokens_BT, positions_BT)[:, -1]
        return cast(Tensor, self.head(last_BD)).float()
