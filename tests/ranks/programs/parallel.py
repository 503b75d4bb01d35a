"""One training step of a small model under a layout; and the same in plain PyTorch.

A program's name says what runs: "qwen3 dp_shard=2 tp=2" is that model under that layout.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn.functional import cross_entropy

from offramp.train import attention
from offramp.train.layout import AXES, Layout
from offramp.train.model import LanguageModel
from offramp.train.models.initialize import materialize
from offramp.train.parallel import MicroBatch, Numbers, parallelize
from offramp.train.parallel.balance import bias_of, routers_of
from offramp.train.world import World

SPECS = (
    "qwen3",
    "gpt2 recompute=selective",
    "window",
    "moe recompute=full",
    "ernie",
    "deepseek balance=loss",
    "qwen3 precision=bf16",
    "moe balance=loss",
    # two ranks
    "qwen3 dp_replicate=2",
    "moe dp_replicate=2",
    "qwen3 dp_replicate=2 copies=1",
    "llama dp_replicate=2 copies=1 precision=bf16",
    "qwen3 dp_shard=2",
    "qwen3 dp_shard=2 zero=2",
    "qwen3 dp_shard=2 zero=1",
    "llama dp_shard=2 precision=bf16",
    "llama dp_shard=2 precision=bf16 reduce=products",
    "llama dp_replicate=2 copies=1 precision=bf16 reduce=products",
    "qwen3 tp=2 precision=bf16",
    "qwen3 pp=2 precision=bf16",
    "ernie dp_shard=2 balance=bias",
    "deepseek dp_replicate=2 balance=bias recompute=full",
    "deepseek tp=2 balance=bias",
    "tied dp_shard=2 prefetch=2 recompute=selective",
    "gpt2 dp_shard=2 recompute=full",
    "llama tp=2",
    "tied tp=2 recompute=selective",
    "tied tp=2 recompute=alternate",
    "tied tp=2 sequence_parallel=0",
    "tied tp=2 loss_parallel=0",
    "qwen3 tp=2 loss_parallel=0 sequence_parallel=0",
    "moe tp=2 balance=loss",
    "deepseek tp=2",
    "neox tp=2",
    "ernie tp=2 sequence_parallel=0",
    "qwen3 cp=2",
    "gpt2 cp=2 recompute=selective",
    "window cp=2",
    "deepseek cp=2",
    "qwen3 cp=2 documents=one",
    "window cp=2 documents=one recompute=selective",
    "deepseek cp=2 documents=one",
    "qwen3 pp=2 pipeline=gpipe",
    "tied pp=2",
    "gpt2 pp=2",
    "neox pp=2",
    "moe pp=2 stages=2 pipeline=interleaved balance=loss",
    "qwen3 pp=2 pipeline=zero-bubble recompute=full",
    "moe dp_shard=2 ep=2",
    "ernie tp=2 ep=2 sequence_parallel=0",
    "deepseek cp=2 ep=2 recompute=full balance=loss",
    # four ranks
    "qwen3 dp_replicate=2 dp_shard=2",
    "qwen3 dp_shard=2 tp=2",
    "moe dp_shard=2 tp=2 zero=1",
    "qwen3 dp_replicate=2 tp=2",
    "tied pp=2 dp_shard=2",
    "tied pp=2 tp=2",
    "tied pp=2 tp=2 sequence_parallel=0 split_messages=1",
    "moe pp=2 tp=2 sequence_parallel=0 split_messages=1 stages=2 pipeline=interleaved",
    "qwen3 pp=2 cp=2",
    "qwen3 cp=2 dp_shard=2",
    "qwen3 cp=2 tp=2",
    "qwen3 cp=4 documents=one",
    "moe dp_shard=4 ep=2",
    "deepseek dp_shard=4 ep=2 recompute=selective again=1",
    "moe dp_shard=2 tp=2 ep=2",
    "moe dp_replicate=2 dp_shard=2 ep=2",
    "ernie pp=2 dp_shard=2 ep=2",
)
ON_CHIPS = (
    "qwen3 dp_replicate=2",
    "qwen3 dp_shard=2 recompute=selective",
    "qwen3 tp=2",
    "qwen3 cp=2",
    "qwen3 cp=2 documents=one precision=bf16",
    "qwen3 pp=2",
    "moe dp_shard=2 ep=2",
    "wide dp_shard=2 ep=2",
    "moe dp_shard=2 ep=2 precision=bf16",
    "wide dp_shard=2 ep=2 precision=bf16",
    "qwen3 dp_shard=2 tp=2",
    "ernie pp=2 dp_shard=2 ep=2",
)
# What is refused, and what the one line says.
REFUSED = {
    "qwen3 copies=1": "layout.copies is for weights that several ranks hold",
    "qwen3 dp_replicate=2 reduce=products": "layout.reduce is 'products', and the weights are",
    "gpt2 tp=2": "layout.tp cannot split GPT2Attention (c_attn",
    "three tp=2": "layout.tp is 2; expected a divisor of num_key_value_heads = 3",
    "qwen3 tp=2 async_tp=1": "layout.async_tp needs compiled layers",
    "qwen3 tp=2 async_tp=1 compile=1": "layout.async_tp needs symmetric memory",
    "qwen3 pp=2 micro=1": "1 micro-batches a step for 2 pipeline stages",
    "qwen3 pp=2 micro=5 pipeline=zero-bubble": "5 micro-batches a step with pipeline 'zero-bubble'",
    "moe dp_shard=2 balance=bias": "model.balance is 'bias', and Qwen3MoeTopKRouter has none",
    "moe dp_replicate=2 dp_shard=1 ep=2": "layout.ep is 2; expected a divisor of dp_shard",
    "odd dp_shard=2 ep=2": "layout.ep is 2; expected a divisor of the 3 experts",
}
EIGHT = (
    "qwen3 pp=2 dp_shard=2 tp=2",
    "moe pp=2 dp_replicate=2 dp_shard=2 ep=2",
    "deepseek dp_shard=2 cp=2 tp=2 ep=4",
)

VOCABULARY, WIDTH, MICRO, RATE, LR = 48, 16, 2, 0.1, 0.3
DENSE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
MIXED = {**DENSE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
CONFIGS: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: transformers.Qwen3Config(**DENSE),
    "tied": lambda: transformers.Qwen3Config(**DENSE, tie_word_embeddings=True),
    "llama": lambda: transformers.LlamaConfig(**DENSE),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=4, n_head=4, n_positions=64,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    ),
    "neox": lambda: transformers.GPTNeoXConfig(
        **{k: v for k, v in DENSE.items() if k not in ("num_key_value_heads", "head_dim")},
        use_parallel_residual=False, tie_word_embeddings=False,
    ),
    "three": lambda: transformers.Qwen3Config(
        **{**DENSE, "num_attention_heads": 6, "num_key_value_heads": 3}
    ),
    "odd": lambda: transformers.Qwen3MoeConfig(**{**MIXED, "num_experts": 3}),
    "window": lambda: transformers.Qwen3Config(
        **DENSE, use_sliding_window=True, sliding_window=5, max_window_layers=2
    ),
    "moe": lambda: transformers.Qwen3MoeConfig(**MIXED, norm_topk_prob=True),
    "wide": lambda: transformers.Qwen3MoeConfig(  # grouped products, in bf16 too
        **{**MIXED, "moe_intermediate_size": 16}
    ),
    "ernie": lambda: transformers.Ernie4_5_MoeConfig(
        **MIXED, moe_layer_start_index=1, moe_num_shared_experts=1
    ),
    "deepseek": lambda: transformers.DeepseekV3Config(
        **{**DENSE, "num_key_value_heads": 4, "head_dim": 4}, moe_intermediate_size=12,
        n_routed_experts=4, num_experts_per_tok=2, n_group=2,
        topk_group=2, first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=12,
        qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4, n_shared_experts=1,
    ),
}  # fmt: skip


def build(name: str, implementation: str, device: str = "cpu") -> Any:
    """The model with weights of seed 0, in float32."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation=implementation, dtype=torch.float32
        )
    if device == "cpu":
        for parameter in model.parameters():  # norms and biases that are not ones and zeros
            if not parameter.requires_grad:
                continue
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def batch(rows: int, documents: str = "many") -> MicroBatch:
    """Rows of tokens in documents of various lengths, or "one" a row; some are not trained on."""
    chance = torch.Generator().manual_seed(1)
    tokens_BT = torch.randint(VOCABULARY, (rows, WIDTH), generator=chance)
    targets_BT = torch.randint(VOCABULARY, (rows, WIDTH), generator=chance)
    targets_BT[torch.rand(rows, WIDTH, generator=chance) < 0.1] = -100
    documents_BT = (torch.rand(rows, WIDTH, generator=chance) < 0.2).cumsum(1)
    documents_BT[slice(None) if documents == "one" else 0] = 0
    positions_BT = torch.arange(WIDTH).expand(rows, WIDTH).clone()
    return MicroBatch(tokens_BT, targets_BT, positions_BT, documents_BT)


