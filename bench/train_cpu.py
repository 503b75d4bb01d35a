"""Training on this machine's CPU: the same model and the same tokens, one interleaved run.

Every contender trains in a process of its own. They take turns, a few steps each, so that all meet
the same neighbours; medians and the spread over turns are printed. Before any figure counts, the
losses of the first steps are compared: contenders that compute something else are marked.

    python bench/train_cpu.py [--quick] [--litgpt-python PATH] [--only NAME ...]

litgpt asks for packages that may not go with transformers' newest: give the Python of an
environment that has it (`pip install --no-deps litgpt lightning lightning-utilities torchmetrics
pytorch-lightning` beside the same torch).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders.gate import Task

from offramp.train.models import build

HERE = Path(__file__).parent
WARM_STEPS = 4
LOSS_BAR = 1e-3  # of the first step, in nats
LATER_BAR = 0.02  # of the last warm-up step, relative


@dataclass(frozen=True)
class Setting:
    """One table of the bench."""

    title: str
    vocabulary: int
    precision: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    batch: int = 8
    sequence: int = 256

    def config(self) -> dict[str, Any]:
        """A Qwen3 configuration whose head has weights of its own (litgpt ties none)."""
        return {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": 64,
            "max_position_embeddings": 1024,
            "initializer_range": 0.02,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "tie_word_embeddings": False,
            "attention_bias": False,
            "use_cache": False,
            "vocab_size": self.vocabulary,
        }

    def products(self) -> list[tuple[int, int, int]]:
        """Every linear layer of the model as (count, inputs, outputs)."""
        queries, keys = 64 * self.heads, 64 * self.kv_heads
        return [
            (self.layers, self.hidden, queries),
            (2 * self.layers, self.hidden, keys),
            (self.layers, queries, self.hidden),
            (2 * self.layers, self.hidden, self.inner),
            (self.layers, self.inner, self.hidden),
            (1, self.hidden, self.vocabulary),
        ]


NANO = {"hidden": 256, "inner": 768, "layers": 4, "heads": 4, "kv_heads": 2}
SMALL = {"hidden": 512, "inner": 2048, "layers": 8, "heads": 8, "kv_heads": 4}
SETTINGS = (
    Setting("nano, 257 tokens, bf16", 257, "bf16", **NANO),
    Setting("30 M, 257 tokens, bf16", 257, "bf16", **SMALL),
    Setting("30 M, 32,768 tokens, bf16", 32768, "bf16", **SMALL),
    Setting("30 M, 257 tokens, fp32", 257, "fp32", **SMALL),
)


@dataclass
class Contender:
    """A row of a table, and the process behind it."""

    name: str
    python: str
    compile: bool
    option: str = ""
    process: subprocess.Popen[str] | None = None
    trouble: str = ""
    first_s: float = 0.0
    losses: list[float] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)  # seconds a step
    whole_peak: int = 0
    peak: int = 0
    base: int = 0

    @property
    def title(self) -> str:
        """For the table."""
        parts = [self.name, self.option, "compiled" if self.compile else ""]
        return ", ".join(part for part in parts if part)

    def start(self, task: Task, log: Path) -> None:
        """Begin the process and wait until it is set up."""
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent / "src")]),
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "TORCHINDUCTOR_CACHE_DIR": f"{task.scratch}/inductor",  # nobody finds it compiled
        }
        command = [self.python, "-m", "contenders.child", self.name, json.dumps(asdict(task))]
        self._log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                cwd=task.scratch,
            )
        if answer := self._answer():
            self.base = answer["base_bytes"]

    def run(self, steps: int, *, reset: bool = False) -> dict[str, Any]:
        """Train so many steps; empty when the process is gone."""
        if self.trouble or self.process is None or self.process.stdin is None:
            return {}
        try:
            self.process.stdin.write(json.dumps({"steps": steps, "reset": reset}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        return self._answer()

    def close(self) -> None:
        """End the process."""
        if self.process is not None and self.process.stdin is not None:
            try:
                self.process.stdin.close()
                self.process.wait(30)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self.process.kill()

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        lines = self._log.read_text().strip().splitlines()
        self.trouble = lines[-1] if lines else "ended without a word"
        if "No module named 'litgpt'" in self.trouble or "'lightning'" in self.trouble:
            self.trouble = "not installed; see the head of bench/train_cpu.py"
        return {}


def rows(litgpt_python: str, precision: str, quick: bool) -> list[Contender]:
    """All contenders, ours first."""
    found = []
    for name in ("offramp", "Trainer", "litgpt", "plain PyTorch"):
        python = litgpt_python if name == "litgpt" else sys.executable
        found += [Contender(name, python, compiled) for compiled in (False, True)]
    if precision == "bf16" and not quick:
        found.append(Contender("litgpt", litgpt_python, True, "bf16-true"))
    return found


def write_folder(setting: Setting, folder: Path) -> build.Shape:
    """The configuration and one draw of weights, as a Hugging Face folder."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(1)
    config = Qwen3Config(**setting.config())
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(setting.config()))
    return build.describe(config)


