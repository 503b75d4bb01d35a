"""`offramp rehearse` as a user starts it: one chip, sharded, in stages, and where it must end."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from started import rehearse, start

pytestmark = [pytest.mark.programs, pytest.mark.timeout(120)]
CHIP = "nvidia-h100"
WIDE = """
import torch
model = torch.nn.Linear({n}, {n}, bias=False, device="cuda")
optimizer = torch.optim.Adam(model.parameters())
while True:
    optimizer.zero_grad()
    model(torch.randn(32, {n}, device="cuda")).square().mean().backward()
    optimizer.step()
"""
TRAIN = (
    *("offramp", "train", "--preset", "qwen3-nano", "--batch", "64", "--sequence", "64"),
    *("--set", "layout.micro_batch=8", "--set", "sample.prompts=[]"),
)


def result(cwd: Path, *arguments: str, name: str = "out.json", status: int = 0) -> dict[str, Any]:
    rehearse("--json", name, "--chip", CHIP, *arguments, cwd=cwd, status=status)
    found: dict[str, Any] = json.loads((cwd / name).read_text())
    return found


SPAWN = """
import sys, torch, torch.multiprocessing as mp, torch.distributed as dist
def main(rank, world, width):
    url = "tcp://127.0.0.1:29501"
    dist.init_process_group("nccl", init_method=url, rank=rank, world_size=world)
    model = torch.nn.Linear(width, width, bias=False, device=f"cuda:{{rank}}")
    model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[rank])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(9):
        optimizer.zero_grad()
        model(torch.randn(8, width, device=f"cuda:{{rank}}")).sum().backward()
        optimizer.step()
if __name__ == "__main__":
    mp.spawn(main, args=({n}, 256), nprocs={n})
"""


def test_a_program_that_starts_its_ranks_is_played_as_one_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(SPAWN.format(n=4))
    found = result(tmp_path, "--per-node", "4", "--nodes", "1", "--", "python", "a.py")
    assert found["world"] == 4
    (row,) = found["ranks"][0]["collectives"]
    assert (row["name"], row["ranks"], row["bytes"]) == ("all_reduce", 4, 256 * 256 * 4)
    _, said = rehearse("--chip", CHIP, "--", "python", "a.py", cwd=tmp_path, status=1)
    assert "starts 4 processes a node, and this rehearsal's nodes have 1" in said
    assert "--per-node 4" in said


def test_one_chip_holds_parameters_and_states_in_closed_form(tmp_path: Path) -> None:
    """4 bytes a parameter, 4 a gradient, 8 of Adam's state; the same bytes when played again."""
    n = 1024
    (tmp_path / "wide.py").write_text(WIDE.format(n=n))
    found = result(tmp_path, "--", "python", "wide.py")
    parts = found["memory"]["by_category"]
    assert parts["parameters"] == 4 * n * n
    assert parts["optimizer"] == 8 * n * n
    assert parts["gradients"] == 4 * n * n
    assert found["fits"]
    assert found["shortfall_bytes"] == 0
    assert found["world"] == 1
    assert found["step_s"]["low"] <= found["step_s"]["mid"] <= found["step_s"]["high"]
    assert found["flops"] == 2 * 2 * 32 * n * n  # forward, gradient of the weight
    assert found["tokens"] is found["money"] is None
    page = ("--html", "page.html")
    result(tmp_path, *page, "--trace", "trace.json", "--", "python", "wide.py", name="again.json")
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()
    first = (tmp_path / "page.html").read_bytes()
    assert len(first) < 10_000_000
    assert str(tmp_path).encode() not in first
    result(tmp_path, *page, "--", "python", "wide.py")
    assert (tmp_path / "page.html").read_bytes() == first


def test_what_does_not_fit_is_told_with_the_shortfall(tmp_path: Path) -> None:
    """Three chips' worth of parameters, states and gradients, and no more than 1 % beside them."""
    n = 1 << 17  # 64 GiB of parameters
    (tmp_path / "wide.py").write_text(WIDE.format(n=n))
    found = result(tmp_path, "--", "python", "wide.py", status=1)
    memory = found["memory"]
    assert not found["fits"]
    assert found["shortfall_bytes"] == memory["allocated_bytes"] - memory["capacity_bytes"]
    held = {name: memory["by_category"][name] for name in ("parameters", "optimizer", "gradients")}
    assert held == {"parameters": 4 * n * n, "optimizer": 8 * n * n, "gradients": 4 * n * n}
    beside = memory["allocated_bytes"] - 16 * n * n
    assert 0 <= beside - memory["by_category"]["temporary"] < 0.01 * 16 * n * n