def scale_of(rows: MicroBatch) -> float:
    return 1.0 / int((rows.targets_BT != -100).sum())


def plain_step(
    name: str, rows: int, balance: str | None = None, documents: str = "many"
) -> dict[str, Any]:
    """Sum of losses, gradients of their mean and the norm, by transformers and PyTorch alone."""
    model, whole = build(name, "eager"), batch(rows, documents)
    routed: list[tuple[torch.Tensor, torch.Tensor]] = []
    for module in model.modules():
        if "weight" in module._parameters and hasattr(module, "top_k") and balance:
            module.register_forward_hook(lambda _, __, out: routed.append((out[0], out[2])))
    if hasattr(model.config, "_experts_implementation"):
        model.config._experts_implementation = "eager"
    loss = plain_loss(name, model, whole)
    auxiliary = torch.zeros(())
    if balance == "loss":
        auxiliary = torch.stack([switch_loss(name, *out) for out in routed]).sum()
    ((loss + auxiliary) * scale_of(whole)).backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    norm = torch.stack([grad.norm() for grad in grads.values()]).norm()
    counts = [choice.flatten().bincount(minlength=4) for _, choice in routed]
    plain = {"loss": loss.detach(), "grads": grads, "norm": norm}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= LR * parameter.grad
        later = plain_loss(name, model, whole)
    return plain | {"counts": counts, "auxiliary": auxiliary, "later": later}


