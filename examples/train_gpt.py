"""Train a small GPT on the source of Python's standard library, byte by byte.

    python examples/train_gpt.py                              # one GPU
    torchrun --nproc-per-node 8 examples/train_gpt.py         # one process a GPU
    python examples/train_gpt.py --resume                     # go on from the last checkpoint

The corpus is on every machine that has Python, and a token is a byte: nothing to download, no
tokenizer. A checkpoint holds all that training depends on, so a resumed run gives the weights of
an uninterrupted one.

Shapes are in the names: B batch, T time, S = T + 1, W windows of the corpus.
"""

import argparse
import contextlib
import json
import math
import os
import sysconfig
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt import GPT, GPTConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Ranks:
    """This process, its device and how many others there are."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, value: Tensor) -> float:
        """The mean over all processes of a scalar that each of them holds."""
        value = value.detach().float().clone()
        if self.world > 1:
            dist.all_reduce(value)
        return value.item() / self.world


def connect(device_name: str) -> Ranks:
    """Join the process group when torchrun started us, and take this process's device."""
    device = torch.device(device_name)
    if "LOCAL_RANK" not in os.environ:
        return Ranks(0, 1, device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def as_tokens(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def read_corpus() -> tuple[Tensor, Tensor]:
    """Training and validation bytes: every twentieth module is held out."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    held_out = files[::20]
    train = b"\n".join(path.read_bytes() for path in files if path not in held_out)
    validation = b"\n".join(path.read_bytes() for path in held_out)
    return as_tokens(train), as_tokens(validation)


class Loader:
    """Shuffled windows of the corpus, each batch copied ahead on a side stream.

    `position` counts the batches handed out and is all the state there is: the order follows from
    the seed, and ranks take turns in one global batch.
    """

    def __init__(self, tokens: Tensor, args: argparse.Namespace, ranks: Ranks) -> None:
        self.windows_WS = tokens.unfold(0, args.context + 1, args.context)
        self.ranks, self.seed = ranks, args.seed
        self.global_batch = args.batch_size * ranks.world
        self.stream = torch.cuda.Stream() if ranks.device.type == "cuda" else None
        self.seek(0)

    def seek(self, position: int) -> None:
        self.position = position
        self.ahead_BS = self.fetch()

    def fetch(self) -> Tensor:
        epoch, index = divmod(self.position, len(self.windows_WS) // self.global_batch)
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order_W = torch.randperm(len(self.windows_WS), generator=generator)
        rows = order_W[index * self.global_batch :][: self.global_batch]
        batch_BS = self.windows_WS[rows[self.ranks.rank :: self.ranks.world]]
        if self.stream is None:
            return batch_BS
        with torch.cuda.stream(self.stream):
            return batch_BS.pin_memory().to(self.ranks.device, non_blocking=True)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        batch_BS = self.ahead_BS
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)
            batch_BS.record_stream(torch.cuda.current_stream())
        self.seek(self.position + 1)
        return batch_BS[:, :-1].long(), batch_BS[:, 1:].long()


class Stopwatch:
    """Milliseconds between two marks, by the device's own clock where it has one."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.start = self.mark()

    def mark(self) -> float | torch.cuda.Event:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def lap_ms(self) -> float:
        start, end = self.start, self.mark()
        self.start = end
        if not self.on_gpu:
            return (end - start) * 1e3
        end.synchronize()
        return start.elapsed_time(end)


@dataclass
class Training:
    """Everything that changes from step to step, and what it is computed with."""

    args: argparse.Namespace
    ranks: Ranks
    model: GPT
    forward: nn.Module  # the model as compiled and wrapped
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loader: Loader
    step: int = 0

    def autocast(self) -> torch.autocast:
        dtype = DTYPES[self.args.dtype]
        kind = self.ranks.device.type
        return torch.autocast(device_type=kind, dtype=dtype, enabled=dtype != torch.float32)


def prepare(args: argparse.Namespace, ranks: Ranks, train_tokens: Tensor) -> Training:
    on_gpu = ranks.device.type == "cuda"
    torch.manual_seed(args.seed)  # the same first weights on every rank
    config = GPTConfig(args.layers, args.heads, args.width, args.context, args.dropout)
    model = GPT(config).to(ranks.device)
    if on_gpu:
        torch.cuda.manual_seed_all(args.seed + ranks.rank)  # dropout differs from rank to rank
    forward = torch.compile(model) if args.compile else model
    if ranks.world > 1:
        forward = DistributedDataParallel(forward, device_ids=[ranks.device] if on_gpu else None)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": args.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=args.dtype == "float16")
    loader = Loader(train_tokens, args, ranks)
    return Training(args, ranks, model, forward, optimizer, scaler, loader)


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then half a cosine down to a tenth."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    progress = (step - args.warmup) / max(1, args.steps - args.warmup)
    return args.lr * (0.55 + 0.45 * math.cos(math.pi * progress))


def train_step(training: Training) -> Tensor:
    """One optimizer step over `accumulate` batches; the mean loss, still on the device."""
    args, forward, scaler = training.args, training.forward, training.scaler
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(training.step, args)
    total_loss = torch.zeros((), device=training.ranks.device)
    for micro_step in range(args.accumulate):
        is_last = micro_step == args.accumulate - 1
        x_BT, targets_BT = training.loader.next_batch()
        # Gradients cross the network once a step, with the last backward.
        skip_sync = training.ranks.world > 1 and not is_last
        with forward.no_sync() if skip_sync else contextlib.nullcontext():
            with training.autocast():
                loss = forward(x_BT, targets_BT) / args.accumulate
            scaler.scale(loss).backward()
        total_loss += loss.detach()
    scaler.unscale_(training.optimizer)
    nn.utils.clip_grad_norm_(training.model.parameters(), args.clip)
    scaler.step(training.optimizer)
    scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    training.step += 1
    return total_loss


@torch.no_grad()
def evaluate(training: Training, tokens: Tensor) -> float:
    """Mean loss over `eval_batches` evenly spaced batches of held-out text, shared by the ranks."""
    args, ranks = training.args, training.ranks
    windows_WS = tokens.unfold(0, args.context + 1, args.context)
    count = args.eval_batches * args.batch_size * ranks.world
    rows = torch.linspace(0, len(windows_WS) - 1, count).long()[ranks.rank :: ranks.world]
    training.model.eval()
    total_loss = torch.zeros((), device=ranks.device)
    for batch_rows in rows.split(args.batch_size):
        batch_BS = windows_WS[batch_rows].to(ranks.device).long()
        with training.autocast():
            total_loss += training.forward(batch_BS[:, :-1], batch_BS[:, 1:])
    training.model.train()
    return ranks.mean(total_loss / args.eval_batches)


def rng_states(ranks: Ranks) -> list[dict[str, Tensor]]:
    """The random number generators of every rank."""
    own = {"cpu": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state()
    states = [own] * ranks.world
    if ranks.world > 1:
        dist.all_gather_object(states, own)
    return states


def save_checkpoint(training: Training, path: Path) -> None:
    checkpoint = {
        "step": training.step,
        "position": training.loader.position,
        "config": asdict(training.model.config),
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "scaler": training.scaler.state_dict(),
        "rng": rng_states(training.ranks),
    }
    if training.ranks.is_main:
        partial = path.with_suffix(".partial")
        torch.save(checkpoint, partial)
        os.replace(partial, path)  # a crash leaves the old checkpoint or the new one, never half
        print(f"saved step {training.step} to {path}", flush=True)


def load_checkpoint(training: Training, path: Path) -> None:
    ranks = training.ranks
    checkpoint = torch.load(path, map_location=ranks.device, weights_only=True)
    if checkpoint["config"] != asdict(training.model.config):
        raise SystemExit(f"{path} holds another model: {checkpoint['config']}")
    training.step = checkpoint["step"]
    training.loader.seek(checkpoint["position"])
    training.model.load_state_dict(checkpoint["model"])
    training.optimizer.load_state_dict(checkpoint["optimizer"])
    training.scaler.load_state_dict(checkpoint["scaler"])
    own = checkpoint["rng"][ranks.rank % len(checkpoint["rng"])]
    torch.set_rng_state(own["cpu"].cpu())
    if ranks.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"].cpu())
    if ranks.is_main:
        print(f"resumed {path} at step {training.step}", flush=True)


def speed(training: Training, step_ms: float) -> str:
    args = training.args
    tokens_per_s = args.batch_size * args.accumulate * args.context / step_ms * 1e3
    flops_per_s = tokens_per_s * training.model.flops_per_token()
    mfu = f"{flops_per_s / args.peak_tflops / 1e10:.3g} %" if args.peak_tflops else "unknown"
    total = tokens_per_s * training.ranks.world
    return f"{step_ms:.0f} ms | {total:,.0f} tokens/s | MFU {mfu}"


def log(training: Training, text: str, **values: float) -> None:
    """A line for people on the screen, and one for programs in metrics.jsonl."""
    if not training.ranks.is_main:
        return
    print(f"step {training.step:4d} | {text}", flush=True)
    with open(training.args.out_dir / "metrics.jsonl", "a") as file:
        print(json.dumps({"step": training.step, **values}), file=file)


def train(training: Training, validation: Tensor) -> None:
    """Steps to the end of this run, with its log, evaluations and checkpoints."""
    args, ranks = training.args, training.ranks
    end = min(args.steps, args.stop_step or args.steps)
    stopwatch, steps = Stopwatch(ranks.device), 0
    while training.step < end:
        loss, steps = train_step(training), steps + 1
        is_end = training.step == end
        if is_end or training.step == 1 or training.step % args.log_every == 0:
            mean_loss = ranks.mean(loss)
            step_ms, steps = stopwatch.lap_ms() / steps, 0
            log(training, f"loss {mean_loss:.4f} | {speed(training, step_ms)}", loss=mean_loss)
        if is_end or training.step % args.eval_every == 0:
            mean_loss = evaluate(training, validation)
            log(training, f"held-out loss {mean_loss:.4f}", held_out_loss=mean_loss)
        if is_end or training.step % args.save_every == 0:
            save_checkpoint(training, args.out_dir / "checkpoint.pt")


def describe(device: torch.device, model: GPT) -> None:
    name = "the CPU"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        memory_gib = torch.cuda.get_device_properties(device).total_memory / 2**30
        name = f"{torch.cuda.get_device_name(device)}, {memory_gib:.1f} GiB, sm_{major}{minor}"
    print(f"{model.parameter_count() / 1e6:.2f} M parameters on {device}: {name}", flush=True)


def finish(training: Training) -> None:
    """What rank 0 says at the end: memory, and text once training is complete."""
    args, device = training.args, training.ranks.device
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated(device) / 2**20:.1f} MiB")
    if args.sample and training.step == args.steps:
        training.model.eval()
        with training.autocast():
            print(training.model.generate("def ", args.sample, temperature=0.8, top_k=40))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a GPT on Python's standard library.")
    flag = parser.add_argument
    flag("--device", default="cuda", help="cuda, cuda:1, cpu")
    flag("--dtype", choices=DTYPES, default="bfloat16", help="of autocast; float32 turns it off")
    flag("--compile", action=argparse.BooleanOptionalAction, default=True)
    flag("--seed", type=int, default=1)
    flag("--layers", type=int, default=4)
    flag("--heads", type=int, default=6)
    flag("--width", type=int, default=192)
    flag("--context", type=int, default=128, help="bytes the model sees")
    flag("--dropout", type=float, default=0.0)
    flag("--batch-size", type=int, default=16, help="sequences a batch and process")
    flag("--accumulate", type=int, default=1, help="batches an optimizer step")
    flag("--steps", type=int, default=500, help="optimizer steps of the whole training")
    flag("--stop-step", type=int, help="save and leave at this step, to be resumed")
    flag("--lr", type=float, default=3e-3)
    flag("--warmup", type=int, default=50)
    flag("--weight-decay", type=float, default=0.1)
    flag("--clip", type=float, default=1.0, help="largest norm of the gradients")
    flag("--log-every", type=int, default=10)
    flag("--eval-every", type=int, default=250)
    flag("--eval-batches", type=int, default=8)
    flag("--save-every", type=int, default=250)
    flag("--out-dir", type=Path, default=Path("out"))
    flag("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    flag("--peak-tflops", type=float, help="the chip's peak at this dtype, for the MFU line")
    flag("--sample", type=int, default=400, help="bytes of text to write at the end")
    args = parser.parse_args()
    if args.width % (2 * args.heads):
        parser.error(f"--width {args.width} is not a multiple of twice --heads {args.heads}")
    if args.device.startswith("cuda"):
        if not torch.cuda.is_available():
            parser.error("no CUDA device found; --device cpu trains without one")
        if args.dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
            parser.error("this GPU has no bfloat16; use --dtype float16 or float32")
    return args


def main() -> None:
    args = parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    ranks = connect(args.device)
    train_tokens, validation = read_corpus()
    training = prepare(args, ranks, train_tokens)
    if ranks.is_main:
        describe(ranks.device, training.model)
        args.out_dir.mkdir(parents=True, exist_ok=True)
    if args.resume:
        load_checkpoint(training, args.out_dir / "checkpoint.pt")
    train(training, validation)
    if ranks.world > 1:
        dist.destroy_process_group()
    if ranks.is_main:
        finish(training)


if __name__ == "__main__":
    main()
