"""Everything a run has before its first step, from the job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from offramp.errors import UsageError
from offramp.train import attention, fp8, ground
from offramp.train.checkpoint import CheckpointError, Checkpoints
from offramp.train.data.batches import Batches
from offramp.train.data.corpus import Corpora, data_cache, open_corpora
from offramp.train.data.sources import Sources
from offramp.train.data.tokenizer import Tokenizer, open_tokenizer
from offramp.train.events import Prepared, Tell, Warned
from offramp.train.feed import Feed
from offramp.train.folder import RunFolder
from offramp.train.ground import Ground
from offramp.train.job import Job
from offramp.train.model import LanguageModel
from offramp.train.models import build, initialize, lora
from offramp.train.models import folder as hf_folder
from offramp.train.optimizer import Optimizers
from offramp.train.parallel import Numbers, Parallel, parallelize
from offramp.train.parallel.balance import bias_of, routers_of
from offramp.train.watch import LossScale, LossWatch
from offramp.train.world import World


@dataclass
class Progress:
    """How far a run is; with the tensors, all that a checkpoint holds."""

    watch: LossWatch
    scale: LossScale
    step: int = 0
    updates: int = 0
    tokens: int = 0
    total: int | None = None

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {
            "step": self.step,
            "updates": self.updates,
            "tokens": self.tokens,
            "total": self.total,
            "watch": self.watch.state(),
            "scale": {"value": self.scale.value, "clean": self.scale.clean},
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        self.step, self.updates = state["step"], state["updates"]
        self.tokens, self.total = state["tokens"], state["total"]
        self.watch.resume(state["watch"])
        self.scale.value, self.scale.clean = state["scale"]["value"], state["scale"]["clean"]


@dataclass(frozen=True)
class Run:
    """A job that is set up."""

    job: Job
    folder: RunFolder
    world: World
    ground: Ground
    tokenizer: Tokenizer
    corpora: Corpora
    config: Any
    shape: build.Shape
    parallel: Parallel
    optimizers: Optimizers
    feed: Feed
    held_out: Batches | None
    checkpoints: Checkpoints
    progress: Progress
    tell: Tell

    def weights(self) -> dict[str, Tensor]:
        """The parameters and lasting buffers of this process, by name; shared, not copied.

        Of an adapted model the adapters only: the rest is in the folder that it came from.
        """
        adapted = bool(self.job.lora.rank)
        return {
            name: tensor.detach()
            for part in self.parallel.parts
            for name, tensor in initialize.stored_tensors(part.causal).items()
            if lora.is_adapter(name) or not adapted
        }

    def tensors(self) -> dict[str, Tensor]:
        """The weights and the optimizer's state, by name; shared, not copied."""
        weights = {f"model.{name}": tensor for name, tensor in self.weights().items()}
        kept = {f"optimizer.{name}": t for name, t in self.optimizers.tensors().items()}
        return weights | kept


def set_up(job: Job, folder: RunFolder, world: World, tell: Tell) -> Run:
    """Open the data, build the model on its layout, and go back to the last checkpoint.

    Raises UsageError and CheckpointError.
    """
    here = ground.find(job, world.device)
    here.check(job)
    for caution in here.cautions(job):
        tell(Warned(caution))
    attention.register()
    tokenizer, corpora = _in_turn(world, lambda: _open_data(job, tell))
    vocabulary = _vocabulary(job, tokenizer)
    config = build.configure(job.model, vocabulary=vocabulary)
    _check_model(job, config, tokenizer)
    if vocabulary is not None:
        config.eos_token_id = tokenizer.end
    config._attn_implementation = attention.NAMES[job.model.attention]
    causal = build.build(config)
    shape = build.describe(config, causal)
    job.layout.check_model(
        layers=shape.layers, heads=shape.heads, kv_heads=shape.kv_heads, experts=shape.experts
    )
    if job.lora.rank:
        causal = lora.adapt(causal, job.lora)
    model = LanguageModel(causal, loss_chunk=job.train.loss_chunk)
    if job.train.fp8:
        _use_fp8(job, model)
    parallel = parallelize(
        model,
        job.layout,
        world,
        _numbers(job, here),
        materialize=_materialize(job, config, world),
    )
    if shape.experts and job.model.balance != "none":
        parallel.balance_experts(*_balance(job, config, parallel))
    batches, held_out = _batches(job, corpora)
    run = Run(
        job=job,
        folder=folder,
        world=world,
        ground=here,
        tokenizer=tokenizer,
        corpora=corpora,
        config=config,
        shape=shape,
        parallel=parallel,
        optimizers=_optimizers(job, parallel),
        feed=Feed(batches, job.layout, world, batch=job.train.batch),
        held_out=held_out,
        checkpoints=Checkpoints(folder.checkpoints, world, keep=job.checkpoint.keep),
        progress=Progress(
            LossWatch(job.watch.spike, job.watch.bad_steps),
            LossScale.for_precision(job.train.precision),
        ),
        tell=tell,
    )
    _resume(run)
    return run


def _vocabulary(job: Job, tokenizer: Tokenizer) -> int | None:
    """Rows of the token table; None: as many as the weights in the folder have."""
    if job.model.folder and not job.model.fresh:
        if job.model.vocabulary:
            raise UsageError(
                "model.vocabulary is for new weights; expected 0, or model.fresh = true"
            )
        return None
    if job.model.vocabulary and job.model.vocabulary < tokenizer.vocabulary:
        raise UsageError(
            f"model.vocabulary is {job.model.vocabulary}, and the tokenizer has "
            f"{tokenizer.vocabulary} tokens; expected at least as many, or 0"
        )
    return job.model.vocabulary or tokenizer.vocabulary