def plain_loss(name: str, model: Any, rows: MicroBatch) -> torch.Tensor:
    """The sum of losses, by the model's own attention and cross-entropy."""
    same = rows.documents_BT[:, :, None] == rows.documents_BT[:, None, :]
    seen = {"full_attention": same.tril(), "sliding_attention": same.tril().triu(-4)}
    lowest = torch.finfo(torch.float32).min
    masks = {kind: torch.where(see, 0.0, lowest)[:, None] for kind, see in seen.items()}
    mask = masks if name == "window" else masks["full_attention"]
    logits = model(
        rows.tokens_BT, position_ids=rows.positions_BT, attention_mask=mask, use_cache=False
    ).logits
    return cross_entropy(logits.flatten(0, 1), rows.targets_BT.flatten(), reduction="sum")


def switch_loss(name: str, logits_NE: torch.Tensor, choice_NK: torch.Tensor) -> torch.Tensor:
    """RATE x tokens x E x sum f P of each micro-batch (arXiv:2101.03961, eq. 4)."""
    total = torch.zeros(())
    size = MICRO * WIDTH
    for logits, choice in zip(logits_NE.split(size), choice_NK.split(size), strict=True):
        p = logits.sigmoid() if name == "deepseek" else logits.softmax(1)
        mean_E = (p / p.sum(1, keepdim=True)).mean(0)
        share_E = torch.nn.functional.one_hot(choice, 4).float().mean((0, 1))
        total = total + RATE * size * 4 * (share_E * mean_E).sum()
    return total


def read(spec: str) -> tuple[str, Layout, dict[str, Any]]:
    """The model, the layout and the rest of a program's name."""
    name, *pairs = spec.split(" ")
    values: dict[str, Any] = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        values[key] = int(text) if text.isdigit() else text
    for key in ("sequence_parallel", "loss_parallel", "split_messages"):
        if key in values:
            values[key] = bool(values[key])
    rest = ("precision", "compile", "micro", "balance", "again", "documents")
    more = {key: values.pop(key) for key in rest if key in values}
    return name, Layout(**values, micro_batch=MICRO), more


def fill(part: LanguageModel, source: Any, device: torch.device) -> None:
    """Memory for a part, and the values of the whole model `source`, by name."""
    materialize(part.causal, device)
    values = {**dict(source.named_parameters()), **dict(source.named_buffers())}
    for kind in (part.causal.named_parameters(), part.causal.named_buffers()):
        for name, target in kind:
            value = values[name].detach().to(device)
            if isinstance(target, DTensor):
                value = shard_like(value, target)
            with torch.no_grad():
                (target.to_local() if isinstance(target, DTensor) else target).copy_(value)