def test_a_sharded_language_model_on_eight_ranks(tmp_path: Path) -> None:
    layout = ("--set", "layout.dp_shard=8")
    found = result(tmp_path, "--nodes", "1", "--price", "3.6 EUR", "--", *TRAIN, *layout)
    assert [rank["rank"] for rank in found["ranks"]] == [0]
    step = found["step_s"]["mid"]
    assert found["tokens"]["per_step"] == 64 * 64  # the job's batch and sequence
    assert found["tokens"]["per_s"]["mid"] == pytest.approx(64 * 64 / step)
    assert found["energy"]["step_j"]["mid"] == pytest.approx(step * 8 * 700)  # the data sheet's W
    assert found["money"]["step"]["mid"] == pytest.approx(step * 8 * 3.6 / 3600)
    assert found["world"] == 8
    called = {row["name"]: row["ranks"] for row in found["ranks"][0]["collectives"]}
    assert called["all_gather"] == called["reduce_scatter"] == 8
    assert sum(found["split"]["exposed_communication_s"].values()) > 0
    assert not (tmp_path / "runs").exists()


def test_a_job_says_on_what_it_is_rehearsed(tmp_path: Path) -> None:
    layout = ("--chip", "kunlun-p800", "--set", "layout.dp_shard=16", "--batch", "128")
    rehearse("--json", "out.json", "--", *TRAIN, *layout, cwd=tmp_path)
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["chip"], found["world"]) == ("kunlun-p800", 16)
    said = rehearse("--", *TRAIN, "--set", "layout.dp_shard=17", cwd=tmp_path, status=2)[1]
    assert "train.batch is 64; expected a multiple of 136" in said


def test_experts_are_called_alike_when_layers_are_computed_again(tmp_path: Path) -> None:
    """Tokens go to their experts and back: by all_to_all, and as often when computed again."""
    layout = ("--set", "layout.dp_shard=8", "--set", "layout.ep=4")
    model = ("--preset", "qwen3-moe-nano", "--set", "layout.recompute='full'")
    found = result(tmp_path, "--nodes", "1", "--steps", "4", "--", *TRAIN, *model, *layout)
    assert found["steps"]["is_stable"]
    calls = {row["name"]: row for row in found["ranks"][0]["collectives"]}
    assert calls["all_to_all"]["ranks"] == 4
    layers = 4
    # Counts, tokens there and tokens back; twice in all, and the latter two in the backward pass.
    assert calls["all_to_all"]["count"] == layers * (2 * 3 + 2)
    assert "which are largest (as even as can be)" in found["declared"]


def test_a_compiled_program_is_played(tmp_path: Path) -> None:
    compiled = WIDE.format(n=256).replace(
        "optimizer =", "model = torch.compile(model)\noptimizer ="
    )
    (tmp_path / "wide.py").write_text(compiled)
    found = result(tmp_path, "--", "python", "wide.py")
    assert found["flops"] == 2 * 2 * 32 * 256 * 256


BY_HAND = """
import torch
model = torch.nn.Linear(64, 64, bias=False).cuda()
for _ in range(9):
    model(torch.ones(8, 64, device="cuda")).sum().backward()
    with torch.no_grad():
        model.weight -= 0.1 * model.weight.grad
        model.weight.grad = None
"""