def write_tokens(path: Path, count: int) -> None:
    """Bytes of the standard library's source, as uint16."""
    text = bytearray()
    for source in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text += source.read_bytes()
        if len(text) >= count:
            break
    np.frombuffer(bytes(text[:count]), np.uint8).astype(np.uint16).tofile(path)


def best_s(call: Callable[[], object], seconds: float = 0.4) -> float:
    """The shortest of the calls that fit into so many seconds, five at least."""
    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def matrix_rates(setting: Setting) -> tuple[float, float]:
    """Operations a second: of one large square product, and of the model's own products.

    The model's: each linear layer's product and the two of its backward pass, as autograd lays
    them out, in the job's format, and nothing else.
    """
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    side = 4096 if setting.precision == "bf16" else 2048
    a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    out = torch.empty_like(a)
    square = 2 * side**3 / best_s(lambda: torch.mm(a, b, out=out), 2.0)
    tokens, took_s, flops = setting.batch * setting.sequence, 0.0, 0.0
    for count, inputs, outputs in setting.products():
        x = torch.randn(tokens, inputs).to(dtype)
        w, y = torch.randn(outputs, inputs).to(dtype), torch.randn(tokens, outputs).to(dtype)
        into_x, into_w, into_y = torch.empty_like(x), torch.empty_like(w), torch.empty_like(y)
        calls = (
            lambda x=x, w=w, o=into_y: torch.mm(x, w.T, out=o),
            lambda y=y, w=w, o=into_x: torch.mm(y, w, out=o),
            lambda y=y, x=x, o=into_w: torch.mm(y.T, x, out=o),
        )
        took_s += count * sum(best_s(call) for call in calls)
        flops += count * 6 * tokens * inputs * outputs
    return square, flops / took_s


def measure(
    contenders: list[Contender], setting: Setting, task: Task, rounds: int, turn_s: float
) -> tuple[float, float]:
    """Start all, let the first steps pass, then let them take turns with the bare products.

    Returns the best matrix rates of all turns, as `matrix_rates` gives them.
    """
    rates = []
    for number, one in enumerate(contenders):
        scratch = Path(task.scratch) / str(number)
        scratch.mkdir()
        values = asdict(task) | {
            "scratch": str(scratch),
            "compile": one.compile,
            "option": one.option,
        }
        one.start(Task(**values), scratch / "log.txt")
        if first := one.run(1):
            one.first_s, one.losses = first["seconds"], first["losses"]
        if warm := one.run(WARM_STEPS):
            one.losses += warm["losses"]
            one.whole_peak = warm["peak_bytes"]
            one.turns = [warm["seconds"] / WARM_STEPS]
        print(f"  {one.title}: {one.trouble or f'first step {one.first_s:.1f} s'}", flush=True)
    running = [one for one in contenders if not one.trouble]
    steps = max(1, round(turn_s / min(one.turns[0] for one in running)))
    for one in running:
        one.turns = []
    for turn in range(rounds):
        rates.append(matrix_rates(setting))
        for one in running if turn % 2 == 0 else running[::-1]:
            if answer := one.run(steps, reset=turn == 0):
                one.turns.append(answer["seconds"] / steps)
                one.peak = answer["peak_bytes"]
    for one in contenders:
        one.close()
    return max(r[0] for r in rates), max(r[1] for r in rates)