def shard_like(value: torch.Tensor, target: DTensor) -> torch.Tensor:
    """This rank's part of a whole tensor."""
    mesh, placements = target.device_mesh, target.placements
    if not any(type(p).__name__ == "_StridedShard" for p in placements):
        return distribute_tensor(value, mesh, placements, src_data_rank=None).to_local()
    shape, offset = compute_local_shape_and_global_offset(value.shape, mesh, placements)
    return value[tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))]


def world_of(place: Any, layout: Layout) -> World:
    shape = tuple(getattr(layout, axis) for axis in AXES)
    mesh = init_device_mesh(place.kind, shape, mesh_dim_names=AXES)
    return World(place.rank, place.world, place.rank, place.device, mesh)


def step(place: Any, spec: str) -> dict[str, Any]:
    """One step; gradients whole, by name, of this rank's stages."""
    attention.register()
    name, layout, more = read(spec)
    world = world_of(place, layout)
    micro = int(more.get("micro", 2))
    source = build(name, attention.NAME)
    numbers = Numbers(more.get("precision", "fp32"), compile=bool(more.get("compile", False)))
    model = LanguageModel(build(name, attention.NAME, "meta"), loss_chunk=7)
    parallel = parallelize(
        model, layout, world, numbers,
        materialize=lambda part: fill(part, source, place.device),
    )  # fmt: skip
    balance = parallel.balance_experts(str(more.get("balance", "none")), RATE)
    whole = batch(layout.dp * micro * MICRO, str(more.get("documents", "many")))
    first = world.coordinate("dp_replicate") * layout.dp_shard + world.coordinate("dp_shard")
    parts = zip(*(t.split(MICRO) for t in vars(whole).values()), strict=True)
    rows = [MicroBatch(*tensors) for tensors in parts][first * micro : (first + 1) * micro]
    evaluated = parallel.total(parallel.evaluate(rows))
    if more.get("again"):  # as in a later step, when weights have been gathered before
        parallel.forward_backward(rows, scale_of(whole))
        for _, parameter in parallel.parameters():
            parameter.grad = None
    loss = parallel.total(parallel.forward_backward(rows, scale_of(whole)))
    norm = parallel.gradient_norm()
    grads = {}
    for parameter_name, parameter in parallel.parameters():
        grad = parameter.grad
        if grad is not None:
            grads[parameter_name] = grad.full_tensor() if isinstance(grad, DTensor) else grad
    with torch.no_grad():
        for _, parameter in parallel.parameters():
            if parameter.grad is not None:
                parameter -= LR * parameter.grad
    later = parallel.total(parallel.evaluate(rows))
    results = {"later": later, "loss": loss, "evaluated": evaluated, "grads": grads, "norm": norm}
    if more.get("balance"):
        results |= {"counts": balance.counts(), "auxiliary": balance.loss()}
        routers = [router for part in parallel.parts for router in routers_of(part)]
        biases = [bias_of(router) for router in routers]
        results["biases"] = [None if bias is None else bias.flatten() for bias in biases]
    return results


def eight(place: Any) -> dict[str, Any]:
    """The results of the layouts for eight ranks."""
    return play(place, list(EIGHT))


def refused(place: Any) -> dict[str, Any]:
    """What is said of each."""
    return play(place, list(REFUSED))


def every(place: Any) -> dict[str, Any]:
    """The results of all layouts for this many ranks, or what went wrong, by name."""
    return play(place, [spec for spec in SPECS if read(spec)[1].world == place.world])


def on_chips(place: Any) -> dict[str, Any]:
    """The same for those that virtual chips play as well."""
    return play(place, [spec for spec in ON_CHIPS if read(spec)[1].world == place.world])


def play(place: Any, specs: list[str]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for spec in specs:
        try:
            results[spec] = step(place, spec)
        except Exception:
            results[spec] = traceback.format_exc()
    return results


def __getattr__(spec: str) -> Callable[[Any], dict[str, Any]]:
    if spec.startswith("__"):
        raise AttributeError(spec)
    return lambda place: play(place, spec.split(";"))
