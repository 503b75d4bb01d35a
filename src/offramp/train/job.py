"""The job: everything that decides a training run, one frozen section a table of the job file.

The defaults are a complete job: a small Qwen3 on a virtual chip, on text that every machine has.
Every key carries its help; `offramp train --print-job` writes them all.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from offramp.errors import UsageError
from offramp.train.layout import Layout
from offramp.train.reading import check_choices, key

PRECISIONS = ("bf16", "fp16", "fp32")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "linear", "wsd", "constant")
TOKENIZERS = ("auto", "byte", "bpe", "folder")
FORMATS = ("auto", "text", "jsonl", "parquet", "datasets", "tokens")
DEFAULT = tomllib.loads((Path(__file__).parent / "default.toml").read_text(encoding="utf-8"))
DEFAULT_MINUTES = 2.0
ATTENTIONS = ("fused", "products")
BALANCES = ("auto", "loss", "bias", "none")


@dataclass(frozen=True)
class ChipSection:
    """Where to train."""

    name: str = key(
        DEFAULT["chip"],
        "a chip of the catalogue (virtual), 'cpu', or 'here': the device that PyTorch finds",
    )
    memory: str = key("", "memory of each virtual chip, such as '2GiB' (default: all it has)")
    arith: tuple[str, ...] = key(
        (), "changes of a virtual chip's arithmetic, such as 'accumulate=fp16'"
    )
    per_node: int = key(0, "with --submit: chips of a node; 0: what is known of the chip", low=0)
    resource: str = key(
        "", "with --submit: the chip's resource name in Kubernetes (default: what is known)"
    )


@dataclass(frozen=True)
class LoraSection:
    """Low-rank adapters; rank 0 trains the whole model."""

    rank: int = key(0, "rank of the adapters; 0: train every weight", low=0)
    alpha: float = key(16.0, "scale of the adapters: alpha / rank", low=0)
    dropout: float = key(0.0, "dropout before the adapters", low=0, high=1)
    targets: tuple[str, ...] = key((), "names of the linear layers (default: all of them)")


@dataclass(frozen=True)
class ModelSection:
    """Which model, from where."""

    preset: str = key(DEFAULT["preset"], "a preset; `offramp train --list-presets` names them")
    folder: str = key("", "a local Hugging Face folder, instead of a preset")
    fresh: bool = key(False, "with a folder: take its configuration only, start from new weights")
    config: dict[str, Any] = key({}, "configuration keys to change, as transformers names them")
    vocabulary: int = key(
        0, "rows of the token table; 0: as many as the tokenizer has tokens", low=0
    )
    attention: str = key(
        "fused",
        "'fused': one kernel that keeps no weights of pairs, or 'products': products and a softmax",
        choices=ATTENTIONS,
    )
    balance: str = key(
        "auto",
        "keeps experts evenly used: 'loss' (auxiliary), 'bias' (without a loss), 'none', or "
        "'auto': what the model's configuration says",
        choices=BALANCES,
    )
    balance_rate: float = key(0.001, "coefficient of that loss, or step of that bias", low=0)


@dataclass(frozen=True)
class TokenizerSection:
    """How text becomes numbers."""

    kind: str = key(
        "auto",
        "'byte', 'bpe' (trained on the data), 'folder', or 'auto': the model folder's, else bytes",
        choices=TOKENIZERS,
    )
    vocabulary: int = key(4096, "bpe: how many tokens to learn", low=257)
    folder: str = key("", "a local folder with a Hugging Face tokenizer (default: the model's)")


@dataclass(frozen=True)
class DataSection:
    """What to train on."""

    source: tuple[str, ...] = key(
        ("stdlib",), "files and folders; 'stdlib' is the Python standard library's own source"
    )
    format: str = key("auto", "'auto' goes by the name of each file", choices=FORMATS)
    field: str = key("text", "the field that holds the text, in JSONL, Parquet and datasets")
    chat: str = key("", "the field that holds a list of {role, content}: trains on the answers")
    sequence: int = key(256, "tokens in a sequence", low=2)
    boundaries: bool = key(True, "no attention from one document to another in a sequence")
    shuffle: bool = key(True, "visit sequences in an order drawn anew, from the seed, each epoch")
    held_out: float = key(0.02, "share of the documents kept for evaluation", low=0, high=0.5)
    bad_lines: str = key(
        "stop",
        "'stop' at a line that cannot be read, or 'skip' and count it",
        choices=("stop", "skip"),
    )
    cache: str = key("", "folder of tokenized data (default: the user's cache folder)")


@dataclass(frozen=True)
class TrainSection:
    """How long, how much at once, how exactly."""

    minutes: float = key(0.0, "end after about so long; with steps = 0 too: two minutes", low=0)
    steps: int = key(0, "optimizer steps, instead of minutes", low=0)
    batch: int = key(8, "sequences in an optimizer step, over all chips", low=1)
    seed: int = key(1, "of weights, data order and dropout", low=0)
    precision: str = key(
        "bf16", "format of the products; weights are kept in fp32", choices=PRECISIONS
    )
    clip: float = key(1.0, "largest norm of all gradients; 0: not clipped", low=0)
    compile: bool = key(False, "torch.compile each layer")
    eager_random: bool = key(
        False, "with compile: the random numbers of uncompiled layers, by PyTorch's own kernels"
    )
    loss_chunk: int = key(
        1024, "tokens whose logits exist at a time; 0: all, by PyTorch's own loss", low=0
    )
    fp8: bool = key(False, "8-bit products in linear layers, where the chip has them")

    @property
    def limit_s(self) -> float:
        """Seconds after which training ends; 0 where it ends by steps."""
        return 0.0 if self.steps else 60.0 * (self.minutes or DEFAULT_MINUTES)


@dataclass(frozen=True)
class OptimizerSection:
    """The optimizer; Muon takes the matrices of the layers, and AdamW the rest."""

    name: str = key("adamw", "'adamw' or 'muon'", choices=OPTIMIZERS)
    lr: float = key(1e-3, "highest learning rate", low=0)
    beta1: float = key(0.9, "AdamW: decay of the mean", low=0, high=1)
    beta2: float = key(0.95, "AdamW: decay of the square", low=0, high=1)
    eps: float = key(1e-8, "AdamW: added to the root", low=0)
    weight_decay: float = key(0.1, "of matrices, not of norms, biases and embeddings", low=0)
    muon_lr: float = key(0.02, "Muon: learning rate of the matrices", low=0)
    muon_momentum: float = key(0.95, "Muon: momentum", low=0, high=1)


@dataclass(frozen=True)
class ScheduleSection:
    """The learning rate over the run."""

    name: str = key(
        "cosine", "'cosine', 'linear', 'wsd' (stable, then decay) or 'constant'", choices=SCHEDULES
    )
    warmup: int = key(20, "steps from zero to the highest rate", low=0)
    decay: float = key(0.2, "wsd: share of the run that decays, at its end", low=0, high=1)
    floor: float = key(0.1, "share of the highest rate that is left at the end", low=0, high=1)


@dataclass(frozen=True)
class EvaluateSection:
    """Loss on text that is not trained on."""

    every: int = key(100, "steps between evaluations; 0: only at the end", low=0)
    sequences: int = key(32, "sequences of an evaluation", low=1)


@dataclass(frozen=True)
class SampleSection:
    """Text that the model writes, before and after."""

    prompts: tuple[str, ...] = key(("def ", "import "), "what it continues; none: no samples")
    tokens: int = key(96, "length of a sample", low=1)
    temperature: float = key(0.7, "0: always the likeliest token", low=0)


@dataclass(frozen=True)
class CheckpointSection:
    """What survives."""

    every: int = key(100, "steps between checkpoints; 0: only at the end", low=0)
    keep: int = key(2, "checkpoints that stay; 0: all", low=0)
    asynchronous: bool = key(True, "write while training goes on")
    export: bool = key(True, "write a Hugging Face folder at the end")
    export_format: str = key(
        "", "format of the weights in it (default: train.precision)", choices=("", *PRECISIONS)
    )


@dataclass(frozen=True)
class WatchSection:
    """When to speak up."""

    spike: float = key(5.0, "a loss this many deviations above its recent mean is a spike", low=0)
    bad_steps: int = key(10, "steps in a row without finite gradients that end the run", low=1)
    stall_s: float = key(600.0, "seconds without a finished step that end the run; 0: never", low=0)


@dataclass(frozen=True)
class MetricsSection:
    """What is written while it trains, beside metrics.jsonl."""

    every: int = key(10, "steps between lines", low=1)
    tensorboard: bool = key(True, "TensorBoard files as well, where the package is installed")


@dataclass(frozen=True)
class Job:
    """A whole job; `read` gives one from a file and `reading.write` the file of one."""

    out: str = key("", "the run's folder (default: a new one under 'runs')")
    chip: ChipSection = field(default_factory=ChipSection)
    model: ModelSection = field(default_factory=ModelSection)
    lora: LoraSection = field(default_factory=LoraSection)
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)
    data: DataSection = field(default_factory=DataSection)
    train: TrainSection = field(default_factory=TrainSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    layout: Layout = field(default_factory=Layout)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    sample: SampleSection = field(default_factory=SampleSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    watch: WatchSection = field(default_factory=WatchSection)
    metrics: MetricsSection = field(default_factory=MetricsSection)

    def __post_init__(self) -> None:
        for section in fields(self):
            check_choices(section.name, getattr(self, section.name))
        if self.train.minutes and self.train.steps:
            raise UsageError(
                f"train.minutes is {self.train.minutes:g} and train.steps is {self.train.steps}; "
                "expected one of them, and the other 0"
            )
        if not self.data.source:
            raise UsageError("data.source is empty; expected files, folders or 'stdlib'")
        self.layout.check_batch(self.train.batch)
        self.layout.check_sequence(self.data.sequence)
        if self.lora.rank and self.model.preset and not self.model.folder:
            raise UsageError(
                "lora.rank adapts trained weights, and a preset has none; give model.folder"
            )
