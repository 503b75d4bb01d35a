"""Tensors of the chip sent to another process, which sees the same memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import gc, os, sys
import torch
import torch.multiprocessing as mp

def work(given, answers, model):
    first, second = given.get(), given.get()
    print(first.device, second.device, first.sum().item(), flush=True)
    assert second.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
    first.add_(1)                      # the sender sees it
    second[0] = 40
    with torch.no_grad():
        model.weight.mul_(2)
    answers.put("written")
    given.get()
    try:
        answers.put(first)
    except Exception:                  # raised in the queue's thread, which prints it
        pass
    try:
        first.untyped_storage()._share_cuda_()
    except RuntimeError as error:
        answers.put(str(error))
    del first, second
    gc.collect()
    answers.put("released")
    given.get()

if __name__ == "__main__":
    context = mp.get_context("spawn")
    given, answers = context.Queue(), context.Queue()
    model = torch.nn.Linear(3, 2, bias=False).to("cuda").share_memory()
    start = model.weight.detach().cpu().clone()
    used = torch.cuda.memory_allocated()
    x = torch.arange(3000.0, device="cuda")
    neighbour = torch.ones(100, device="cuda")   # in the same segment
    worker = context.Process(target=work, args=(given, answers, model))
    worker.start()
    given.put(x)
    given.put(x[:10])
    assert answers.get() == "written"
    print(x[0].item(), x[1].item(), x.sum().item() - 3000 * 1499.5)
    print(torch.equal(model.weight.detach().cpu(), 2 * start), neighbour.sum().item())
    del x
    gc.collect()
    held = torch.cuda.memory_allocated() - used
    given.put(None)
    print(answers.get())
    assert answers.get() == "released"
    torch.cuda.ipc_collect()
    print(held, torch.cuda.memory_allocated() - used)
    given.put(None)
    worker.join()
    print(worker.exitcode)
"""


@pytest.mark.parametrize("chip", ["zhenwu-810e", "ascend-910b"])
def test_both_processes_see_one_memory(tmp_path: Path, chip: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "offramp", "run", "--quiet", "--chip", chip, "--run-dir"]
    done = subprocess.run(
        [*command, str(tmp_path / "run"), "--", sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen, written, others, refused, held, ended = done.stdout.splitlines()
    assert seen == "cuda:0 cuda:0 4498500.0"
    assert written == f"40.0 2.0 {3000.0 + 39}"
    assert others == "True 100.0"
    assert "received from another process; this is not supported. Send a clone." in refused
    assert held == "12800 512"  # 3000 numbers are kept while a receiver has them; 100 are ours
    assert ended == "0"