def differs(one: Contender, reference: Contender) -> str:
    """What is wrong with a contender's losses; empty: nothing."""
    if abs(one.losses[0] - reference.losses[0]) > LOSS_BAR:
        return f"first loss {one.losses[0]:.4f}, expected {reference.losses[0]:.4f}"
    if abs(one.losses[-1] / reference.losses[-1] - 1) > LATER_BAR:
        return f"loss {one.losses[-1]:.4f} later, expected {reference.losses[-1]:.4f}"
    return ""


def report(
    setting: Setting, shape: build.Shape, rates: tuple[float, float], contenders: list[Contender]
) -> None:
    """Print the table of a setting."""
    tokens = setting.batch * setting.sequence
    flops = build.flops_per_token(shape, setting.sequence) * tokens
    square, own = rates
    print(
        f"\n### {setting.title}\n\n{shape.without_embeddings / 1e6:.1f} M parameters without the "
        f"tables, {setting.batch} x {setting.sequence} tokens a step, {flops / 1e9:.0f} G "
        f"operations. Matrix rate: {square / 1e9:.0f} G/s (large square), {own / 1e9:.0f} G/s "
        "(the model's own products alone).\n"
    )
    print("| contender | tokens/s | spread | of the square's rate | of its own products' | "
          "peak memory | peak in training | first step | loss after 1, 5 steps |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    reference = next((c for c in contenders if c.name == "plain PyTorch" and c.losses), None)
    speeds: dict[str, float] = {}
    for one in contenders:
        if one.trouble or not one.turns:
            print(f"| {one.title} | {one.trouble} | | | | | | | |")
            continue
        step_s = statistics.median(one.turns)
        spread = (max(one.turns) - min(one.turns)) / 2 / step_s
        wrong = differs(one, reference) if reference else ""
        if not wrong and not one.option:
            speeds[one.name] = max(speeds.get(one.name, 0.0), tokens / step_s)
        print(
            f"| {one.title} | {tokens / step_s:,.0f} | {spread:.0%} | "
            f"{flops / step_s / square:.0%} | {flops / step_s / own:.0%} | "
            f"{one.whole_peak / 2**20:,.0f} MiB | {one.peak / 2**20:,.0f} MiB | "
            f"{one.first_s:.1f} s | {one.losses[0]:.4f}, {one.losses[-1]:.4f}"
            f"{'; DIFFERENT: ' + wrong if wrong else ''} |"
        )
    others = {name: speed for name, speed in speeds.items() if name != "offramp"}
    if "offramp" in speeds and others:
        best = max(others, key=lambda name: others[name])
        ratio = speeds["offramp"] / others[best]
        print(f"\nofframp's best row is {ratio:.2f} x the best other one ({best}).", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Training on this machine's CPU, compared.")
    parser.add_argument("--quick", action="store_true", help="two tables, short turns")
    parser.add_argument("--rounds", type=int, default=0, help="turns of each contender")
    parser.add_argument("--litgpt-python", default=sys.executable)
    parser.add_argument("--only", nargs="*", default=[], help="words of rows to keep")
    parser.add_argument("--tables", type=int, nargs="*", default=[], help="which settings, from 0")
    options = parser.parse_args()
    rounds = options.rounds or (3 if options.quick else 9)
    chosen = options.tables or ((0, 1) if options.quick else range(len(SETTINGS)))
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, {rounds} turns each"
    )
    for index in chosen:
        setting = SETTINGS[index]
        with tempfile.TemporaryDirectory(prefix="offramp-bench-") as name:
            scratch = Path(name)
            shape = write_folder(setting, scratch / "model")
            write_tokens(scratch / "stream.bin", 4_000_000)
            task = Task(
                str(scratch / "model"),
                str(scratch / "stream.bin"),
                name,
                setting.batch,
                setting.sequence,
                setting.precision,
            )
            contenders = [
                one
                for one in rows(options.litgpt_python, setting.precision, options.quick)
                if not options.only or any(word in one.title for word in options.only)
            ]
            turn_s = 1.5 if options.quick else 3.0
            rates = measure(contenders, setting, task, rounds, turn_s)
            report(setting, shape, rates, contenders)


if __name__ == "__main__":
    main()
