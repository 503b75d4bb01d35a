"""The same job by `offramp rehearse` and by two planners that work by formulas, in one run.

    python bench/against_planners.py --calculon FOLDER --llm-analysis FOLDER [--python PYTHON]

FOLDER are checkouts of github.com/calculon-ai/calculon and github.com/cli99/llm-analysis, and
PYTHON an interpreter that has what they import (numpy, pandas, tqdm, psutil; fire), by default
this one. Each is started once a job with its own A100 80GB and its own defaults; wall time is of
the whole process. Where a planner lacks a part of the model it gets what has the same products.
None of the three is a measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHIP = "nvidia-a100"
SEQUENCE = 4096
TENSOR_PARALLEL = 8
NOT_MODELLED = {
    "offramp": "what a compiler fuses; memory that the framework holds outside of its allocator",
    "Calculon": (
        "gated MLP (gets an MLP with as many products), grouped queries, vocabulary, parameters "
        "sharded over data parallel ranks (only optimizer states are), host, intervals"
    ),
    "llm-analysis": "efficiency (1 unless the user gives a measured one), host, intervals",
}


@dataclass(frozen=True)
class Work:
    """A Llama, and the chips it is trained on: fully sharded, tensor parallel, recomputed."""

    preset: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    chips: int
    batch: int

    @property
    def shards(self) -> int:
        return self.chips // TENSOR_PARALLEL

    @property
    def equal_mlp(self) -> int:
        """The width of an MLP of two matrices with the products of a gated one's three."""
        return 3 * self.mlp // 2


WORKS = (
    Work("llama-3.1-70b", 80, 8192, 64, 8, 28672, 128256, 64, 64),
    Work("llama-3.1-405b", 126, 16384, 128, 8, 53248, 128256, 512, 128),
)


@dataclass(frozen=True)
class Found:
    """Seconds of a step, bytes a chip, seconds of the tool; or why there is none."""

    wall_s: float
    step_s: float = 0.0
    memory_bytes: float = 0.0
    interval: str = ""
    problem: str = ""