def _use_fp8(job: Job, model: LanguageModel) -> None:
    layout = job.layout
    if layout.tp > 1 or job.train.precision != "bf16":
        raise UsageError(
            f"train.fp8 goes with precision 'bf16' and layout.tp 1; got precision "
            f"{job.train.precision!r} and tp {layout.tp}"
        )
    tokens = layout.micro_batch * job.data.sequence // layout.cp
    if not sum(fp8.convert(layer, tokens) for layer in model.layers):
        raise UsageError(
            f"train.fp8: no linear layer of this model has widths of a multiple of {fp8.MULTIPLE}"
        )


def _balance(job: Job, config: Any, parallel: Parallel) -> tuple[str, float]:
    """How experts are kept evenly used, and how hard; 'auto' goes by the model's routers."""
    kind, rate = job.model.balance, job.model.balance_rate
    if kind != "auto":
        return kind, rate
    routers = [router for part in parallel.parts for router in routers_of(part)]
    if routers and all(bias_of(router) is not None for router in routers):
        return "bias", rate
    return "loss", float(getattr(config, "router_aux_loss_coef", None) or rate)


def _batches(job: Job, corpora: Corpora) -> tuple[Batches, Batches | None]:
    """The sequences of each step, and those of evaluations."""
    data, train = job.data, job.train
    batches = Batches(
        corpora.train,
        sequence=data.sequence,
        batch=train.batch,
        seed=train.seed,
        shuffle=data.shuffle,
        boundaries=data.boundaries,
    )
    if corpora.held_out is None:
        return batches, None
    return batches, Batches(
        corpora.held_out,
        sequence=data.sequence,
        batch=job.layout.dp * job.layout.micro_batch,
        seed=train.seed,
        shuffle=False,
        boundaries=data.boundaries,
    )


def _open_data(job: Job, tell: Tell) -> tuple[Tokenizer, Corpora]:
    cache = data_cache(job.data)

    def texts() -> Iterator[str]:
        return Sources(job.data).texts()

    def progress(documents: int, tokens: int) -> None:
        tell(Prepared("tokens", tokens))

    tokenizer = open_tokenizer(job.tokenizer, job.model.folder, texts, cache)
    return tokenizer, open_corpora(job.data, tokenizer, cache, progress)


def _in_turn(world: World, make: Callable[[], Any]) -> Any:
    """`make` in the first process of each node, then, from what it has cached, in the others."""
    made = make() if world.local_rank == 0 else None
    if dist.is_initialized():
        dist.barrier()
    return made if world.local_rank == 0 else make()


def _check_model(job: Job, config: Any, tokenizer: Tokenizer) -> None:
    build.check_sequence(config, job.data.sequence)
    if tokenizer.vocabulary > config.vocab_size:
        raise UsageError(
            f"the tokenizer has {tokenizer.vocabulary} tokens and the model {config.vocab_size}; "
            "expected the model's own tokenizer: tokenizer.kind = 'folder'"
        )


def _numbers(job: Job, here: Ground) -> Numbers:
    return Numbers(
        precision=job.train.precision,
        compile=job.train.compile,
        eager_random=job.train.eager_random,
        sum_only=here.quirk(ground.SUM_ONLY) is not None,
        blocking_copies=here.quirk(ground.BLOCKING_COPIES) is not None,
    )


def _materialize(job: Job, config: Any, world: World) -> Callable[[LanguageModel], None]:
    """Gives a stage its memory and its first weights."""

    def fill(part: LanguageModel) -> None:
        model, seed, device = part.causal, job.train.seed, world.device
        if not job.model.folder or job.model.fresh:
            initialize.initialize(model, seed=seed, device=device, config=config)
            return
        hf_folder.load_weights(
            model,
            Path(job.model.folder),
            device=device,
            config=config,
            name_of=lora.base_name,
            skip=lora.is_adapter,
        )
        if job.lora.rank:
            lora.initialize_adapters(model, seed=seed)

    return fill


def _optimizers(job: Job, parallel: Parallel) -> Optimizers:
    named = dict(parallel.parameters())
    ends = {name for part in parallel.parts for name in _end_names(part)}
    plain = [name for name, p in named.items() if p.ndim < 2 or name in ends]
    matrices = [name for name, p in named.items() if p.ndim == 2 and name not in ends]
    return Optimizers(named, job.optimizer, matrices=matrices, plain=plain)


def _end_names(part: LanguageModel) -> set[str]:
    """The names of the embedding's and the head's weights."""
    ends = {
        id(weight)
        for layer in (part.causal.get_input_embeddings(), part.causal.get_output_embeddings())
        if (weight := getattr(layer, "weight", None)) is not None
    }
    return {name for name, p in part.causal.named_parameters() if id(p) in ends}


def _resume(run: Run) -> None:
    found, flaws = run.checkpoints.find()
    for flaw in flaws:
        run.tell(Warned(f"{flaw}; the one before it is used"))
    if found is None:
        if flaws:
            raise CheckpointError(
                f"{flaws[-1]}; no other checkpoint is left in {run.folder.checkpoints}. Remove the "
                "damaged ones to begin again"
            )
        return
    tensors = run.tensors()
    run.checkpoints.load(found, tensors)
    run.progress.resume(found.state)
    run.optimizers.resume(run.progress.updates)
