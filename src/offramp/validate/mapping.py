"""From a published row to the job of `offramp train` that does the same, on the same cluster."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from offramp.validate.rows import TIMES, Row

RULES = Path(__file__).parent / "mapping.toml"
PADDED_TO = 128  # rows of the token table, times tp, in Megatron-LM
LOGIT_BYTES = 6  # of `train`'s loss at its peak: float32, and the gradient in 16 bits
_GPT2 = (
    *("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
    *("max_position_embeddings", "tie_word_embeddings"),
)
_GPT2_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_GUESSED = re.compile("not stated|assumed")  # what a row says of a figure that its source does not
_NEOX_DROPOUTS = ("attention_dropout", "hidden_dropout")
UNTURNED = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.0}


class UnmappedError(Exception):
    """A row that no job of `offramp train` stands for; the message says why."""


@dataclass(frozen=True)
class Case:
    """A row and what is rehearsed for it.

    chip, facts, source   the catalogue's chip, and where the published one differs
    network     (per, rails, Gbit/s, name) of the cluster; None: the chip's usual one
    config      of the model, as transformers names it
    job         keys of the job, such as `layout.tp`
    micro_batches   of each data-parallel rank in a step
    host        what the framework's host takes over the job's that stands for it
    unknown     inputs that the source does not state, or not clearly
    """

    row: Row
    chip: str
    facts: Mapping[str, str]
    source: str
    network: tuple[str, int, int, str] | None
    config: dict[str, Any]
    job: dict[str, Any]
    micro_batches: int
    unknown: tuple[str, ...] = ()
    host: float = 1.0

    @property
    def nodes(self) -> int:
        """How many nodes the run took."""
        return -(-self.row.chip_count // self.per_node)

    @property
    def per_node(self) -> int:
        """Chips of a node."""
        return min(self.row.node_size or 8, self.row.chip_count)


@dataclass
class _Read:
    """A row while it is read: what was found to be unknown."""

    row: Row
    unknown: list[str] = field(default_factory=list)

    def number(self, name: str) -> int:
        value: int | None = getattr(self.row, name)
        if value is None or value <= 0:
            raise UnmappedError(f"{name} is not stated")
        return value

    def by_rule(self, section: str, word: str, otherwise: Any, *, also: str = "") -> Any:
        """What the first rule that is found says; `otherwise`, and unknown, without a word."""
        for rule in rules()[section]:
            if re.search(rule["match"], word) or (also and re.search(rule["match"], also)):
                if "refused" in rule:
                    raise UnmappedError(f"{rule['refused']} ({word})")
                return rule["is"]
        if word and not word.startswith("not stated"):
            raise UnmappedError(f"{section} {word!r} is not known")
        self.unknown.append(section)
        return otherwise


@cache
def rules() -> dict[str, Any]:
    """The rules of mapping.toml."""
    return tomllib.loads(RULES.read_text(encoding="utf-8"))


def case_of(row: Row) -> Case:
    """What to rehearse for a row. Raises UnmappedError."""
    read = _Read(row)
    _check_kind(row)
    chip = next((r for r in rules()["chip"] if re.fullmatch(r["row"], row.chip)), None)
    if chip is None:
        raise UnmappedError(f"{row.chip} is not in the catalogue, or not trained by PyTorch")
    framework = _framework(row)
    layout = _layout(read)
    mbs = read.number("mbs")
    dp = layout["layout.dp_replicate"] * layout["layout.dp_shard"]
    batch = read.number("gbs_seqs")
    if batch % (dp * mbs):
        raise UnmappedError(f"a batch of {batch} does not divide into {dp} x {mbs} sequences")
    micro_batches = batch // (dp * mbs)
    attention = read.by_rule("attention", row.attention_impl, "fused")
    recompute = read.by_rule("recompute", row.recompute, "none")
    if recompute == "core" and attention != "fused":
        raise UnmappedError("recompute of attention alone, without a fused kernel")
    precision, _, eight = read.by_rule("precision", row.precision, "bf16").partition(" and ")
    if eight and layout["layout.tp"] > 1:
        raise UnmappedError(f"8-bit products under tensor parallelism ({row.precision})")
    job = layout | {
        "layout.micro_batch": mbs,
        "layout.recompute": "none" if recompute == "core" else recompute,
        "train.precision": precision,
        "train.compile": framework["kernels"] == "fused",
        "model.attention": attention,
        "data.sequence": read.number("seq_len"),
        "train.loss_chunk": _loss_chunk(row, mbs * read.number("seq_len"), framework),
    }
    if "layout.pipeline" not in layout and micro_batches < layout["layout.pp"]:
        job["layout.pipeline"] = "gpipe"  # in which order one forward, one backward ends here
    is_whole = not layout["layout.sequence_parallel"]
    if framework.get("splits") and is_whole and min(layout["layout.tp"], layout["layout.pp"]) > 1:
        job["layout.split_messages"] = True
    if eight:
        job["train.fp8"] = True
    if precision in framework.get("reduces", ()) and dp > 1:
        job["layout.reduce"] = "products"
    config = _config(read, framework, tp=layout["layout.tp"])
    if config.get("attention_dropout"):
        job["train.eager_random"] = True
    network = _network(read)
    for section, said in (("unclear", row.notes), ("unmeasured", row.source_title)):
        read.unknown += [r["is"] for r in rules()[section] if re.search(r["match"], said)]
    if row.confidence == "low":
        read.unknown.append("several (confidence low)")
    return Case(
        row,
        chip["chip"],
        chip.get("facts", {}),
        chip.get("source", ""),
        network,
        config,
        job,
        micro_batches,
        tuple(read.unknown),
        float(framework.get("host", 1)),
    )


def _check_kind(row: Row) -> None:
    if row.step_s is None and row.memory_bytes is None:
        what = "its step is not known" if row.value_kind in TIMES else row.value_kind
        raise UnmappedError(f"{what}: no time and no memory to compare with")
    if not re.match(r"pretrain|SFT full|finetune|SFT$", row.task) or "diffusion" in row.task:
        raise UnmappedError(f"task {row.task!r}")
    if row.moe_experts:
        raise UnmappedError("a mixture of experts")
    for rule in rules()["unlike"]:
        if re.search(rule["match"], row.notes):
            raise UnmappedError(rule["refused"])


def _framework(row: Row) -> Mapping[str, Any]:
    words = f"{row.notes} {row.framework}"
    for rule in rules()["framework"]:
        if re.search(rule["match"], words):
            return dict(rule)
    raise UnmappedError(f"framework {row.framework!r}")


def _layout(read: _Read) -> dict[str, Any]:
    row = read.row
    tp, pp, cp, vpp = row.tp or 1, row.pp or 1, row.cp or 1, row.vpp or 1
    if (row.ep or 1) > 1:
        raise UnmappedError("a mixture of experts")
    chips = read.number("chip_count")
    if chips % (tp * pp * cp):
        raise UnmappedError(f"{chips} chips do not divide into tp {tp} x pp {pp} x cp {cp}")
    dp = chips // (tp * pp * cp)
    if row.dp and row.dp != dp:
        raise UnmappedError(f"dp is {row.dp}, and tp {tp} x pp {pp} x cp {cp} leave {dp}")
    zero = read.by_rule("sharding", row.dp_sharding, 0) if dp * cp > 1 else 0
    shard = _sharing(row.dp_sharding, dp) if zero else 1
    layout: dict[str, Any] = {
        "layout.tp": tp,
        "layout.pp": pp,
        "layout.cp": cp,
        "layout.dp_replicate": dp // shard,
        "layout.dp_shard": shard,
        # Nothing shared: cast to 16 bits once a step, as where frameworks keep 16-bit copies.
        "layout.zero": zero or 1,
        "layout.sequence_parallel": row.seq_parallel == "y",
    }
    if not zero and chips == dp > 1:
        layout["layout.copies"] = True
    if pp * vpp > 2:  # two are even by themselves
        layout["layout.even_stages"] = True
    if vpp > 1 and pp > 1:
        layout |= {"layout.pipeline": "interleaved", "layout.stages": vpp}
    return layout


def _sharing(word: str, dp: int) -> int:
    """How many data-parallel ranks share: those of a group where the word gives it, else all."""
    groups = re.search(r"groups of (\d+)", word)
    shard = int(groups[1]) if groups else dp
    if dp % shard:
        raise UnmappedError(f"{dp} data-parallel ranks do not divide into groups of {shard}")
    return shard


def _loss_chunk(row: Row, tokens: int, framework: Mapping[str, Any]) -> int:
    """Tokens whose logits exist at a time: all, or those that take as much memory; 0: PyTorch's."""
    if any(re.search(rule["match"], row.framework) for rule in rules()["loss"]):
        return 0
    return -(-tokens * int(framework.get("logit_bytes", LOGIT_BYTES)) // LOGIT_BYTES)


def _config(read: _Read, framework: Mapping[str, Any], *, tp: int) -> dict[str, Any]:
    row = read.row
    gated = row.mlp_gated == "y"
    hidden, heads = read.number("hidden"), read.number("heads")
    vocabulary = read.number("vocab")
    if framework.get("pads"):
        vocabulary = -(-vocabulary // (PADDED_TO * tp)) * PADDED_TO * tp
    grouped = (row.kv_heads or heads) != heads
    plain = "gpt_neox" if tp > 1 else framework.get("model", "gpt_neox")
    family = "llama" if gated else "nemotron" if grouped else plain
    config: dict[str, Any] = {
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": read.number("ffn_hidden"),
        "num_hidden_layers": read.number("layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": row.kv_heads or heads,
        "head_dim": row.head_dim or hidden // heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": read.number("seq_len"),
        "tie_word_embeddings": row.tied_emb == "y",
        "attention_bias": not gated,
        "mlp_bias": not gated,
    }
    if not gated:
        config["hidden_act"] = "gelu"
    if family == "gpt2":
        config = {name: config[name] for name in _GPT2} | {"n_inner": config["intermediate_size"]}
        config |= {"activation_function": "gelu"} | dict.fromkeys(_GPT2_DROPOUTS, 0.0)
    if family == "gpt_neox":  # one product for queries, keys and values; positions that are learned
        del config["num_key_value_heads"], config["head_dim"], config["mlp_bias"]
        config |= {"attention_bias": True, "use_parallel_residual": False}
        config["rope_parameters"] = UNTURNED
        config |= dict.fromkeys(_NEOX_DROPOUTS, float(framework.get("dropout", 0)))
    return config


def _network(read: _Read) -> tuple[str, int, int, str] | None:
    row = read.row
    if row.chip_count <= (row.node_size or 8):
        return None
    for rule in rules()["network"]:
        found = re.search(rule["match"], row.network)
        if found is None:
            continue
        fabric = next((r for r in rules()["fabric"] if re.search(r["match"], row.network)), None)
        name = fabric["name"] if fabric else "network"
        numbers = [int(number) for number in found.groups()]
        rails = numbers[0] if rule["per"] == "rail" else 1
        if _GUESSED.search(row.network):
            read.unknown.append("network")
        return rule["per"], rails, numbers[-1], name
    read.unknown.append("network")
    return None