def timed(command: list[str], folder: Path, path: str) -> tuple[float, str]:
    """Run a tool with `path` on its PYTHONPATH; its wall time, and its last line if it failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if path:
        environment["PYTHONPATH"] = path
    begin = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - begin
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return seconds, "" if done.returncode == 0 else (said or ["it failed"])[-1]


def offramp(work: Work, folder: Path, options: argparse.Namespace) -> Found:
    job = ["offramp", "train", "--preset", work.preset, "--sequence", str(SEQUENCE)]
    job += ["--batch", str(work.batch), "--set", f"layout.dp_shard={work.shards}"]
    job += ["--set", f"layout.tp={TENSOR_PARALLEL}", "--set", "layout.micro_batch=1"]
    job += ["--set", "layout.recompute='full'", "--set", "data.boundaries=false"]
    out = folder / "rehearsal.json"
    flags = ["--chip", CHIP, "--nodes", str(work.chips // 8), "--json", str(out)]
    command = [sys.executable, "-m", "offramp", "rehearse", *flags, "--", *job]
    seconds, problem = timed(command, folder, "")
    if problem and not out.exists():
        return Found(seconds, problem=problem)
    result = json.loads(out.read_text())
    step = result["step_s"]
    span = f"{step['low']:.1f} to {step['high']:.1f}"
    return Found(seconds, step["mid"], result["memory"]["allocated_bytes"], span)


def calculon(work: Work, folder: Path, options: argparse.Namespace) -> Found:
    model = {
        "hidden": work.width,
        "feedforward": work.equal_mlp,
        "seq_size": SEQUENCE,
        "attn_heads": work.heads,
        "attn_size": work.width // work.heads,
        "num_blocks": work.layers,
    }
    execution = {
        "num_procs": work.chips,
        "tensor_par": TENSOR_PARALLEL,
        "pipeline_par": 1,
        "data_par": work.shards,
        "tensor_par_net": 0,
        "pipeline_par_net": 1,
        "data_par_net": 1,
        "batch_size": work.batch,
        "microbatch_size": 1,
        "datatype": "float16",
        "fused_activation": True,
        "attention_type": "multihead",
        "activation_recompute": "full",
        "pipeline_interleaving": 1,
        "optimizer_sharding": True,
        "tensor_par_comm_type": "rs_ag",
        "tensor_par_overlap": "none",
        "seq_par_ag_redo": False,
        "data_par_overlap": True,
        "weight_offload": False,
        "activations_offload": False,
        "optimizer_offload": False,
        "training": True,
    }
    (folder / "model.json").write_text(json.dumps(model))
    (folder / "execution.json").write_text(json.dumps(execution))
    out = folder / "calculon.json"
    root = options.calculon
    files = ["model.json", "execution.json", str(root / "systems" / "a100_80g.json"), str(out)]
    command = [options.python, str(root / "bin" / "calculon"), "llm", *files]
    seconds, problem = timed(command, folder, str(root))
    if problem:
        return Found(seconds, problem=problem)
    result = json.loads(out.read_text())
    return Found(seconds, result["total_time"], result["proc_mem_tier1_cap_req"])


def llm_analysis(work: Work, folder: Path, options: argparse.Namespace) -> Found:
    model = {
        "name": work.preset,
        "num_layers": work.layers,
        "n_head": work.heads,
        "hidden_dim": work.width,
        "vocab_size": work.vocabulary,
        "max_seq_len": SEQUENCE,
        "num_key_value_heads": work.kv_heads,
        "ffn_embed_dim": work.mlp,
        "model_type": "llama",
        "mlp_gated_linear_units": True,
    }
    (folder / "llama.json").write_text(json.dumps(model))
    flags: dict[str, Any] = {
        "model_name": folder / "llama.json",
        "gpu_name": "a100-sxm-80gb",
        "seq_len": SEQUENCE,
        "activation_recomputation": 4,
        "ds_zero": 3,
        "batch_size_per_gpu": 1,
        "gradient_accumulation_steps": work.batch // work.shards,
        "dp_size": work.shards,
        "tp_size": TENSOR_PARALLEL,
        "total_num_gpus": work.chips,
        "output_dir": folder,
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    command = [options.python, "-m", "llm_analysis.analysis", "train", *words]
    seconds, problem = timed(command, folder, str(options.llm_analysis))
    if problem:
        return Found(seconds, problem=problem)
    (out,) = folder.glob("*-summary.json")
    result = json.loads(out.read_text())
    memory = result["estimated_peak_memory_per_gpu"]
    return Found(seconds, result["latency_per_iter"], memory)


TOOLS: dict[str, Callable[[Work, Path, argparse.Namespace], Found]] = {
    "offramp": offramp,
    "Calculon": calculon,
    "llm-analysis": llm_analysis,
}


def row(tool: str, found: Found) -> str:
    if found.problem:
        return f"| {tool} | {found.wall_s:.1f} s | - | - | {found.problem} |"
    span = f" ({found.interval})" if found.interval else ""
    memory = f"{found.memory_bytes / 2**30:.1f} GiB"
    return f"| {tool} | {found.wall_s:.1f} s | {found.step_s:.1f} s{span} | {memory} | |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calculon", type=Path, metavar="FOLDER", help="its checkout")
    parser.add_argument("--llm-analysis", type=Path, metavar="FOLDER", help="its checkout")
    parser.add_argument("--python", default=sys.executable, help="runs the two planners")
    parser.add_argument("--jobs", nargs="*", default=[work.preset for work in WORKS])
    options = parser.parse_args()
    asked = {"Calculon": options.calculon, "llm-analysis": options.llm_analysis}
    missing = [tool for tool, path in asked.items() if path is None]
    if missing:
        print(f"left out, without a checkout: {', '.join(missing)}")
    if len(missing) == len(asked):  # as `make bench` starts every script
        return
    for work in WORKS:
        if work.preset not in options.jobs:
            continue
        print(f"\n{work.preset}, {work.chips} A100 80GB, {work.batch} sequences of {SEQUENCE},")
        print(f"{work.shards} shards, {TENSOR_PARALLEL} tensor parallel, full recompute\n")
        print("| tool | wall time | step | memory a chip | |\n|---|---|---|---|---|")
        for tool, run in TOOLS.items():
            if tool not in missing:
                with tempfile.TemporaryDirectory() as folder:
                    print(row(tool, run(work, Path(folder).resolve(), options)), flush=True)
    print()
    for tool, what in NOT_MODELLED.items():
        print(f"- {tool} does not model: {what}.")


if __name__ == "__main__":
    main()