def test_steps_of_a_program_without_an_optimizer_are_backward_passes(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(BY_HAND)
    found = result(tmp_path, "--", "python", "a.py")
    assert (found["steps"]["found"], found["steps"]["is_stable"]) == (4, True)
    assert found["flops"] == 2 * 2 * 8 * 64 * 64


def test_split_messages_are_parts_of_whole_ones(tmp_path: Path) -> None:
    """Two stages of two tensor parallel ranks: bfloat16, 8 sequences of 64 tokens, 256 numbers."""
    sent = []
    for split in ("false", "true"):
        keys = ("pp=2", "tp=2", "sequence_parallel=false", f"split_messages={split}")
        layout = [word for key in keys for word in ("--set", f"layout.{key}")]
        found = result(tmp_path, "--nodes", "1", "--per-node", "4", "--", *TRAIN, *layout)
        first = found["ranks"][0]["collectives"]
        sent.append(next(r["bytes"] / r["count"] for r in first if r["name"] == "send"))
    assert sent == [8 * 64 * 256 * 2, 8 * 64 * 128 * 2]


def test_a_pipeline_is_played_a_rank_a_stage(tmp_path: Path) -> None:
    layout = ("--set", "layout.pp=4", "--set", "layout.dp_shard=2")
    out, err = rehearse(
        *("--chip", CHIP, "--nodes", "1", "--json", "out.json", "--", *TRAIN, *layout),
        cwd=tmp_path,
    )
    found = json.loads((tmp_path / "out.json").read_text())
    assert [rank["rank"] for rank in found["ranks"]] == [0, 2, 4, 6]
    assert found["split"]["bubble_s"] > 0
    assert "ranks 0, 2, 4, 6; every other rank does as one of them" in out
    assert "bubble" in out
    assert "playing rank 6 of 8" in err


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        ("input('name? ')", (), "waited for input, which a rehearsal does not give"),
        ("print('hello')", (), "ended by itself before its first optimizer step"),
        ("raise ValueError('no data')", (), "ended with status 1 before its first optimizer step"),
        ("while True: print('busy')", ("--limit", "1"), "took longer than 1 s (--limit)"),
    ],
)
def test_programs_that_never_step_are_ended_and_explained(
    tmp_path: Path, source: str, options: tuple[str, ...], says: str
) -> None:
    (tmp_path / "a.py").write_text(source)
    said = rehearse("--chip", CHIP, *options, "--", "python", "a.py", cwd=tmp_path, status=1)[1]
    assert says in said
    assert "it said last:" in said
    for word in ("EOFError", "hello", "no data", "busy"):
        assert (word in said) == (word in source or (word == "EOFError" and "input" in source))
    assert os.listdir(tmp_path) == ["a.py"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--chip", CHIP), "no command given"),
        (("--chip", "nvidia-h10", "--", "python", "a.py"), "did you mean 'nvidia-h100'"),
        (("--chip", CHIP, "--json", "no/a.json", "--", "python", "a.py"), "no does not exist"),
        (("--chip", CHIP, "--trace", ".", "--", "python", "a.py"), "it is a folder"),
        (("--chip", CHIP, "--html", "no/a.html", "--", "python", "a.py"), "no does not exist"),
        (("--chip", CHIP, "--price", "cheap", "--", "python", "a.py"), "such as 2.5 or '2.5 USD'"),
        (
            ("--chip", CHIP, "--tokens-per-step", "0", "--", "python", "a.py"),
            "expected a positive number",
        ),
        (
            ("--chip", CHIP, "--tokens-per-step", "7", "--", *TRAIN),
            "64 sequences of 64 tokens, 4096 in all",
        ),
        (("--chip", CHIP, "--", "pyhton", "a.py"), "command not found: 'pyhton'"),
        (("--chip", CHIP, "--", "python", "b.py"), "script not found: 'b.py'"),
        (("--chip", CHIP, "--", "deepspeed", "a.py"), "by torchrun"),
    ],
)
def test_misuse_ends_before_anything_starts(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    (tmp_path / "a.py").write_text("open('started', 'w')")
    out, err = rehearse(*arguments, cwd=tmp_path, status=2)
    assert says in err
    assert err.startswith("offramp: ")
    assert err.count("\n") == 1
    assert not out
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_program_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    (tmp_path / "a.py").write_text(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(100)"
    )
    child = start("--chip", CHIP, "--", "python", "a.py", cwd=tmp_path)
    pid = tmp_path / "pid"
    until_s = time.monotonic() + 20
    while not (pid.exists() and pid.read_text()) and time.monotonic() < until_s:
        time.sleep(0.05)
    child.send_signal(number)
    said = child.communicate()
    assert child.returncode == status, said
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not [name for name in os.listdir(tmp_path) if name.startswith("offramp-rehearsal-")]
    assert tempfile.gettempdir() != str(tmp_path)
