"""The training loop: steps, evaluations, samples and checkpoints, to the end or to a signal."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from offramp.launch.record import write_json
from offramp.train import feed, sample
from offramp.train.checkpoint import CheckpointError
from offramp.train.data.batches import IGNORED, Batches
from offramp.train.events import Evaluated, Sampled, Saved, Stepped, Warned
from offramp.train.metrics import Metrics
from offramp.train.models.build import flops_per_token
from offramp.train.optimizer import learning_rate
from offramp.train.pace import Pace
from offramp.train.setup import Run
from offramp.train.watch import StallWatch

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclass
class Outcome:
    """How a loop ended, and what it measured."""

    stopped_by: str | None = None
    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    train_s: float = 0.0


class StopSignals:
    """Remembers a signal that asks the run to save and end; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.received: str | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Heed the signals; only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name


def train(run: Run, metrics: Metrics | None, signals: StopSignals) -> Outcome:
    """Train to the last step, or until a signal; the last checkpoint is complete at the end."""
    job, progress = run.job, run.progress
    outcome = Outcome()
    settled = _settled(run)
    pace = Pace(job.train.limit_s) if settled is None else None
    stall = StallWatch(job.watch.stall_s, run.world.rank)
    began_s = time.monotonic()
    while settled is None or progress.step < settled:
        step_metrics = take_step(run, settled)
        _record(run, metrics, step_metrics, settled, outcome)
        stall.beat()
        progress.step += 1
        wish = pace.settle(progress.step) if pace is not None and settled is None else None
        stop, agreed = _agree(run, signals.received is not None, wish or 0)
        if settled is None and agreed:
            settled = progress.total = agreed
            if run.world.is_main:
                write_json(run.folder.plan, {"steps": settled})
        if stop:
            outcome.stopped_by = signals.received or "another process"
            break
        _between_steps(run, metrics, settled, outcome)
        stall.beat()
    outcome.train_s = time.monotonic() - began_s
    progress.total = settled
    stall.close()
    save(run, last=True)
    return outcome


def take_step(run: Run, total: int | None) -> dict[str, float]:
    """One optimizer step: its metrics. Steps without finite gradients leave the weights alone."""
    job, progress, parallel = run.job, run.progress, run.parallel
    began_s = time.perf_counter()
    torch.manual_seed(_step_seed(run))
    rows = run.feed.take(progress.step)
    trained, tokens = _counts(run, rows.trained, rows.tokens)
    rate = learning_rate(job.schedule, progress.step, total)
    scale = progress.scale.value
    loss_sum = parallel.forward_backward(rows.micro, scale / max(1, trained))
    loss = parallel.total(loss_sum).item() / max(1, trained)
    norm = parallel.gradient_norm().item() / scale
    finite = math.isfinite(loss) and math.isfinite(norm)
    # An overflow that a smaller scale will avoid is how fp16 finds its scale, and no news.
    searching = progress.scale.active and not finite and scale > 1
    progress.scale.update(finite)
    said = None if searching else progress.watch.see(progress.step + 1, loss, norm)
    if finite:
        clip = min(1.0, job.train.clip / (norm + 1e-6)) if job.train.clip else 1.0
        if clip / scale != 1.0:
            grads = [p.grad for _, p in parallel.parameters() if p.grad is not None]
            torch._foreach_mul_(grads, clip / scale)
        run.optimizers.step(rate)
        progress.updates += 1
    run.optimizers.zero()
    if said:
        run.tell(Warned(said))
    progress.tokens += tokens
    step_s = time.perf_counter() - began_s
    return {
        "loss": loss,
        "gradient_norm": norm,
        "learning_rate": rate * job.optimizer.lr,
        "tokens": progress.tokens,
        "step_s": step_s,
        "tokens_per_s": tokens / step_s,
    }


