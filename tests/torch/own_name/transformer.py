"""A model of transformers placed by `device_map`, and the device and logits that come of it."""

import json
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

sizes = {"n_layer": 1, "n_embd": 8, "n_head": 1, "vocab_size": 16, "n_positions": 8}
model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
tokens = torch.tensor([[1, 2, 3]])
seen, equal = set(), []
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    for place in sys.argv[1:]:
        placed = AutoModelForCausalLM.from_pretrained(folder, device_map=place)
        seen |= {str(parameter.device) for parameter in placed.parameters()}
        logits = placed(tokens.to(placed.device)).logits
        equal.append(torch.allclose(logits.cpu(), model(tokens).logits, atol=1e-6))
print(json.dumps({"seen": sorted(seen), "equal": equal}))
