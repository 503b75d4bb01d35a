"""The chip's memory: sizes and order of attempts are those of PyTorch's CUDA caching allocator.

The figures here are written down from that allocator's documentation, not read from the ledger.
"""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

MIB = 2**20
pytestmark = pytest.mark.usefixtures("chip")


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    gc.collect()
    torch.cuda.set_device(1)
    torch.cuda.empty_cache()
    yield
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_device(0)


def buffer(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cuda:1")


def reserved() -> int:
    return torch.cuda.memory_reserved(1)


@pytest.mark.parametrize(
    ("requested", "allocated", "segment"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (9 * MIB, 9 * MIB, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + MIB // 2, 10 * MIB + MIB // 2, 12 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),  # a rest of up to 1 MiB stays with the block
        (33 * MIB, 34 * MIB, 34 * MIB),
    ],
)
def test_sizes_are_rounded_as_cuda_rounds_them(
    requested: int, allocated: int, segment: int
) -> None:
    before = torch.cuda.memory_allocated(1), reserved()
    held = buffer(requested)
    assert torch.cuda.memory_allocated(1) - before[0] == allocated
    assert reserved() - before[1] == segment
    del held
    assert torch.cuda.memory_allocated(1) == before[0]
    assert reserved() - before[1] == segment, "freed memory stays cached"
    torch.cuda.empty_cache()
    assert reserved() == before[1]


def test_freed_memory_is_used_again() -> None:
    first = buffer(30 * MIB)
    address, before = first.data_ptr(), reserved()
    del first
    second = buffer(30 * MIB)
    assert second.data_ptr() == address
    assert reserved() == before


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30 * MIB), st.integers(0, 7)), max_size=30))
def test_no_byte_is_lost_or_given_twice(steps: list[tuple[int, int]]) -> None:
    start = torch.cuda.memory_allocated(1)
    held: dict[int, torch.Tensor] = {}
    for size, slot in steps:
        held.pop(slot, None)
        held[slot] = buffer(size)
        ranges = sorted((t.data_ptr(), t.data_ptr() + t.numel()) for t in held.values())
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
        rounded = sum(-(-t.numel() // 512) * 512 for t in held.values())
        in_use = torch.cuda.memory_allocated(1) - start
        # A block is not split when what would be left is small: CUDA keeps up to 1 MiB with it.
        assert rounded <= in_use <= rounded + len(held) * MIB
        assert in_use <= reserved()
    held.clear()
    assert torch.cuda.memory_allocated(1) == start


def test_a_share_of_the_memory_is_a_limit() -> None:
    total = torch.cuda.get_device_properties(1).total_memory
    torch.cuda.set_per_process_memory_fraction(100 * MIB / total, 1)
    try:
        kept = buffer(60 * MIB)
        with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory.*60\.00 MiB"):
            buffer(60 * MIB)
        del kept
        assert buffer(60 * MIB).numel() == 60 * MIB, "there is room again"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 1)


def test_cached_memory_is_given_back_before_it_gives_up() -> None:
    total = torch.cuda.get_device_properties(1).total_memory
    torch.cuda.set_per_process_memory_fraction(100 * MIB / total, 1)
    try:
        retries = torch.cuda.memory_stats(1)["num_alloc_retries"]
        del_me = buffer(60 * MIB)
        del del_me
        assert buffer(80 * MIB).numel() == 80 * MIB
        assert torch.cuda.memory_stats(1)["num_alloc_retries"] == retries + 1
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 1)


def test_peaks_are_kept_and_reset() -> None:
    torch.cuda.reset_peak_memory_stats(1)
    start = torch.cuda.memory_allocated(1)
    held = buffer(40 * MIB)
    del held
    assert torch.cuda.max_memory_allocated(1) == start + 40 * MIB
    torch.cuda.reset_peak_memory_stats(1)
    assert torch.cuda.max_memory_allocated(1) == start


def test_out_of_memory_tells_what_holds_it() -> None:
    code = (
        "import torch\n"
        "model = torch.nn.Linear(2048, 2048).cuda()\n"
        "optimizer = torch.optim.AdamW(model.parameters())\n"
        "x = torch.randn(64, 2048, device='cuda')\n"
        "model(x).sum().backward(); optimizer.step()\n"
        "kept = []\n"
        "while True: kept.append(torch.relu(torch.randn(1024, 1024, device='cuda')))\n"
    )
    done = run(code, OFFRAMP_MEMORY="128MiB")
    assert done.returncode == 1
    assert "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 4.00 MiB." in done.stderr
    assert "total capacity of 128.00 MiB" in done.stderr
    held = 2048 * 2049 * 4 / MIB
    for line in (f"{held:.2f} MiB parameters", f"{held:.2f} MiB gradients", "aten::relu"):
        assert line in done.stderr
    assert f"{2 * held:.2f} MiB optimizer state" in done.stderr


def test_a_host_that_is_too_small_says_so_before_it_is_full() -> None:
    """The chip has 96 GiB; the machine's own memory is asked for twice over, never written."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    if pages * size * 2 > 90 * 2**30:
        pytest.skip("this machine has more memory than the chip")
    code = f"import torch\ntorch.empty({pages * size * 2}, dtype=torch.uint8, device='cuda')"
    done = run(code)
    assert "RuntimeError: The host has too little memory to back the virtual chip" in done.stderr
    assert "OutOfMemoryError" not in done.stderr


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment: dict[str, Any] = {**os.environ, "OFFRAMP_CHIP": "zhenwu-810e", **variables}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