def evaluate(run: Run, held_out: Batches) -> float:
    """The mean loss of held-out tokens, in nats."""
    job, world, layout = run.job, run.world, run.job.layout
    part = layout.dp * layout.micro_batch
    wanted = min(held_out.sequences, job.evaluate.sequences)
    place = world.place("dp_replicate", "dp_shard")
    total, count = 0.0, 0
    for step in range(max(1, wanted // part)):
        rows = held_out.rows(step, place * layout.micro_batch, layout.micro_batch)
        micro = list(feed.cut(rows, layout.micro_batch))
        total += float(run.parallel.total(run.parallel.evaluate(micro)))
        count += _counts(run, int((rows.targets_BT != IGNORED).sum()), 0)[0]
    return total / max(1, count)


def write_samples(run: Run) -> tuple[tuple[str, str], ...]:
    """What the model makes of the job's prompts; none where no rank has all of its layers."""
    section, layout = run.job.sample, run.job.layout
    if not section.prompts or layout.pp * layout.cp * layout.tp > 1:
        return ()
    prompts = [[int(i) for i in run.tokenizer.encode(text)] for text in section.prompts]
    with run.parallel.products():
        written = sample.write(
            run.parallel.parts[0],
            prompts,
            tokens=section.tokens,
            temperature=section.temperature,
            end=run.tokenizer.end,
            seed=run.job.train.seed,
        )
    return tuple(
        (prompt, run.tokenizer.decode(ids))
        for prompt, ids in zip(section.prompts, written, strict=True)
    )


def save(run: Run, *, last: bool = False) -> None:
    """Begin a checkpoint, or, for the last one, write it and wait.

    A checkpoint that cannot be written is told and tried again at its next time; the last one must
    succeed. Raises CheckpointError.
    """
    # Every process begins the next one, whatever became of the last: they must meet in it.
    try:
        _tell_saved(run, run.checkpoints.wait())
    except CheckpointError as error:
        run.tell(Warned(f"{error}; it is tried again"))
    found = run.folder.checkpoints / f"step-{run.progress.step:08d}"
    if last and found.exists():
        return
    try:
        run.checkpoints.save(run.progress.step, run.tensors(), run.progress.state())
        if last or not run.job.checkpoint.asynchronous:
            _tell_saved(run, run.checkpoints.wait())
    except CheckpointError as error:
        if last:
            raise
        run.tell(Warned(f"{error}; training goes on"))


def _between_steps(run: Run, metrics: Metrics | None, total: int | None, outcome: Outcome) -> None:
    step, job = run.progress.step, run.job
    if total is not None and step >= total:
        return
    if job.evaluate.every and step % job.evaluate.every == 0:
        note_evaluation(run, metrics, outcome)
    if job.checkpoint.every and step % job.checkpoint.every == 0:
        save(run)
    else:
        try:
            _tell_saved(run, run.checkpoints.finished())
        except CheckpointError as error:
            run.tell(Warned(f"{error}; training goes on"))


def note_evaluation(run: Run, metrics: Metrics | None, outcome: Outcome) -> None:
    """Evaluate, and write and tell the result; nothing, where no data is held out."""
    if run.held_out is None:
        return
    loss = evaluate(run, run.held_out)
    outcome.held_out.append((run.progress.step, loss))
    if metrics is not None:
        metrics.write("evaluation", run.progress.step, {"loss": loss})
    run.tell(Evaluated(run.progress.step, loss))


def note_samples(run: Run, metrics: Metrics | None) -> None:
    """Let the model write, and tell what."""
    texts = write_samples(run)
    if texts:
        if metrics is not None:
            metrics.write("sample", run.progress.step, {"texts": texts})
        run.tell(Sampled(run.progress.step, texts))


def _record(
    run: Run, metrics: Metrics | None, values: dict[str, float], total: int | None, outcome: Outcome
) -> None:
    step = run.progress.step + 1
    outcome.losses.append(values["loss"])
    noted = step % run.job.metrics.every == 0 or step in (1, total)
    if noted:
        values |= _expert_load(run)
    if metrics is not None and noted:
        peak, _ = run.ground.peak_flops(run.job.train.precision)
        flops_per_s = values["tokens_per_s"] * flops_per_token(run.shape, run.job.data.sequence)
        mfu = flops_per_s / (peak * run.world.size) if peak else None
        metrics.write("step", step, {**values, "mfu": mfu, "memory_bytes": memory_bytes(run)})
    run.tell(Stepped(step, total, values))


def _expert_load(run: Run) -> dict[str, float]:
    """The busiest expert's share of choices over the mean's, in the worst layer; 1 is even."""
    balance = run.parallel.balance
    counts_LE = balance.counts() if balance is not None else None
    if counts_LE is None:
        return {}
    return {"expert_load": float((counts_LE.amax(1) / counts_LE.mean(1).clamp(min=1e-9)).max())}


def memory_bytes(run: Run) -> int:
    """The most that was allocated on this device; on the CPU, the process's peak."""
    if run.world.device.type == "cpu":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(torch.accelerator.max_memory_allocated(run.world.device))


def _settled(run: Run) -> int | None:
    if run.job.train.steps:
        return run.job.train.steps
    if run.progress.total is not None:
        return run.progress.total
    if run.folder.plan.exists():
        return int(json.loads(run.folder.plan.read_text())["steps"])
    return None


def _step_seed(run: Run) -> int:
    """The seed of a step's random numbers: ranks with other data differ, others agree."""
    place = run.world.place("dp_replicate", "dp_shard", "cp")
    text = f"{run.job.train.seed}/{run.progress.step}/{place}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())


def _counts(run: Run, trained: int, tokens: int) -> tuple[int, int]:
    """Sums over the ranks that have other data."""
    counts = torch.tensor([trained, tokens])
    if (group := run.world.group("dp_replicate", "dp_shard")) is not None:
        dist.all_reduce(counts, group=group)
    return int(counts[0]), int(counts[1])


def _agree(run: Run, stop: bool, wish: int) -> tuple[bool, int]:
    """Whether any process wants to stop, and the first process's wish, the same in all."""
    if run.world.size == 1:
        return stop, wish
    votes = torch.tensor([int(stop), wish if run.world.is_main else 0])
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return bool(votes[0]), int(votes[1])


def _tell_saved(run: Run, path: Any) -> None:
    if path is not None:
        run.tell(Saved(int(path.name.removeprefix("step-")), str(path)))
